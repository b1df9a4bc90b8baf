from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch


class LabeledDataset(Protocol):
    """What runs are trained and measured on: items ``(images or activations, label)``.

    Attributes:
        classes: its classes, as many as there are labels.
        labels: the label of each item: 0, 1, 2, …
    """

    classes: list[int]
    labels: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class ClassSubset(torch.utils.data.Dataset[tuple[Any, int]]):
    """The images of some classes of a labelled data set, under a transform of its own.

    Args:
        dataset: gives ``(image, label)`` items; its own transform, if any, comes first.
        labels: the label of each item of ``dataset``.
        classes: the labels to keep. They become 0, 1, 2, … in ascending order, as losses with one proxy a
            class need them.
        transform: applied to the image.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset[tuple[Any, Any]],
        labels: Sequence[int],
        classes: Collection[int],
        transform: Callable[[Any], Any],
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.classes = sorted(classes)
        new_label = {label: index for index, label in enumerate(self.classes)}
        self.indices = [index for index, label in enumerate(labels) if label in new_label]
        self.labels = [new_label[labels[index]] for index in self.indices]
        self._kept: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._transformed(index) if self._kept is None else self._kept[index]
        return image, self.labels[index]

    def copies(self, index: int, num_copies: int) -> list[Any]:
        """Transforms an image several times, and reads it once."""
        if self._kept is not None:
            return [self._kept[index]] * num_copies
        image, _ = self.dataset[self.indices[index]]
        return [self.transform(image) for _ in range(num_copies)]

    def keep_in_memory(self) -> None:
        """Transforms all images once and for all: for small images, and transforms without chance."""
        self._kept = [self._transformed(index) for index in range(len(self))]

    def _transformed(self, index: int) -> Any:
        image, _ = self.dataset[self.indices[index]]
        return self.transform(image)
