import copy
import io
import itertools
import pickle
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import samplers as pml_samplers
from pytorch_metric_learning import trainers
from pytorch_metric_learning.utils import common_functions as c_f
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, TensorDataset

from pml_xbml.samplers import DisjointClassPairSampler

LABELS = np.repeat(np.arange(20), 7)


def sampler_of(labels=LABELS, m=2, batch_size=12, length_before_new_iter=96, seed=0, **kwargs):
    return DisjointClassPairSampler(labels, m, batch_size, length_before_new_iter, seed, **kwargs)


def epochs_of(sampler, count):
    return list(itertools.chain.from_iterable(list(sampler) for _ in range(count)))


def batches_of(indices, batch_size):
    assert len(indices) % batch_size == 0
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def assert_all_before_any_again(drawn, population):
    """Walks through what was drawn, item by item: none again until all of the population were."""
    seen = set()
    for item in drawn:
        assert item in population
        assert item not in seen
        seen.add(item)
        if len(seen) == len(population):
            seen.clear()


@st.composite
def configurations(draw, max_replicas=1):
    """Labels in any order, with classes of unequal sizes, and arguments that fit them."""
    m = draw(st.integers(1, 5))
    classes_per_half = draw(st.integers(1, 5))
    num_classes = draw(st.integers(2 * classes_per_half, 2 * classes_per_half + 25))
    sizes = draw(st.lists(st.integers(1, 14), min_size=num_classes, max_size=num_classes))
    order = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(sum(sizes))
    labels = np.repeat(np.arange(num_classes) * 7 - 20, sizes)[order].tolist()
    batch_size = 2 * classes_per_half * m
    return {
        "labels": labels,
        "m": m,
        "batch_size": batch_size,
        "length_before_new_iter": draw(st.integers(batch_size, 12 * batch_size)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "num_replicas": draw(st.integers(1, max_replicas)),
    }


def indices_of_classes(labels):
    classes = defaultdict(set)
    for index, label in enumerate(labels):
        classes[label].add(index)
    return classes


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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": None}, ValueError, "labels must be given.*got None"),
        ({"labels": []}, ValueError, "labels must be given.*got none"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, ValueError, "labels must be given.*got none"),
        ({"labels": np.zeros((4, 2))}, ValueError, r"labels must be 1-D.*\(4, 2\)"),
        ({"labels": 3}, ValueError, r"labels must be 1-D.*got shape \(\) from int"),
        ({"labels": [[1], [1, 2]]}, ValueError, "labels must be 1-D.*several lengths"),
        ({"labels": [0.0, float("nan")] * 20}, ValueError, "labels must not be NaN, got nan for sample 1"),
        ({"labels": torch.full((9,), torch.nan)}, ValueError, "labels must not be NaN"),
        ({"labels": np.array([1, "a", None], dtype=object)}, TypeError, "labels must be of one kind"),
        ({"labels": [0, 1, 2, 3, 4] * 9}, ValueError, r"batch_size / m = 12 / 2 = 6 classes, got 5"),
        ({"m": 0}, ValueError, "m must be at least 1, got 0"),
        ({"m": 2.0}, TypeError, r"m must be an integer, got 2\.0 of type float"),
        ({"m": True}, TypeError, "m must be an integer, got True"),
        ({"m": 5}, ValueError, r"batch_size must be a multiple of 2 \* m = 10.*got 12"),
        ({"batch_size": 14}, ValueError, r"batch_size must be a multiple of 2 \* m = 4.*got 14"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer, got None"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "12"}, TypeError, "batch_size must be an integer, got '12'"),
        (
            {"length_before_new_iter": 11},
            ValueError,
            "length_before_new_iter must be at least batch_size = 12",
        ),
        (
            {"length_before_new_iter": 1},
            ValueError,
            "length_before_new_iter must be at least batch_size = 12, got 1",
        ),
        (
            {"length_before_new_iter": 1e5},
            TypeError,
            "length_before_new_iter must be an integer, got 100000.0",
        ),
        (
            {"length_before_new_iter": 2**62},
            ValueError,
            "samples of an epoch of all replicas must be below",
        ),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, f"seed must be below {2**64}, got {2**64}"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"num_replicas": 0}, ValueError, "num_replicas must be at least 1"),
        ({"num_replicas": 2}, ValueError, "rank must be 0 to 1"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank must be below num_replicas = 2, got 2"),
        ({"rank": 1}, ValueError, "rank must be below num_replicas = 1, got 1"),
        ({"num_replicas": 2, "rank": -1}, ValueError, "rank must be at least 0, got -1"),
        (
            {"num_replicas": 2, "rank": 0, "seed": None},
            ValueError,
            "seed must be an integer, the same for all 2",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sampler_of(**arguments)


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("set_epoch", -1, ValueError, "epoch must be at least 0, got -1"),
        ("set_epoch", 1.0, TypeError, "epoch must be an integer, got 1.0"),
        ("set_epoch", 2**62, ValueError, "epoch must be below"),
        ("state_dict", 9, ValueError, "batches_consumed must be at most 8.*got 9"),
        ("state_dict", -1, ValueError, "batches_consumed must be at least 0, got -1"),
        ("state_dict", 1.5, TypeError, "batches_consumed must be an integer, got 1.5"),
        ("load_state_dict", None, ValueError, "state_dict must be what state_dict.. returned, got None"),
        ("load_state_dict", {"epoch": 1}, ValueError, "state_dict must be .*got {'epoch': 1}"),
    ],
)
def test_bad_positions_are_refused(method, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(sampler_of(), method)(argument)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"labels": LABELS[::-1] * (LABELS != 3)}, "num_samples|num_classes|labels_checksum"),
        ({"labels": np.roll(LABELS, 1)}, "labels_checksum is"),
        ({"m": 3}, "m is 2 there, 3 here"),
        ({"batch_size": 8}, "batch_size is 12 there, 8 here"),
        ({"length_before_new_iter": 108}, "samples_per_epoch is 96 there, 108 here"),
        ({"num_replicas": 2, "rank": 0}, "num_replicas is 1 there, 2 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
    ],
)
def test_a_state_of_another_configuration_is_refused_and_changes_nothing(arguments, difference):
    sampler = sampler_of()
    list(sampler)
    other = sampler_of(**arguments)
    with pytest.raises(ValueError, match=difference):
        other.load_state_dict(sampler.state_dict(2))
    assert list(other) == list(sampler_of(**arguments))


@pytest.mark.parametrize(("name", "value"), [("epoch", -1), ("epoch", "1"), ("batch", 9), ("seed", None)])
def test_a_damaged_state_is_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name}.* must be"):
        sampler_of(seed=None).load_state_dict(sampler_of().state_dict(2) | {name: value})
