from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import torch
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.trainers import BaseTrainer

from .atomic_file import atomic_file
from .loader_position import LoaderPosition
from .random_state import random_state, set_random_state
from .record_marks import mark_records, rewind_records

if TYPE_CHECKING:
    from record_keeper import RecordKeeper

State: TypeAlias = dict[str, Any]

# The attributes of a trainer that hold dictionaries of objects with a state_dict, as PML's HookContainer
# saves them.
_STATEFUL_ATTRIBUTES = ("models", "optimizers", "lr_schedulers", "loss_funcs", "mining_funcs")

# What a module carries from batch to batch outside of its state_dict stands in its class, as _carried_state.
# Those of PML do not say it; CrossBatchMemory has it in attributes and in buffers that change dtype.
_CARRIED_STATE_OF_PML = {
    CrossBatchMemory: ("embedding_memory", "label_memory", "queue_idx", "has_been_filled"),
}

# Learning rates and the like are often NumPy numbers. These build NumPy's numbers and arrays and run no other
# code, so torch.load may take them; object arrays are not among them.
_NUMPY_TYPES: list[Any] = [
    np.ndarray,
    np.dtype,
    np.float64(0).__reduce__()[0],
    np.zeros(0).__reduce__()[0],
    *sorted({type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}, key=str),
]
_AS_IT_WAS = "build the trainer as it was, or train in another folder"


class Checkpoint:
    """All that a trainer of pytorch-metric-learning needs to go on as if it had never been stopped.

    One file, replaced in one step, holds the state of the models, optimizers, learning rate schedulers,
    losses and miners, of every global random generator, of the sampler (see
    :class:`~pml_xbml.checkpoint.loader_position.LoaderPosition` for which samplers), and the places that the
    records have reached. A class that keeps more from batch to batch than its ``state_dict`` names it in
    ``_carried_state``, a tuple of attributes that are tensors or plain values.

    Args:
        path: the file. Each process of a distributed run needs its own.
        record_keeper: the record keeper of the run.
    """

    def __init__(self, path: str | os.PathLike[str], record_keeper: RecordKeeper) -> None:
        self.path = os.fspath(path)
        self.record_keeper = record_keeper
        self._loader_position = LoaderPosition()

    def exists(self) -> bool:
        """Whether there is a checkpoint to load."""
        return os.path.isfile(self.path)

    def count_epoch(self, trainer: BaseTrainer) -> None:
        """Takes note of the batches of an epoch; to be called once an epoch, when it is done."""
        self._loader_position.count_epoch(trainer)

    def save(self, trainer: BaseTrainer, epoch: int, is_finished: bool = False) -> None:
        """Saves the records and replaces the file. Follow it with :meth:`restart_loader` to train on.

        Args:
            trainer: a trainer between two epochs, or before the first.
            epoch: the number of epochs done.
            is_finished: whether training is not to go on from here.

        Raises:
            ValueError: if the trainer holds something that could be written but not read again. The former
                file stays.
        """
        state: State = {
            "epoch": epoch,
            "is_finished": is_finished,
            "records": mark_records(self.record_keeper),
            "sampler": self._loader_position.state_dict(trainer),
            "carried": {
                name: {attribute: getattr(module, attribute) for attribute in attributes}
                for name, module, attributes in _carrying_modules(trainer)
            },
        }
        for attribute in _STATEFUL_ATTRIBUTES:
            objects = getattr(trainer, attribute)
            state[attribute] = {name: _unwrapped(obj).state_dict() for name, obj in objects.items()}
        # Last: the first state of a sampler without a seed draws one.
        state["random"] = random_state()
        with atomic_file(self.path) as file:
            try:
                torch.save(state, file)
                file.flush()
                # Mapped, no tensor is read: the check costs milliseconds.
                _load(file.name, mmap=True)
            except Exception as error:
                _raise_on_unreadable_part(state, error)
                raise

    def restart_loader(self, trainer: BaseTrainer) -> None:
        """Makes training go on as a run does that is resumed from here: with a new iterator of the loader."""
        self._loader_position.restart(trainer)

    def load(self, trainer: BaseTrainer) -> tuple[int, bool]:
        """Puts the trainer and the records back to where :meth:`save` found them.

        Nothing may draw a random number between this and ``trainer.train``.

        Args:
            trainer: a trainer, built as the one that was saved.

        Returns:
            The number of epochs done, and whether training is finished.

        Raises:
            ValueError: if the file cannot be read, or the trainer has other models, optimizers, schedulers,
                losses or miners than the one that was saved, other options of these, or a sampler of another
                class.
        """
        state = self._read()
        self._check(trainer, state)
        for attribute in _STATEFUL_ATTRIBUTES:
            for name, obj in getattr(trainer, attribute).items():
                try:
                    _unwrapped(obj).load_state_dict(state[attribute][name])
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"the trainer's {attribute} {name!r} must fit {self.path!r}, got {error}; "
                        f"{_AS_IT_WAS}"
                    ) from error
        for name, module, attributes in _carrying_modules(trainer):
            for attribute in attributes:
                value = state["carried"][name][attribute]
                if isinstance(value, torch.Tensor):
                    value = value.to(getattr(module, attribute).device)
                setattr(module, attribute, value)
        rewind_records(self.record_keeper, state["records"])
        self._loader_position.load_state_dict(trainer, state["sampler"])
        set_random_state(state["random"])
        return state["epoch"], state["is_finished"]

    def _read(self) -> State:
        with open(self.path, "rb") as file:
            try:
                return _load(file)
            except Exception as error:
                size = os.path.getsize(self.path)
                raise ValueError(
                    f"the checkpoint must be a whole file, got {self.path!r} of {size} bytes, which cannot "
                    f"be read ({_first_line(error)}); put a copy of it in its place, or remove the run's "
                    "models and records to train from the beginning"
                ) from error

    def _check(self, trainer: BaseTrainer, state: State) -> None:
        for attribute in _STATEFUL_ATTRIBUTES:
            here, saved = sorted(getattr(trainer, attribute)), sorted(state[attribute])
            if here != saved:
                raise ValueError(
                    f"the trainer's {attribute} must be {saved}, as in {self.path!r}, got {here}; "
                    f"{_AS_IT_WAS}"
                )
        carried = {name: sorted(attributes) for name, _, attributes in _carrying_modules(trainer)}
        saved_carried = {name: sorted(attributes) for name, attributes in state["carried"].items()}
        if carried != saved_carried:
            raise ValueError(
                f"the trainer must carry {saved_carried} from batch to batch, as in {self.path!r}, got "
                f"{carried}; {_AS_IT_WAS}, collect_stats included"
            )
        self._loader_position.check(trainer, state["sampler"])


