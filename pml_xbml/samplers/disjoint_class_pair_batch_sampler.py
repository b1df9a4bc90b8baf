from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from ._integers import check_integer
from .disjoint_class_pair_sampler import DisjointClassPairSampler


class DisjointClassPairBatchSampler(Sampler[list[int]]):
    """:class:`DisjointClassPairSampler` by batches, for ``DataLoader(dataset, batch_sampler=...)``.

    The batches are those of a :class:`DisjointClassPairSampler` with the same arguments, which says how they
    are made. The arguments are those of ``MPerClassSampler`` in version 3 of pytorch-metric-learning.

    PyTorch Lightning has to leave it in place: in a training of several processes set
    ``Trainer(use_distributed_sampler=False)``.

    Args:
        labels: the N class labels of the data set, 1-D: a tensor, an array or a sequence of numbers or
            strings, without NaN.
        m: samples of a class in a batch, at least 1.
        batch_size: a multiple of ``2 * m``. At least ``batch_size / m`` classes are needed.
        num_batches: batches of an epoch, per replica, at least 1. If None, as many as it takes to draw every
            sample at least once.
        seed: what the batches follow from, 0 <= seed < 2**64. If None, the first use draws one from
            ``pytorch_metric_learning.utils.common_functions.NUMPY_RANDOM``.
        num_replicas: number of processes that train together. If None, the size of the default process
            group, or 1 if there is none.
        rank: number of this process, 0 <= rank < num_replicas. If None, the rank in the default process
            group, or 0 if there is none.

    Attributes:
        sampler: the :class:`DisjointClassPairSampler` that gives the samples.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range, labels are missing, or there are several replicas
            without a seed.

    Example:
        >>> from pml_xbml.samplers import DisjointClassPairBatchSampler
        >>> labels = torch.arange(8) // 2
        >>> batch_sampler = DisjointClassPairBatchSampler(labels, m=2, batch_size=4, seed=0)
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(8, 3), labels)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_sampler=batch_sampler)
        >>> len(loader)
        2
        >>> [label.reshape(2, 2).unique(dim=1).shape for _, label in loader]
        [torch.Size([2, 1]), torch.Size([2, 1])]
    """

    def __init__(
        self,
        labels: ArrayLike | torch.Tensor,
        m: int,
        batch_size: int,
        num_batches: int | None = None,
        seed: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        batch_size = check_integer("batch_size", batch_size, minimum=1)
        length = batch_size * (1 if num_batches is None else check_integer("num_batches", num_batches, 1))
        self.sampler = DisjointClassPairSampler(labels, m, batch_size, length, seed, num_replicas, rank)
        if num_batches is None:
            self.sampler.list_size = batch_size * self.sampler.batches_for_every_sample()

    @property
    def batch_size(self) -> int:
        """Samples of a batch, of this replica."""
        return self.sampler.batch_size

    def __len__(self) -> int:
        """Batches of an epoch of this replica, also while the rest of an interrupted one is to come."""
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`DisjointClassPairSampler.set_epoch`."""
        self.sampler.set_epoch(epoch)

    def state_dict(self, batches_consumed: int | None = None) -> dict[str, Any]:
        """See :meth:`DisjointClassPairSampler.state_dict`."""
        return self.sampler.state_dict(batches_consumed)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See :meth:`DisjointClassPairSampler.load_state_dict`."""
        self.sampler.load_state_dict(state_dict)
