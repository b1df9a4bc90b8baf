"""Epochs, positions in them, and what a sampler resumes from."""

import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.utils import common_functions as c_f
from torch.utils.data import DataLoader, TensorDataset

from tests.samplers.drawing import (
    LABELS,
    batches_of,
    configurations,
    epochs_of,
    sampler_of,
)


@given(configurations(max_replicas=3), st.data())
def test_resuming_continues_as_if_unbroken(config, data):
    rank = data.draw(st.integers(0, config["num_replicas"] - 1))
    batch_size = config["batch_size"]
    batches_per_epoch = len(sampler_of(rank=rank, **config)) // batch_size
    unbroken = batches_of(epochs_of(sampler_of(rank=rank, **config), 5), batch_size)
    sampler, consumed, continued = sampler_of(rank=rank, **config), 0, []
    for _ in range(3):
        batches = batches_of(list(sampler), batch_size)
        stop = data.draw(st.integers(0, len(batches)))
        continued += batches[:stop]
        consumed += stop
        state = sampler.state_dict(stop)
        sampler = sampler_of(rank=rank, **config)
        sampler.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert sampler.epoch == consumed // batches_per_epoch
        assert len(sampler) == batches_per_epoch * batch_size
    continued += batches_of(epochs_of(sampler, 2), batch_size)
    assert continued == unbroken[: len(continued)]
    assert len(continued) > consumed


def test_a_restored_position_counts_from_the_interruption_on():
    sampler = sampler_of()
    sampler.load_state_dict(sampler.state_dict(3))
    assert sampler.state_dict(4)["batch"] == 7
    with pytest.raises(ValueError, match=r"batches_consumed must be at most 5, .* got 6"):
        sampler.state_dict(6)


def test_a_state_from_between_the_last_batch_and_the_end_has_nothing_left_of_its_epoch():
    sampler = sampler_of()
    sampler.load_state_dict(sampler.state_dict(0) | {"batch": 8})
    assert epochs_of(sampler, 2) == epochs_of(sampler_of(), 2)[96:]


def test_a_state_is_small_and_loads_without_pickled_code():
    small, large = sampler_of(), sampler_of(np.arange(200_000) // 4, length_before_new_iter=10**6)
    files = []
    for sampler in (small, large):
        file = io.BytesIO()
        torch.save(sampler.state_dict(3), file)
        files.append(file.getvalue())
        assert torch.load(io.BytesIO(file.getvalue()), weights_only=True) == sampler.state_dict(3)
    assert len(files[1]) < len(files[0]) + 100


def test_one_replica_restores_the_state_of_another():
    samplers = [sampler_of(num_replicas=2, rank=rank) for rank in range(2)]
    resumed = sampler_of(num_replicas=2, rank=1)
    whole = [list(sampler) for sampler in samplers]
    resumed.load_state_dict(samplers[0].state_dict(5))
    assert list(resumed) == whole[1][5 * 12 :]


@pytest.mark.parametrize("batches_consumed", [0, 3, 8])
def test_position_is_what_was_consumed_whatever_the_workers_fetched_ahead(batches_consumed):
    dataset = TensorDataset(torch.arange(len(LABELS)))

    def loader(sampler, num_workers):
        return DataLoader(dataset, batch_size=12, sampler=sampler, drop_last=True, num_workers=num_workers)

    def consume(batches):
        return [batch[0].tolist() for batch in batches]

    unbroken = batches_of(epochs_of(sampler_of(), 2), 12)
    sampler = sampler_of()
    batches = iter(loader(sampler, num_workers=2))
    consumed = consume(itertools.islice(batches, batches_consumed))
    state = sampler.state_dict(batches_consumed)
    del batches
    for num_workers in (0, 1):
        resumed = sampler_of()
        resumed.load_state_dict(state)
        remainder = loader(resumed, num_workers)
        continued = consumed + consume(remainder) + consume(remainder)
        assert continued[:16] == unbroken
        assert len(continued) == (24 if batches_consumed == 8 else 16)


def test_without_a_seed_a_resumed_run_does_not_draw_again():
    sampler = sampler_of(seed=None)
    whole = epochs_of(sampler, 2)
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    resumed = sampler_of(seed=None)
    resumed.load_state_dict(sampler_of_state(sampler, epoch=0, batches_consumed=3))
    assert epochs_of(resumed, 2) == whole[3 * 12 :]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def sampler_of_state(sampler, epoch, batches_consumed):
    sampler.set_epoch(epoch)
    return sampler.state_dict(batches_consumed)


def test_without_a_seed_the_state_before_the_first_iteration_holds_what_will_be_drawn():
    sampler, resumed = sampler_of(seed=None), sampler_of(seed=None)
    resumed.load_state_dict(sampler.state_dict(0))
    assert list(resumed) == list(sampler)


@pytest.mark.parametrize("generator", [np.random.RandomState, np.random.default_rng])
def test_without_a_seed_it_draws_from_the_random_state_of_pml(generator, monkeypatch):
    def draw(seed):
        monkeypatch.setattr(c_f, "NUMPY_RANDOM", generator(seed))
        return list(sampler_of(seed=None))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_without_a_seed_it_follows_numpys_global_seed():
    def draw(seed):
        sampler = sampler_of(seed=None)
        np.random.seed(seed)  # noqa: NPY002
        return list(sampler)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_with_a_seed_it_leaves_the_random_state_of_pml_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert list(sampler_of(seed=3)) == list(sampler_of(seed=3))
    assert list(sampler_of(seed=3)) != list(sampler_of(seed=4))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_each_iteration_goes_on_to_the_next_epoch_and_set_epoch_overrides():
    sampler = sampler_of()
    epochs = [list(sampler) for _ in range(4)]
    assert sampler.epoch == 3
    assert len(set(map(tuple, epochs))) == 4
    sampler.set_epoch(1)
    assert [list(sampler), list(sampler)] == epochs[1:3]
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]


def test_an_iteration_begins_with_its_first_sample():
    sampler, epochs = sampler_of(), [list(epoch) for epoch in batches_of(epochs_of(sampler_of(), 3), 96)]
    iter(sampler)
    assert list(sampler) == epochs[0]
    next(iter(sampler))
    assert list(sampler) == epochs[2]


def test_set_epoch_to_the_restored_epoch_keeps_the_place_in_it():
    sampler = sampler_of()
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    next(iter(sampler))
    state = sampler.state_dict(3)
    resumed = sampler_of()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert list(resumed) == epochs[1][3 * 12 :]
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
