import os
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.samplers import FixedSetOfTriplets, MPerClassSampler

from ..samplers import DisjointClassPairSampler
from .atomic_file import atomic_file
from .random_state import random_state, set_random_state
from .record_marks import mark_records, rewind_records

# The attributes of a trainer that hold dictionaries of objects with a state_dict, as PML's HookContainer
# saves them.
_STATEFUL_ATTRIBUTES = ("models", "optimizers", "lr_schedulers", "loss_funcs", "mining_funcs")

# What a module carries from batch to batch outside of its state_dict stands in its class, as _carried_state.
# Those of PML do not say it; CrossBatchMemory has it in attributes and in buffers that change dtype.
_CARRIED_STATE_OF_PML = {
    CrossBatchMemory: ("embedding_memory", "label_memory", "queue_idx", "has_been_filled"),
}

# What these samplers shuffle in place, so that a pass depends on the one before.
_SHUFFLED_ATTRIBUTES = {MPerClassSampler: "labels", FixedSetOfTriplets: "fixed_set_of_triplets"}


class Checkpoint:
    """All that a trainer of pytorch-metric-learning needs to go on as if it had never been stopped.

    One file, replaced in one step, holds the state of the models, optimizers, learning rate schedulers,
    losses and miners, of every random generator, of the sampler, and the places that the records have
    reached.

    Neither a data loader's iterator nor its workers have a state that could be saved. So a checkpoint also
    makes the trainer begin a new iterator, and an unbroken run reads the same batches as a resumed one,
    whatever the number of workers and whatever is drawn in them. A
    :class:`~pml_xbml.samplers.DisjointClassPairSampler` goes on from the batch that it had reached. Other
    samplers have no position and begin another pass; without ``iterations_per_epoch`` that is what they do
    after an epoch anyway.

    Args:
        path: The file. Each process of a distributed run needs its own.
        record_keeper: The ``record_keeper.RecordKeeper`` of the run.
    """

    def __init__(self, path: str | os.PathLike[str], record_keeper: Any) -> None:
        self.path = path
        self.record_keeper = record_keeper
        self._batches_consumed = 0
        self._first_batch = 0

    def exists(self) -> bool:
        """Whether there is a checkpoint to load."""
        return os.path.isfile(self.path)

    def count_epoch(self, trainer: Any) -> None:
        """Takes note of the batches of an epoch; to be called once an epoch, when it is done."""
        self._batches_consumed += trainer.iterations_per_epoch

    def save(self, trainer: Any, epoch: int, is_finished: bool = False) -> None:
        """Saves the records and replaces the file.

        Args:
            trainer: A trainer between two epochs, or before the first.
            epoch: The number of epochs done.
            is_finished: Whether training is not to go on from here.
        """
        state: dict[str, Any] = {
            "epoch": epoch,
            "is_finished": is_finished,
            "records": mark_records(self.record_keeper),
            "carried": {},
            "sampler": self._sampler_state(trainer),
        }
        for attribute in _STATEFUL_ATTRIBUTES:
            objects = getattr(trainer, attribute)
            state[attribute] = {name: _unwrapped(obj).state_dict() for name, obj in objects.items()}
        for name, module, attributes in _carrying_modules(trainer):
            state["carried"][name] = {attribute: getattr(module, attribute) for attribute in attributes}
        # Workers have read ahead: without this an unbroken run would go on from elsewhere than a resumed one.
        self._set_sampler_state(trainer, state["sampler"])
        # get_batch() asks the loader for a new iterator when this one is at its end.
        trainer.dataloader_iter = iter(())
        state["random"] = random_state()
        with atomic_file(self.path) as file:
            torch.save(state, file)

    def load(self, trainer: Any) -> tuple[int, bool]:
        """Puts the trainer and the records back to where :meth:`save` found them.

        Nothing may draw a random number between this and ``trainer.train``.

        Args:
            trainer: A trainer, built as the one that was saved.

        Returns:
            The number of epochs done, and whether training is finished.

        Raises:
            ValueError: if the trainer has other models, optimizers, schedulers, losses or miners than the
                one that was saved, other options of these, or a sampler of another kind.
        """
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        carried = {name: sorted(attributes) for name, _, attributes in _carrying_modules(trainer)}
        saved_carried = {name: sorted(attributes) for name, attributes in state["carried"].items()}
        for attribute in _STATEFUL_ATTRIBUTES:
            objects = getattr(trainer, attribute)
            if objects.keys() != state[attribute].keys():
                raise ValueError(
                    f"The trainer's {attribute} are {sorted(objects)} and those in "
                    f"{os.fspath(self.path)!r} are {sorted(state[attribute])}; build the trainer as it was, "
                    "or train in another folder."
                )
        if carried != saved_carried:
            raise ValueError(
                f"The trainer carries {carried} from batch to batch and {os.fspath(self.path)!r} has "
                f"{saved_carried}; build the trainer as it was, collect_stats included, or train in another "
                "folder."
            )
        if self._sampler_state(trainer).keys() != state["sampler"].keys():
            raise ValueError(
                f"The trainer's sampler is a {type(trainer.sampler).__name__} and that of "
                f"{os.fspath(self.path)!r} is a sampler of another kind; build the trainer as it was, or "
                "train in another folder."
            )
        for attribute in _STATEFUL_ATTRIBUTES:
            for name, obj in getattr(trainer, attribute).items():
                try:
                    _unwrapped(obj).load_state_dict(state[attribute][name])
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"{os.fspath(self.path)!r} does not fit the trainer's {attribute} {name!r}: {error}; "
                        "build the trainer as it was, or train in another folder."
                    ) from error
        for name, module, attributes in _carrying_modules(trainer):
            for attribute in attributes:
                value = state["carried"][name][attribute]
                if isinstance(value, torch.Tensor):
                    value = value.to(getattr(module, attribute).device)
                setattr(module, attribute, value)
        rewind_records(self.record_keeper, state["records"])
        self._set_sampler_state(trainer, state["sampler"])
        set_random_state(state["random"])
        return state["epoch"], state["is_finished"]

    def _sampler_state(self, trainer: Any) -> dict[str, Any]:
        sampler = trainer.sampler
        if isinstance(sampler, DisjointClassPairSampler):
            return sampler.state_dict(self._batches_of_newest_pass(len(sampler) // sampler.batch_size))
        return {
            attribute: np.asarray(getattr(sampler, attribute)).tolist()
            for shuffling_type, attribute in _SHUFFLED_ATTRIBUTES.items()
            if isinstance(sampler, shuffling_type)
        }

    def _set_sampler_state(self, trainer: Any, state: dict[str, Any]) -> None:
        sampler = trainer.sampler
        self._batches_consumed = 0
        if isinstance(sampler, DisjointClassPairSampler):
            sampler.load_state_dict(state)
            self._first_batch = state["batch"]
            return
        for attribute, value in state.items():
            is_array = isinstance(getattr(sampler, attribute), np.ndarray)
            setattr(sampler, attribute, np.asarray(value) if is_array else value)

    def _batches_of_newest_pass(self, batches_per_pass: int) -> int:
        """How many batches were read from the loader's newest iterator; an iterator ends with its pass."""
        batches_of_first_pass = batches_per_pass - self._first_batch
        if self._batches_consumed <= batches_of_first_pass:
            return self._batches_consumed
        return (self._batches_consumed - batches_of_first_pass - 1) % batches_per_pass + 1


def _unwrapped(obj: Any) -> Any:
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return obj.module if isinstance(obj, parallel) else obj


def _carrying_modules(trainer: Any) -> list[tuple[str, torch.nn.Module, list[str]]]:
    carrying = []
    for kind in ("models", "loss_funcs"):
        for name, root in getattr(trainer, kind).items():
            for module_name, module in _unwrapped(root).named_modules():
                attributes = [attribute for attribute in _carried_state(module) if hasattr(module, attribute)]
                if attributes:
                    carrying.append((f"{kind}.{name}.{module_name}", module, attributes))
    return carrying


def _carried_state(module: torch.nn.Module) -> tuple[str, ...]:
    of_pml = (
        attributes for pml_type, attributes in _CARRIED_STATE_OF_PML.items() if isinstance(module, pml_type)
    )
    return getattr(module, "_carried_state", ()) or next(of_pml, ())
