import copy
import itertools
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import samplers as pml_samplers
from pytorch_metric_learning import trainers
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset

from pml_xbml.samplers import DisjointClassPairSampler
from tests.samplers.drawing import (
    LABELS,
    assert_all_before_any_again,
    batches_of,
    configurations,
    epochs_of,
    indices_of_classes,
    sampler_of,
)


@given(configurations())
def test_batches_are_two_halves_without_a_common_class_with_m_samples_a_class(config):
    labels, m, batch_size = config["labels"], config["m"], config["batch_size"]
    classes = indices_of_classes(labels)
    for batch in batches_of(epochs_of(sampler_of(rank=0, **config), 3), batch_size):
        halves = [Counter(labels[i] for i in half) for half in batches_of(batch, batch_size // 2)]
        assert not halves[0].keys() & halves[1].keys()
        assert {*halves[0].values(), *halves[1].values()} == {m}
        for label in halves[0] | halves[1]:
            draws = Counter(i for i in batch if labels[i] == label)
            assert len(draws) == min(m, len(classes[label]))
            assert max(draws.values()) - min(draws.values()) <= 1


@given(configurations())
def test_every_class_and_every_sample_is_drawn_before_any_is_drawn_again(config):
    labels, m = config["labels"], config["m"]
    classes = indices_of_classes(labels)
    indices = epochs_of(sampler_of(rank=0, **config), 4)
    assert_all_before_any_again([labels[i] for i in indices[::m]], classes.keys())
    for label, members in classes.items():
        assert_all_before_any_again([i for i in indices if labels[i] == label], members)


def test_classes_and_their_samples_are_shuffled_independently_of_each_other():
    indices = np.array(epochs_of(sampler_of(np.repeat(np.arange(20), 6)), 10))
    orders = {tuple(indices[indices // 6 == label][:6] % 6) for label in range(20)}
    assert len(orders) > 10


@given(configurations(max_replicas=5))
def test_replicas_share_no_more_than_they_must(config):
    labels, m, num_replicas = config["labels"], config["m"], config["num_replicas"]
    half = config["batch_size"] // 2
    classes = indices_of_classes(labels)
    replicas = [
        batches_of(epochs_of(sampler_of(rank=rank, **config), 3), 2 * half) for rank in range(num_replicas)
    ]
    class_draws, sample_draws = (
        Counter(dict.fromkeys(classes, 0)),
        Counter(dict.fromkeys(range(len(labels)), 0)),
    )
    for step in zip(*replicas, strict=True):
        first = [{labels[i] for i in batch[:half]} for batch in step]
        second = [{labels[i] for i in batch[half:]} for batch in step]
        assert not set().union(*first) & set().union(*second)
        sharing = Counter(label for batch in step for label in {labels[i] for i in batch})
        assert len(set(sharing.values())) == 1
        if num_replicas * 2 * half <= m * len(classes):
            assert set(sharing.values()) == {1}
        step_draws = Counter(i for batch in step for i in batch)
        for label, replicas_of_class in sharing.items():
            drawn_together = [step_draws[i] for i in classes[label] if i in step_draws]
            assert len(drawn_together) == min(replicas_of_class * m, len(classes[label]))
        class_draws.update(sharing.keys())
        assert max(class_draws.values()) - min(class_draws.values()) <= 1
        sample_draws.update(step_draws)
        for members in classes.values():
            draws = [sample_draws[i] for i in members]
            assert max(draws) - min(draws) <= 1
    for batches in replicas:
        for batch in batches:
            for label, draws in Counter(labels[i] for i in batch).items():
                assert draws == m
                assert len({i for i in batch if labels[i] == label}) == min(m, len(classes[label]))


@pytest.mark.parametrize(
    ("num_classes", "num_replicas", "classes_a_step"),
    [(24, 4, 24), (23, 4, 12), (12, 4, 12), (11, 4, 8), (6, 4, 6), (17, 3, 6), (18, 3, 18)],
)
def test_as_many_classes_a_step_as_all_replicas_can_share_evenly(num_classes, num_replicas, classes_a_step):
    labels = np.repeat(np.arange(num_classes), 30)
    step = [
        next(iter(batches_of(list(sampler_of(labels, num_replicas=num_replicas, rank=rank)), 12)))
        for rank in range(num_replicas)
    ]
    assert len(set(labels[np.ravel(step)])) == classes_a_step
    assert len(set(np.ravel(step).tolist())) == 12 * num_replicas


@pytest.mark.parametrize(
    ("class_sizes", "arguments", "first", "last"),
    [
        (
            [7] * 20,
            {"seed": 0},
            [47, 46, 4, 1, 123, 124, 70, 73, 10, 12, 80, 79],
            [137, 139, 75, 74, 120, 123, 0, 2, 117, 112, 17, 20],
        ),
        (
            [7] * 20,
            {"seed": 2**64 - 1, "num_replicas": 4, "rank": 3},
            [66, 67, 90, 88, 76, 74, 48, 42, 56, 62, 105, 111],
            [118, 113, 107, 109, 8, 13, 87, 90, 53, 52, 104, 98],
        ),
        (
            [3] * 9,
            {"seed": 5, "num_replicas": 3, "rank": 2},
            [1, 0, 17, 15, 9, 11, 24, 26, 19, 20, 5, 4],
            [19, 20, 4, 5, 10, 9, 14, 13, 17, 16, 6, 8],
        ),
    ],
    ids=["one process", "a class for each process", "classes shared by processes"],
)
def test_batches_of_a_seed_are_a_promise(class_sizes, arguments, first, last):
    """Another version may not draw others: what was measured or saved with a seed would lose its worth."""
    sampler = sampler_of(np.repeat(np.arange(len(class_sizes)), class_sizes), **arguments)
    indices = epochs_of(sampler, 2 if arguments["seed"] == 0 else 1)
    assert (indices[:12], indices[-12:]) == (first, last)


def test_the_checksum_of_labels_is_a_promise():
    assert sampler_of().state_dict()["configuration"]["labels_checksum"] == 2309789526


@given(configurations())
def test_len_is_that_of_mperclasssampler(config):
    arguments = {name: config[name] for name in ("labels", "m", "batch_size", "length_before_new_iter")}
    sampler = DisjointClassPairSampler(**arguments)
    assert len(sampler) == len(pml_samplers.MPerClassSampler(**arguments)) == len(list(sampler))


def test_default_length_is_that_of_mperclasssampler():
    assert len(DisjointClassPairSampler(LABELS, m=2, batch_size=12)) == 99996


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(),
        tuple(LABELS.tolist()),
        LABELS.astype(np.uint8),
        LABELS.astype(np.int16)[::-1][::-1],
        LABELS - 2**62,
        LABELS.astype(np.uint64) + np.uint64(2**63),
        (LABELS * 12 - 128).astype(np.int8),
        LABELS * 2**40 - 2**44,
        LABELS / 4,
        [f"class {label:02d}" for label in LABELS],
        np.array([f"class {label:02d}" for label in LABELS], dtype=object),
        *(
            torch.tensor(LABELS).to(dtype)
            for dtype in (torch.int32, torch.uint8, torch.float32, torch.bfloat16)
        ),
        torch.tensor(LABELS)[:, None].expand(-1, 3)[:, 0],
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', type(labels[0]).__name__)}",
)
def test_labels_of_every_kind_give_the_same_batches(labels):
    assert list(sampler_of(labels)) == list(sampler_of(LABELS))


def test_a_batch_may_be_larger_than_what_is_computed_at_once():
    labels = np.repeat(np.arange(8), 2500)
    indices = list(sampler_of(labels, m=2500, batch_size=20_000, length_before_new_iter=20_000))
    assert sorted(indices) == list(range(20_000))


@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize(("length", "batch_size"), [(96, 12), (64, 8)])
def test_epochs_reach_as_far_as_64_bit_integers_count(num_replicas, length, batch_size):
    sampler = sampler_of(
        batch_size=batch_size, length_before_new_iter=length, num_replicas=num_replicas, rank=0
    )
    end = 2**62 // (length * num_replicas)
    sampler.set_epoch(end - 1)
    for batch in batches_of(list(sampler), batch_size):
        assert set(Counter(LABELS[batch].tolist()).values()) == {2}
    with pytest.raises(ValueError, match=f"epoch must be below {end}, .* got {end}"):
        sampler.set_epoch(end)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_an_epoch_is_as_long_as_64_bit_integers_count(num_replicas):
    longest = (2**62 - 1) // num_replicas
    sampler = sampler_of(length_before_new_iter=longest, num_replicas=num_replicas, rank=0)
    assert next(iter(sampler)) in range(len(LABELS))
    with pytest.raises(ValueError, match=f"must be below {2**62}, got {(longest + 1) * num_replicas}"):
        sampler_of(length_before_new_iter=longest + 1, num_replicas=num_replicas, rank=0)


def test_boolean_labels_are_two_classes():
    labels = torch.tensor([True, False, False, True, True])
    for batch in batches_of(list(sampler_of(labels, m=2, batch_size=4, length_before_new_iter=40)), 4):
        assert labels[batch].tolist() in ([True, True, False, False], [False, False, True, True])


def test_indices_are_plain_integers():
    assert {type(index) for index in sampler_of()} == {int}


def test_memory_does_not_grow_with_the_length_of_the_epoch():
    peaks = []
    for length in (10**6, 10**12):
        tracemalloc.start()
        iterator = iter(sampler_of(length_before_new_iter=length))
        assert len(list(itertools.islice(iterator, 20_000))) == 20_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("spacing", [1, 10**9])
def test_memory_is_at_most_three_times_the_labels(spacing):
    labels = np.random.default_rng(0).integers(0, 20_000, 200_000) * spacing
    tracemalloc.start()
    next(iter(sampler_of(labels, length_before_new_iter=10**6)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1.5 * labels.nbytes
    assert peak < 3 * labels.nbytes


def test_deepcopy_and_pickle_go_on_where_they_were_made():
    sampler = sampler_of()
    list(sampler)
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    second_epoch = list(sampler)
    assert [list(each) for each in copies] == [second_epoch] * 2


@pytest.mark.parametrize(("rank", "world_size"), [(1, 2), (2, 3)])
def test_default_replica_is_that_of_the_process_group(rank, world_size):
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        sampler = sampler_of()
        assert (sampler.num_replicas, sampler.rank) == (world_size, rank)
        assert (sampler_of(num_replicas=1, rank=0).num_replicas, sampler_of(rank=1).rank) == (1, 1)
        with pytest.raises(ValueError, match=f"seed must be an integer, the same for all {world_size}"):
            sampler_of(seed=None)
    finally:
        torch.distributed.destroy_process_group()
    assert list(sampler) == list(sampler_of(num_replicas=world_size, rank=rank))


def test_trains_with_the_trainer_of_pml():
    labels = torch.tensor(LABELS)
    features = torch.nn.functional.one_hot(labels, 20) + 0.1 * torch.randn(len(labels), 20)
    sampler, batch_labels = sampler_of(labels), []
    model = torch.nn.Linear(20, 4)
    trainer = trainers.MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": torch.optim.Adam(model.parameters(), lr=0.01)},
        batch_size=12,
        loss_funcs={"metric_loss": pml_losses.ContrastiveLoss()},
        dataset=TensorDataset(features, labels),
        sampler=sampler,
        iterations_per_epoch=5,
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        data_and_label_getter=lambda batch: (batch_labels.append(batch[1]), batch)[1],
    )
    trainer.train(num_epochs=4)
    expected = LABELS[epochs_of(sampler_of(labels), 3)]
    assert torch.cat(batch_labels).tolist() == expected[: 20 * 12].tolist()
    assert sampler.epoch == 2
