"""torchdata's StatefulDataLoader asks samplers for their state without saying how far the training is."""

import pytest
import torch
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from pml_xbml.samplers import DisjointClassPairBatchSampler, DisjointClassPairSampler

LABELS = torch.arange(140) // 7
NUM_BATCHES = 6


def loader_of(by_batches, num_workers, seed=0):
    if by_batches:
        sampling = {"batch_sampler": DisjointClassPairBatchSampler(LABELS, 2, 12, NUM_BATCHES, seed)}
    else:
        sampler = DisjointClassPairSampler(LABELS, 2, 12, 12 * NUM_BATCHES, seed)
        sampling = {"sampler": sampler, "batch_size": 12, "drop_last": True}
    return StatefulDataLoader(TensorDataset(torch.arange(140)), num_workers=num_workers, **sampling)


def run(loader, num_epochs, stop=None):
    """The batches of each epoch, and the state after `stop` = (epoch, batches)."""
    epochs = []
    for epoch in range(num_epochs):
        epochs.append([])
        if stop == (epoch, 0):
            return epochs, loader.state_dict()
        for (indices,) in loader:
            epochs[-1].append(indices.tolist())
            if stop == (epoch, len(epochs[-1])):
                return epochs, loader.state_dict()
    return epochs, loader.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("by_batches", [False, True])
@pytest.mark.parametrize("stop", [(0, 0), (0, 1), (1, 4), (1, NUM_BATCHES - 1), (1, NUM_BATCHES)])
def test_a_resumed_loader_goes_on_like_an_unbroken_one(num_workers, by_batches, stop):
    expected, _ = run(loader_of(by_batches, num_workers), 4)
    assert [len(epoch) for epoch in expected] == [NUM_BATCHES] * 4
    before, state = run(loader_of(by_batches, num_workers), 4, stop)
    assert before == [*expected[: stop[0]], expected[stop[0]][: stop[1]]]
    resumed = loader_of(by_batches, num_workers)
    resumed.load_state_dict(state)
    after, _ = run(resumed, 4 - stop[0])
    assert after == [expected[stop[0]][stop[1] :], *expected[stop[0] + 1 :]]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("by_batches", [False, True])
def test_a_loader_saved_between_two_epochs_begins_the_next(num_workers, by_batches):
    expected, _ = run(loader_of(by_batches, num_workers), 4)
    _, state = run(loader_of(by_batches, num_workers), 2)
    resumed = loader_of(by_batches, num_workers)
    resumed.load_state_dict(state)
    assert run(resumed, 2)[0] == expected[2:]


def test_a_state_without_a_seed_holds_the_drawn_one():
    loader, resumed = loader_of(False, 0, seed=None), loader_of(False, 0, seed=None)
    _, state = run(loader, 1, stop=(0, 2))
    loader.sampler.set_epoch(0)
    unbroken, _ = run(loader, 2)
    resumed.load_state_dict(state)
    assert run(resumed, 2)[0] == [unbroken[0][2:], unbroken[1]]


def test_samplers_have_their_own_positions():
    sampler = DisjointClassPairSampler(LABELS, 2, 12, 36, 0)
    states = [sampler.state_dict()]
    for number, _ in enumerate(sampler, start=1):
        if number % 12 == 0:
            states.append(sampler.state_dict())
    states.append(sampler.state_dict())
    positions = [(state["epoch"], state["batch"]) for state in states]
    assert positions == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert states[:-2] == [sampler_after(0).state_dict(batches) for batches in range(3)]


def sampler_after(epoch):
    sampler = DisjointClassPairSampler(LABELS, 2, 12, 36, 0)
    sampler.set_epoch(epoch)
    return sampler


def test_an_older_iteration_that_goes_on_does_not_move_the_position():
    sampler = DisjointClassPairSampler(LABELS, 2, 12, 36, 0)
    older, newer = iter(sampler), iter(sampler)
    next(older)
    for _ in range(12):
        next(newer)
    list(older)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batch"]) == (1, 1)


def test_a_loader_of_another_batch_size_is_refused():
    sampler = DisjointClassPairSampler(LABELS, 2, 12, 36, 0)
    loader = StatefulDataLoader(TensorDataset(LABELS), sampler=sampler, batch_size=9)
    batches = iter(loader)
    next(batches)
    with pytest.raises(ValueError, match=r"whole batches of 12, got 0 batches and 9 samples.*batch_size=12"):
        loader.state_dict()
