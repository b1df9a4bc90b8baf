import operator
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DistributedSampler

from .. import _pml
from ._integers import check_integer
from ._labels_by_class import group_by_class, label_array
from ._processes import raise_if_accelerate_shards, raise_if_made_before_the_group, replica
from ._shuffled_passes import Integers, derive_keys, draw_items

# Enough draws at once to make the cost of a numpy call small, few enough for the memory not to show.
_SAMPLES_AT_ONCE = 16384


@dataclass
class _Iteration:
    """How far an iteration over an epoch is."""

    samples: Iterator[int] = field(default_factory=lambda: iter(()))  # the newest that were made
    samples_made: int = 0
    is_exhausted: bool = False

    @property
    def samples_yielded(self) -> int:
        return self.samples_made - operator.length_hint(self.samples)


# A DistributedSampler, as it gives each process its own part: PyTorch Lightning leaves these in place.
class DisjointClassPairSampler(DistributedSampler[int]):
    """Batches made of two halves that have no class in common, with `m` samples a class.

    This is what cross-batch metric learning (Gurbuz and Alatan, ICIP 2023) fits and tests its prototypes
    on. Give it to a ``DataLoader`` with the same ``batch_size`` and with ``drop_last=True``, or to a trainer
    of pytorch-metric-learning. For ``DataLoader(dataset, batch_sampler=...)`` there is
    :class:`DisjointClassPairBatchSampler`.

    Every class is drawn before any class is drawn again, and inside a class every sample before any sample
    is drawn again; both go on from one whole epoch to the next. A class with fewer than `m` samples repeats
    them only as needed.

    With several replicas all of them make the same plan from `seed`, and each takes its own part of every
    step. All first halves together have no class in common with all second halves together. While
    `num_replicas * batch_size / m` is at most the number of classes, no class is in two replicas' batches
    of the same step. Otherwise every class of a step is drawn by the same number of replicas, the
    smallest that makes the step come out even, on the same side by all; they share samples of it only if it
    has fewer than they draw together.

    The samples of a batch are computed from the seed, the epoch and the batch's number in it alone. So
    nothing is stored but the samples ordered by class, memory does not grow with `length_before_new_iter`,
    and resuming costs nothing. Each iteration goes on to the next epoch by itself, from its start, also if
    the one before was left early.

    Lightning keeps the sampler as it is; make it in ``train_dataloader()``, when the process group is there.
    With several processes of Accelerate leave its loader out of ``accelerator.prepare()``. A
    ``StatefulDataLoader`` of torchdata saves and restores the position with its own state.

    Args:
        labels: the N class labels of the data set, 1-D: a tensor, an array or a sequence of numbers or
            strings, without NaN.
        m: samples of a class in a batch, at least 1.
        batch_size: a multiple of `2 * m`. At least `batch_size / m` classes are needed.
        length_before_new_iter: samples of an epoch, per replica, at least `batch_size`. It is rounded down
            to a multiple of `batch_size`.
        seed: what the batches follow from, 0 <= seed < 2**64. If None, the first use draws one from
            `pytorch_metric_learning.utils.common_functions.NUMPY_RANDOM`.
        num_replicas: number of processes that train together. If None, the size of the default process
            group, or 1 if there is none.
        rank: number of this process, 0 <= rank < num_replicas. If None, the rank in the default process
            group, or 0 if there is none.

    Attributes:
        epoch: the epoch of the newest iteration, or of the coming one if none has begun.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range, labels are missing, or there are several replicas
            without a seed.

    Example:
        >>> from pml_xbml.samplers import DisjointClassPairSampler
        >>> labels = [0, 0, 1, 1, 2, 2, 3, 3]
        >>> sampler = DisjointClassPairSampler(labels, m=2, batch_size=4, length_before_new_iter=8, seed=0)
        >>> indices = list(sampler)
        >>> sorted(indices)
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> first_half, second_half = indices[:2], indices[2:4]
        >>> {labels[i] for i in first_half} & {labels[i] for i in second_half}
        set()
    """

    seed: int | None  # type: ignore[assignment]  # DistributedSampler's is never None.

    def __init__(
        self,
        labels: ArrayLike | torch.Tensor,
        m: int,
        batch_size: int,
        length_before_new_iter: int = 100000,
        seed: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        # DistributedSampler's own constructor would count the samples of a data set.
        self.m_per_class = check_integer("m", m, minimum=1)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        if self.batch_size % (2 * self.m_per_class) != 0:
            raise ValueError(
                f"batch_size must be a multiple of 2 * m = {2 * self.m_per_class}, so that each half holds "
                f"m = {self.m_per_class} samples of each of its classes, got {self.batch_size}"
            )
        length = check_integer("length_before_new_iter", length_before_new_iter, minimum=1)
        if length < self.batch_size:
            raise ValueError(
                f"length_before_new_iter must be at least batch_size = {self.batch_size}, got {length}"
            )
        self.list_size = length - length % self.batch_size
        self.num_replicas, self.rank = replica(num_replicas, rank)
        self._is_for_the_group = num_replicas is None
        check_integer("samples of an epoch of all replicas", length * self.num_replicas, 1, below=2**62)
        self.seed = None if seed is None else check_integer("seed", seed, minimum=0, below=2**64)
        if self.seed is None and self.num_replicas > 1:
            raise ValueError(
                f"seed must be an integer, the same for all {self.num_replicas} replicas' one plan, got None"
            )

        self._indices, self._class_starts = group_by_class(label_array(labels))
        self._class_sizes = np.diff(self._class_starts)
        self._labels_checksum = zlib.crc32(self._class_starts.data, zlib.crc32(self._indices.data))
        self.num_classes = len(self._class_sizes)
        classes_per_batch = self.batch_size // self.m_per_class
        if self.num_classes < classes_per_batch:
            raise ValueError(
                f"labels must hold at least batch_size / m = {self.batch_size} / {self.m_per_class} = "
                f"{classes_per_batch} classes, got {self.num_classes}; use a smaller batch_size or a larger m"
            )
        self._share_classes(classes_per_batch // 2)

        self.epoch = 0
        self._first_batch = 0
        self._newest: _Iteration | None = None
        self._plan_seed = self.seed

    def _share_classes(self, classes_per_half: int) -> None:
        """Lays out a step: which of its classes this replica takes, and which of their samples."""
        places_per_side = self.num_replicas * classes_per_half
        self._replicas_per_class = next(
            sharing
            for sharing in range(1, self.num_replicas + 1)
            if places_per_side % sharing == 0 and 2 * (places_per_side // sharing) <= self.num_classes
        )
        classes_per_side = places_per_side // self._replicas_per_class
        self._classes_per_step = 2 * classes_per_side
        # Going round the classes of a side, consecutive places of a replica never meet a class twice.
        places = self.rank * classes_per_half + np.arange(classes_per_half)
        own_classes = places % classes_per_side
        self._own_classes = np.concatenate([own_classes, classes_per_side + own_classes])
        self._own_shares = np.tile(places // classes_per_side, 2)

    def __len__(self) -> int:
        """Samples of an epoch of this replica, also while the rest of an interrupted one is to come."""
        return self.list_size

    def __iter__(self) -> Iterator[int]:
        # A generator, so that an iteration begins with its first sample: loaders call `iter` more often.
        if self._is_for_the_group:
            raise_if_made_before_the_group(self.num_replicas)
        raise_if_accelerate_shards(self, self.num_replicas, samples_per_cut=2 * self.m_per_class)
        if self._newest is not None:
            self.epoch, self._first_batch = self.epoch + 1, 0
        self._newest = iteration = _Iteration()
        batches_per_epoch = self.list_size // self.batch_size
        epoch_start, seed = self.epoch * batches_per_epoch, self._current_seed()
        samples_per_step = self._classes_per_step + self.batch_size * self._replicas_per_class
        steps_at_once = max(1, _SAMPLES_AT_ONCE // samples_per_step)
        for batch in range(self._first_batch, batches_per_epoch, steps_at_once):
            stop = min(batch + steps_at_once, batches_per_epoch)
            samples = self._samples(seed, np.arange(epoch_start + batch, epoch_start + stop)).tolist()
            iteration.samples, iteration.samples_made = iter(samples), iteration.samples_made + len(samples)
            yield from iteration.samples
        iteration.is_exhausted = True

    def _samples(self, seed: int, steps: Integers) -> Integers:
        """The sample indices (S * batch_size,) of this replica in the S steps, counted from epoch 0."""
        seed_key = np.array([seed], dtype=np.uint64)
        step_keys = np.broadcast_to(derive_keys(seed_key, np.array([0])), steps.shape)
        num_classes = np.full(steps.shape, self.num_classes)
        step_classes = draw_items(step_keys, num_classes, steps, self._classes_per_step)
        classes = step_classes[:, self._own_classes].ravel()
        # A class is drawn once in every pass over the classes: the pass counts the draws of the class.
        draws = (steps[:, None] * self._classes_per_step + self._own_classes).ravel() // self.num_classes
        samples_per_draw = self._replicas_per_class * self.m_per_class
        samples = draw_items(
            derive_keys(seed_key, classes + 1), self._class_sizes[classes], draws, samples_per_draw
        )
        shares = np.tile(self._own_shares, len(steps))
        own = samples.reshape(-1, self._replicas_per_class, self.m_per_class)[np.arange(len(shares)), shares]
        indices: Integers = self._indices[self._class_starts[classes][:, None] + own].ravel()
        return indices

    def _current_seed(self) -> int:
        if self._plan_seed is None:
            self._plan_seed = int.from_bytes(_pml.NUMPY_RANDOM.bytes(8), "little")
        return self._plan_seed

    def set_epoch(self, epoch: int) -> None:
        """Makes `epoch` the next iteration's, as `torch.utils.data.DistributedSampler` does.

        The epoch that `load_state_dict` has just restored goes on where it was interrupted.

        Args:
            epoch: at least 0.
        """
        epoch = self._checked_epoch(epoch)
        if self._newest is not None or epoch != self.epoch:
            self.epoch, self._first_batch, self._newest = epoch, 0, None

    def _checked_epoch(self, epoch: int) -> int:
        epoch = check_integer("epoch", epoch, minimum=0)
        if (epoch + 1) * self.list_size * self.num_replicas > 2**62:
            raise ValueError(
                f"epoch must be below {2**62 // (self.list_size * self.num_replicas)}, as far as 64-bit "
                f"integers count samples, got {epoch}"
            )
        return epoch

    def batches_for_every_sample(self) -> int:
        """How many batches, per replica, it takes from the start to draw every sample at least once."""
        draws = -(-int(self._class_sizes.max()) // (self._replicas_per_class * self.m_per_class))
        return -(-self.num_classes * draws // self._classes_per_step)

    def state_dict(self, batches_consumed: int | None = None) -> dict[str, Any]:
        """The position after the batches that the training has consumed, to be given to `load_state_dict`.

        Args:
            batches_consumed: batches consumed since the newest iteration began, the rest of an interrupted
                epoch included: count from 0 with every new iterator of the loader. The workers of a
                ``DataLoader`` run ahead of the training, so the sampler cannot know this number. If None, the
                batches that were drawn from it: right without workers, and for the ``StatefulDataLoader`` of
                torchdata, which keeps a state for each batch that is on its way.

        Returns:
            A small dictionary of integers, the same on every replica.

        Raises:
            ValueError: if the newest iteration does not have so many batches, or ``batches_consumed`` is None
                and a batch was drawn in part.
        """
        batches_per_epoch = self.list_size // self.batch_size
        remaining = batches_per_epoch - self._first_batch
        if batches_consumed is None:
            batches_consumed, is_at_end = self._batches_drawn()
        else:
            batches_consumed, is_at_end = check_integer("batches_consumed", batches_consumed, minimum=0), True
        if batches_consumed > remaining:
            raise ValueError(
                f"batches_consumed must be at most {remaining}, as many as the newest iteration has, got "
                f"{batches_consumed}"
            )
        epoch, batch = self.epoch, self._first_batch + batches_consumed
        if batch == batches_per_epoch and is_at_end:
            epoch, batch = epoch + 1, 0
        return {
            "seed": self._current_seed(),
            "epoch": epoch,
            "batch": batch,
            "configuration": self._configuration(),
        }

    def _batches_drawn(self) -> tuple[int, bool]:
        """The batches drawn in the newest iteration, and whether it was left at its end."""
        if self._newest is None:
            return 0, False
        batches, rest = divmod(self._newest.samples_yielded, self.batch_size)
        if rest:
            raise ValueError(
                f"the samples drawn must be whole batches of {self.batch_size}, got {batches} batches and "
                f"{rest} samples: give the loader batch_size={self.batch_size}"
            )
        return batches, self._newest.is_exhausted

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a position: the next iteration gives the rest of the interrupted epoch.

        Later iterations are those of an unbroken run. `len` stays that of a whole epoch.

        Args:
            state_dict: what `state_dict` returned on any replica of a sampler of the same configuration.

        Raises:
            ValueError: if the state is of a sampler of another configuration, or of another class.
        """
        expected = {"seed", "epoch", "batch", "configuration"}
        if not isinstance(state_dict, Mapping) or set(state_dict) != expected:
            raise ValueError(f"state_dict must be what state_dict() returned, got {state_dict!r:.200}")
        here, there = self._configuration(), state_dict["configuration"]
        if self.seed is not None:  # a seed that was drawn is the state's to replace
            here, there = here | {"seed": self.seed}, there | {"seed": state_dict["seed"]}
        differences = [
            f"{name} is {there.get(name)} there, {here[name]} here"
            for name in here
            if there.get(name) != here[name]
        ]
        if differences:
            raise ValueError(
                "state_dict must be of a sampler of this configuration, got " + "; ".join(differences)
            )
        epoch = self._checked_epoch(state_dict["epoch"])
        # A loader may be saved between the last batch of an epoch and the epoch's end.
        batches = self.list_size // self.batch_size + 1
        batch = check_integer("batch in state_dict", state_dict["batch"], minimum=0, below=batches)
        self._plan_seed = check_integer("seed in state_dict", state_dict["seed"], minimum=0, below=2**64)
        self.epoch, self._first_batch, self._newest = epoch, batch, None

    def _configuration(self) -> dict[str, int]:
        return {
            "m": self.m_per_class,
            "batch_size": self.batch_size,
            "samples_per_epoch": self.list_size,
            "num_replicas": self.num_replicas,
            "num_samples": len(self._indices),
            "num_classes": self.num_classes,
            "labels_checksum": self._labels_checksum,
        }