def _load(file: str | BinaryIO | io.BytesIO, mmap: bool = False) -> State:
    with torch.serialization.safe_globals(_NUMPY_TYPES):
        state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    return state


def _raise_on_unreadable_part(state: State, error: Exception) -> None:
    parts = {"sampler": state["sampler"]}
    parts |= {f"carried state of {name!r}": part for name, part in state["carried"].items()}
    for attribute in _STATEFUL_ATTRIBUTES:
        parts |= {f"{attribute} {name!r}": part for name, part in state[attribute].items()}
    for name, part in parts.items():
        file = io.BytesIO()
        try:
            torch.save(part, file)
        except Exception as reason:
            raise _unreadable(name, _first_line(reason)) from error
        file.seek(0)
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if unsafe:
            raise _unreadable(name, ", ".join(unsafe)) from error


def _unreadable(name: str, came: str) -> ValueError:
    return ValueError(
        f"the state of the trainer's {name} must consist of tensors, NumPy arrays, plain values and "
        f"containers of these, got {came}; nothing else can be read again safely: leave it out of the "
        "state_dict()"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _unwrapped(obj: Any) -> Any:
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return obj.module if isinstance(obj, parallel) else obj


def _carrying_modules(trainer: BaseTrainer) -> list[tuple[str, torch.nn.Module, list[str]]]:
    """The modules that carry something, by name, with the attributes that are there."""
    carrying = []
    for kind in ("models", "loss_funcs"):
        for name, root in getattr(trainer, kind).items():
            for module_name, module in _unwrapped(root).named_modules():
                attributes = [carried for carried in _carried_state(module) if hasattr(module, carried)]
                if attributes:
                    carrying.append((f"{kind}.{name}.{module_name}", module, attributes))
    return carrying


def _carried_state(module: torch.nn.Module) -> tuple[str, ...]:
    of_pml = (names for pml_type, names in _CARRIED_STATE_OF_PML.items() if isinstance(module, pml_type))
    own: tuple[str, ...] = getattr(module, "_carried_state", ())
    return own or next(of_pml, ())
