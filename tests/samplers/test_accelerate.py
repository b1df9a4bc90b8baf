"""Which loaders of Accelerate a sampler refuses, without its processes: ``accelerate.state`` is made up.

``test_processes.py`` runs Accelerate itself.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from pml_xbml.samplers import DisjointClassPairBatchSampler, DisjointClassPairSampler

LABELS = torch.arange(140) // 7


@pytest.fixture
def state(monkeypatch):
    """Two processes, of which this one iterates over no loader yet."""
    gradient, partial = SimpleNamespace(active_dataloader=None), SimpleNamespace(num_processes=2)
    state = SimpleNamespace(
        is_initialized=lambda: True,
        GradientState=lambda: gradient,
        PartialState=lambda: partial,
        gradient=gradient,
        partial=partial,
    )
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    return state


def sampler_of(batch_size=12, **replica):
    return DisjointClassPairSampler(LABELS, 3, batch_size, 72, seed=0, **replica)


def loader_of(sampler, **attributes):
    batch_sampler = BatchSampler(sampler, sampler.batch_size, drop_last=True)
    return SimpleNamespace(batch_sampler=batch_sampler, **attributes)


@pytest.mark.parametrize(
    ("batch_size", "replica", "attributes"),
    [
        (12, {}, {}),
        (12, {}, {"split_batches": False}),
        (18, {}, {"split_batches": True}),
        (12, {"num_replicas": 2, "rank": 0}, {"split_batches": True}),
    ],
    ids=["dealt out", "dealt out too", "cut in a class", "dealt out twice"],
)
def test_loaders_that_break_the_halves_are_refused(state, batch_size, replica, attributes):
    sampler = sampler_of(batch_size, **replica)
    state.gradient.active_dataloader = loader_of(sampler, **attributes)
    with pytest.raises(
        ValueError, match=r"got one that is for 2 processes: .* 2 \* m \* num_processes = 12,"
    ):
        next(iter(sampler))


@pytest.mark.parametrize("batch_size", [12, 24, 36])
def test_a_loader_may_split_batches_where_their_classes_end(state, batch_size):
    sampler = sampler_of(batch_size)
    state.gradient.active_dataloader = loader_of(sampler, split_batches=True)
    assert len(list(sampler)) == 72


def test_so_may_a_batch_sampler_around_another(state):
    sampler = sampler_of()
    inner = BatchSampler(sampler, 12, drop_last=True)
    shard = SimpleNamespace(batch_sampler=inner, batch_size=12, split_batches=True)
    state.gradient.active_dataloader = SimpleNamespace(batch_sampler=shard)
    assert len(list(sampler)) == 72
    shard.split_batches = False
    with pytest.raises(ValueError, match=r"must be left out of accelerator.prepare"):
        next(iter(sampler))


def test_the_batch_sampler_is_looked_into(state):
    batch_sampler = DisjointClassPairBatchSampler(LABELS, 3, 12, 6, seed=0)
    state.gradient.active_dataloader = SimpleNamespace(batch_sampler=batch_sampler)
    with pytest.raises(ValueError, match=r"must be left out of accelerator.prepare"):
        next(iter(batch_sampler))


@pytest.mark.parametrize(
    "case", ["no loader", "another's loader", "one process", "not initialized", "absent"]
)
def test_nothing_else_is_refused(state, monkeypatch, case):
    sampler = sampler_of()
    state.gradient.active_dataloader = loader_of(sampler)
    if case == "no loader":
        state.gradient.active_dataloader = None
    elif case == "another's loader":
        others = BatchSampler(SequentialSampler(LABELS), 12, drop_last=True)
        state.gradient.active_dataloader = SimpleNamespace(batch_sampler=others)
    elif case == "one process":
        state.partial.num_processes = 1
    elif case == "not initialized":
        state.is_initialized = lambda: False
    else:
        monkeypatch.delitem(sys.modules, "accelerate.state")
    assert len(list(sampler)) == 72
