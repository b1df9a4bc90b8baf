"""The two halves of a batch: no class in both, found without a loop over classes or a wait for the device.

Where the first halves of all blocks together share no class with the second halves of all blocks, those are
the halves. Otherwise the classes are dealt: the largest first, and equal ones in the order of their labels,
they go to the first half up to the cut where twice the samples so far come nearest to N. Both are computed,
and a mask chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Halves:
    """To which of two halves each sample of a batch belongs.

    Attributes:
        in_first: (N,) bool, True in the first half, as :func:`class_disjoint_halves` gives it.
            None if the batch is cut in the middle: the first half are its first N/2 samples, N even.

    Example:
        >>> Halves(class_disjoint_halves(torch.tensor([5, 3, 5, 3]))).split(torch.tensor([10, 11, 12, 13]))
        (tensor([11, 13]), tensor([10, 12]))
    """

    in_first: Tensor | None = None

    @property
    def are_two(self) -> bool:
        """Whether neither half is empty. Waits for the device unless cut in the middle."""
        return self.in_first is None or bool(self.in_first.any() & ~self.in_first.all())

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the first and of the second half. Waits for the device unless cut in the middle."""
        if self.in_first is None:
            middle = len(rows) // 2
            return rows[:middle], rows[middle:]
        return rows[self.in_first], rows[~self.in_first]

    def stack(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both halves, (2, n, C), and which rows are theirs, (2, n, 1), or None for all. No wait."""
        if self.in_first is None:
            return rows.unflatten(0, (2, -1)), None
        return rows.expand(2, -1, -1), torch.stack([self.in_first, ~self.in_first]).unsqueeze(-1)


CUT_IN_THE_MIDDLE = Halves()


def class_disjoint_halves(labels: Tensor, world_size: int = 1) -> Tensor:
    """Splits a batch into two halves that share no class.

    The first and the second half of the batch, or of its blocks, where those share none. Otherwise whole
    classes, dealt so that the sides balance; that depends on the labels alone, never on their order.

    Args:
        labels: (N,), of any dtype that sorts.
        world_size: of how many equally long blocks the batch consists, one from each process.

    Returns:
        (N,) bool, True for the first half. All True if there is one class only. Nothing waits for the device.

    Raises:
        ValueError: if there are fewer labels than blocks.

    Example:
        >>> class_disjoint_halves(torch.tensor([5, 3, 5, 3, 5]))
        tensor([ True, False,  True, False,  True])
    """
    num_samples = len(labels)
    if not 1 <= world_size <= num_samples:
        raise ValueError(
            f"world_size must lie between 1 and the number of labels, {num_samples}, got {world_size}"
        )
    position = torch.arange(num_samples, device=labels.device)
    sorted_labels, order = labels.sort(stable=True)
    is_new_class = torch.zeros_like(position)
    is_new_class[1:] = sorted_labels[1:] != sorted_labels[:-1]
    class_index = torch.empty_like(position).scatter_(0, order, is_new_class.cumsum(0))

    block_size = num_samples // world_size
    in_first = position % block_size < block_size // 2
    zeros = torch.zeros_like(position)
    first_sizes = zeros.scatter_add(0, class_index, in_first.long())
    class_sizes = zeros.scatter_add(0, class_index, torch.ones_like(position))
    is_shared = (first_sizes > 0) & (first_sizes < class_sizes)

    sizes_descending, by_size = class_sizes.sort(descending=True, stable=True)
    dealt = sizes_descending.cumsum(0)
    # Scaled so that the first of equally good cuts wins on every device. The worst is behind the last class.
    cut = ((2 * dealt - num_samples).abs() * num_samples + position).argmin()
    class_is_first = torch.zeros_like(in_first).scatter_(0, by_size, position <= cut)

    keeps_blocks = ~is_shared.any() & (num_samples == world_size * block_size) & (block_size % 2 == 0)
    return torch.where(keeps_blocks, in_first, class_is_first[class_index])
