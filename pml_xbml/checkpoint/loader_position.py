"""Where a trainer's sampler and loader stand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from pytorch_metric_learning import samplers as pml_samplers
from pytorch_metric_learning.trainers import BaseTrainer
from pytorch_metric_learning.utils import common_functions as c_f
from torch.utils import data

from ..samplers import DisjointClassPairSampler
from .random_state import Generator, generator_state, set_generator_state

Sampler: TypeAlias = data.Sampler[Any]

# What these samplers keep from one pass to the next, apart from generators.
_KEPT_ATTRIBUTES: dict[type[Sampler], tuple[str, ...]] = {
    data.BatchSampler: (),
    data.DistributedSampler: ("epoch",),
    data.RandomSampler: (),
    data.SequentialSampler: (),
    data.SubsetRandomSampler: (),
    data.WeightedRandomSampler: (),
    pml_samplers.FixedSetOfTriplets: ("fixed_set_of_triplets",),
    pml_samplers.HierarchicalSampler: (),
    pml_samplers.MPerClassSampler: ("labels",),
    pml_samplers.TuplesToWeightsSampler: (),
}
_GENERATOR_TYPES = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class LoaderPosition:
    """Where the sampler of a trainer stands, as something that can be saved.

    A loader's iterator and its workers have no state that could be saved. So training goes on with a new
    iterator after each save (:meth:`restart`), and an unbroken run reads the same batches as a resumed one,
    whatever the number of workers and whatever is drawn in them:

    - a :class:`~pml_xbml.samplers.DisjointClassPairSampler` goes on from the batch that training has reached;
    - a sampler with ``state_dict`` and ``load_state_dict`` goes on from the state that it tells;
    - the samplers of PyTorch and of pytorch-metric-learning have no position and begin another pass, with
      their own random generators where they were. Without ``iterations_per_epoch`` that is what they do after
      an epoch anyway.

    Of other samplers the random generators among their attributes are kept, and a warning says so.
    """

    def __init__(self) -> None:
        self._batches_consumed = 0
        self._first_batch = 0
        self._has_warned = False

    def count_epoch(self, trainer: BaseTrainer) -> None:
        """Takes note of the batches of an epoch; to be called once an epoch, when it is done."""
        self._batches_consumed += trainer.iterations_per_epoch

    def state_dict(self, trainer: BaseTrainer) -> list[dict[str, Any]]:
        """The position of the trainer's sampler, and of those in it.

        Returns:
            A dictionary for each sampler, of plain values and tensors.
        """
        self._warn_of_what_is_not_kept(trainer)
        return [self._state_of(sampler) for sampler in _nested_samplers(trainer.sampler)]

    def check(self, trainer: BaseTrainer, state: list[dict[str, Any]]) -> None:
        """Raises ValueError if a state is of samplers of other classes than the trainer's."""
        saved = [sampler_state["class"] for sampler_state in state]
        here = [type(sampler).__name__ for sampler in _nested_samplers(trainer.sampler)]
        if here != saved:
            raise ValueError(
                f"the trainer's sampler must be {_name(saved)}, as in the checkpoint, got {_name(here)}; "
                "build the trainer as it was, or train in another folder"
            )

    def load_state_dict(self, trainer: BaseTrainer, state: list[dict[str, Any]]) -> None:
        """Puts the trainer's sampler to a position that :meth:`state_dict` returned."""
        self.check(trainer, state)
        self._batches_consumed = 0
        for sampler, sampler_state in zip(_nested_samplers(trainer.sampler), state, strict=True):
            if isinstance(sampler, DisjointClassPairSampler):
                self._first_batch = sampler_state["state_dict"]["batch"]
            if "state_dict" in sampler_state:
                sampler.load_state_dict(sampler_state["state_dict"])  # type: ignore[attr-defined]
            for name, value in sampler_state["attributes"].items():
                is_array = isinstance(getattr(sampler, name), np.ndarray)
                setattr(sampler, name, np.asarray(value) if is_array else value)
            generators = _generators(sampler)
            for name, generator_value in sampler_state["generators"].items():
                set_generator_state(generators[name], generator_value)

    def restart(self, trainer: BaseTrainer) -> None:
        """Makes training go on from the present position with a new iterator.

        Workers have read ahead: without this an unbroken run would go on from elsewhere than a resumed one.
        """
        self.load_state_dict(trainer, self.state_dict(trainer))
        # PML's get_batch() asks the loader for a new iterator when this one is at its end.
        trainer.dataloader_iter = iter(())

    def _state_of(self, sampler: Sampler) -> dict[str, Any]:
        state: dict[str, Any] = {
            "class": type(sampler).__name__,
            # Plain values: NumPy of another version reads them too.
            "attributes": {
                name: np.asarray(getattr(sampler, name)).tolist() for name in _kept_attributes(sampler) or ()
            },
            "generators": {name: generator_state(value) for name, value in _generators(sampler).items()},
        }
        if isinstance(sampler, DisjointClassPairSampler):
            consumed = self._batches_of_newest_pass(len(sampler) // sampler.batch_size)
            state["state_dict"] = sampler.state_dict(consumed)
        elif _is_stateful(sampler):
            state["state_dict"] = sampler.state_dict()  # type: ignore[attr-defined]
        return state

    def _batches_of_newest_pass(self, batches_per_pass: int) -> int:
        """How many batches were read from the loader's newest iterator; an iterator ends with its pass."""
        batches_of_first_pass = batches_per_pass - self._first_batch
        if self._batches_consumed <= batches_of_first_pass:
            return self._batches_consumed
        return (self._batches_consumed - batches_of_first_pass - 1) % batches_per_pass + 1

    def _warn_of_what_is_not_kept(self, trainer: BaseTrainer) -> None:
        if self._has_warned:
            return
        for sampler in _nested_samplers(trainer.sampler):
            if _kept_attributes(sampler) is None:
                c_f.LOGGER.warning(
                    "Of %s the checkpoint keeps the random generators and nothing else. If it keeps more "
                    "from one pass to the next, a resumed run reads other batches than an unbroken one: give "
                    "it state_dict() and load_state_dict().",
                    type(sampler).__name__,
                )
                self._has_warned = True
        generator = getattr(getattr(trainer, "dataloader", None), "generator", None)
        kept = [g for sampler in _nested_samplers(trainer.sampler) for g in _generators(sampler).values()]
        if generator is not None and all(generator is not other for other in kept):
            c_f.LOGGER.warning(
                "The trainer's loader has a random generator of its own, which the checkpoint does not keep: "
                "a resumed run reads other batches than an unbroken one. Give the generator to the sampler "
                "too, or leave it out."
            )
            self._has_warned = True


def _nested_samplers(sampler: Sampler | None) -> Iterator[Sampler]:
    """A sampler and the one that it draws from, as a batch sampler does."""
    while isinstance(sampler, data.Sampler):
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def _is_stateful(sampler: Sampler) -> bool:
    return hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict")


def _kept_attributes(sampler: Sampler) -> tuple[str, ...] | None:
    """None for a sampler that is not known; nothing of one that tells its state itself."""
    if _is_stateful(sampler):
        return ()
    # A subclass that draws in a way of its own may keep something for it.
    known = (
        names
        for known_type, names in _KEPT_ATTRIBUTES.items()
        if isinstance(sampler, known_type) and type(sampler).__iter__ is known_type.__iter__
    )
    return next(known, None)


def _generators(sampler: Sampler) -> dict[str, Generator]:
    return {name: value for name, value in vars(sampler).items() if isinstance(value, _GENERATOR_TYPES)}


def _name(classes: list[str]) -> str:
    return f"a {' of a '.join(classes)}" if classes else "None"
