from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

from ... import datasets


class InShop(ConcatDataset[Any]):
    """The plugin's InShop, all splits of it, in the folder ``in_shop`` of the data sets' root.

    For :class:`~pml_xbml.benchmarker.query_gallery_split_manager.QueryGallerySplitManager`.

    Args:
        root: the folder of all data sets.
        transform: Takes an RGB PIL image.
        download: Must be False, see :class:`pml_xbml.datasets.InShop`.

    Attributes:
        labels: the label of each image.
        parts: the indices of the images of "train", "query" and "gallery".

    Raises:
        FileNotFoundError: if the data set's folder is not there.
        ValueError: if ``download`` is true.
    """

    folder = "in_shop"

    def __init__(
        self, root: str, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        own_root = Path(root, self.folder)
        if not download and not own_root.is_dir():
            raise FileNotFoundError(
                f"The data set InShop is not there: {str(own_root)!r} is not a folder. It comes from "
                f"{datasets.InShop.HOMEPAGE}; put it there, or give the folder above it as --dataset_root."
            )
        splits = ("train", "query", "gallery")
        parts = [
            datasets.InShop(str(own_root), split, transform=transform, download=download) for split in splits
        ]
        super().__init__(parts)
        self.transform = transform
        self.labels = np.concatenate([part.labels for part in parts])
        ends = np.cumsum([len(part) for part in parts])
        self.parts = dict(zip(splits, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
