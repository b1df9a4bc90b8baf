import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from pml_xbml.samplers import DisjointClassPairBatchSampler, DisjointClassPairSampler

LABELS = np.repeat(np.arange(20), 7)


def batch_sampler_of(labels=LABELS, m=2, batch_size=12, num_batches=8, seed=0, **kwargs):
    return DisjointClassPairBatchSampler(labels, m, batch_size, num_batches, seed, **kwargs)


def sampler_of(num_batches=8, **kwargs):
    return DisjointClassPairSampler(LABELS, 2, 12, 12 * num_batches, 0, **kwargs)


def batches_of(sampler):
    return torch.tensor(list(sampler)).reshape(-1, 12).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_takes_it_as_its_batch_sampler(num_workers):
    dataset = TensorDataset(torch.arange(len(LABELS)))
    loader = DataLoader(dataset, batch_sampler=batch_sampler_of(), num_workers=num_workers)
    assert len(loader) == 8
    sampler = sampler_of()
    for _ in range(2):
        batches = [indices.tolist() for (indices,) in loader]
        assert batches == batches_of(sampler)


@pytest.mark.parametrize("replica", [{}, {"num_replicas": 3, "rank": 2}])
def test_batches_are_those_of_the_sampler(replica):
    assert list(batch_sampler_of(**replica)) == batches_of(sampler_of(**replica))


@given(st.data())
def test_without_num_batches_an_epoch_is_long_enough_for_every_sample(data):
    m, num_replicas = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=4, max_size=25))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = 2 * m * data.draw(st.integers(1, len(sizes) // 2))
    epochs = [
        list(batch_sampler_of(labels, m, batch_size, None, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    assert set(np.ravel(epochs).tolist()) == set(range(len(labels)))


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize(("num_classes", "class_size"), [(24, 10), (12, 20), (24, 2)])
def test_without_num_batches_an_epoch_is_one_pass_where_that_comes_out_even(
    num_replicas, num_classes, class_size
):
    labels = np.repeat(np.arange(num_classes), class_size)
    epochs = [
        list(batch_sampler_of(labels, num_batches=None, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    assert sorted(np.ravel(epochs).tolist()) == list(range(len(labels)))


def test_set_epoch_reaches_the_sampler():
    batch_sampler = batch_sampler_of()
    epochs = [list(batch_sampler) for _ in range(3)]
    batch_sampler.set_epoch(1)
    assert list(batch_sampler) == epochs[1]


@pytest.mark.parametrize("batches_consumed", [None, 3])
def test_it_resumes_where_it_was(batches_consumed):
    unbroken = batch_sampler_of()
    expected = [list(unbroken), list(unbroken)]
    interrupted, resumed = batch_sampler_of(), batch_sampler_of()
    assert list(itertools.islice(interrupted, 3)) == expected[0][:3]
    resumed.load_state_dict(interrupted.state_dict(batches_consumed))
    assert [list(resumed), list(resumed)] == [expected[0][3:], expected[1]]
    assert len(resumed) == 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_batches": 0}, ValueError, "num_batches must be at least 1, got 0"),
        ({"num_batches": 1.5}, TypeError, "num_batches must be an integer, got 1.5"),
        ({"batch_size": "12"}, TypeError, "batch_size must be an integer, got '12'"),
        ({"batch_size": 10}, ValueError, r"batch_size must be a multiple of 2 \* m = 4"),
        ({"num_batches": 2**60}, ValueError, "samples of an epoch of all replicas must be below"),
        (
            {"num_replicas": 2, "rank": 0, "seed": None},
            ValueError,
            "seed must be an integer, the same for all 2",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        batch_sampler_of(**arguments)
