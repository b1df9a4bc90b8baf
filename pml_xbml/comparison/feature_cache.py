"""The activations of frozen stages, computed once and kept in files that all runs of a comparison share."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.atomic_file import atomic_file
from .class_subset import ClassSubset
from .frozen_stages import FrozenStages
from .splits import Splits

CACHE_FOLDER = "frozen_stages"
#: Of the augmentations: every run sees the same copies.
AUGMENTATION_SEED = 2307
_IMAGES_PER_RUN = 64
_SETTINGS_FILE = "settings.json"


class CachedSubset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The activations of a split: (C, H, W) in half precision, of a copy that is drawn at each visit.

    Args:
        path: the file, (images, copies, C, H, W).
        subset: the images that it was computed from.
    """

    def __init__(self, path: Path, subset: ClassSubset) -> None:
        self.path = path
        self.classes, self.labels = subset.classes, subset.labels
        self._activations = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """The items of a batch, gathered at once."""
        num_copies = self._activations.shape[1]
        copies = torch.randint(num_copies, (len(indices),)).numpy() if num_copies > 1 else 0
        batch = torch.from_numpy(self._activations[np.asarray(indices), copies])
        return [(item, self.labels[index]) for item, index in zip(batch, indices, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_activations": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._activations = np.load(self.path, mmap_mode="r")


def cached_splits(
    stages: FrozenStages, splits: Splits[ClassSubset], copies: int, folder: Path
) -> Splits[CachedSubset]:
    """The splits with activations in place of images; what is missing is computed first.

    Killed in between, it goes on where it was. The files of other settings below ``folder`` are thrown away
    by :func:`remove_other_caches`, not here: runs of several seeds may have frozen weights of their own.

    Args:
        stages: what to compute.
        splits: the images. Of a training image ``copies`` augmented versions are computed, always the same.
        copies: see above.
        folder: of all caches of the comparison.

    Returns:
        The splits.

    Raises:
        OSError: if the disk has too little room; the message gives the sizes.
    """
    cache = cache_path(stages, splits, copies, folder)
    parts = {"train": (splits.train, copies), "val": (splits.val, 1)}
    parts |= {f"test_{name}": (subset, 1) for name, subset in splits.test.items()}
    if not (cache / _SETTINGS_FILE).exists():
        _make(stages, parts, cache)
        with atomic_file(cache / _SETTINGS_FILE) as file:
            file.write(json.dumps(_settings(stages, splits, copies), indent=2).encode())
    cached = {name: CachedSubset(cache / f"{name}.npy", subset) for name, (subset, _) in parts.items()}
    test = {name: cached[f"test_{name}"] for name in splits.test}
    return Splits(cached["train"], cached["val"], test, splits.test_query, splits.test_reference)


def cache_path(stages: FrozenStages, splits: Splits[ClassSubset], copies: int, folder: Path) -> Path:
    """The folder of these activations, named after all that they depend on."""
    settings = json.dumps(_settings(stages, splits, copies))
    return folder / hashlib.sha256(settings.encode()).hexdigest()[:16]


def remove_other_caches(folder: Path, keep: set[Path]) -> None:
    """Throws away the caches of settings that no run has any more."""
    if folder.is_dir():
        for cache in set(folder.iterdir()) - keep:
            shutil.rmtree(cache, ignore_errors=True)


def _settings(stages: FrozenStages, splits: Splits[ClassSubset], copies: int) -> dict[str, Any]:
    """All that the activations depend on."""
    data = hashlib.sha256()
    for subset in (splits.train, splits.val, *splits.test.values()):
        data.update(repr((subset.indices, subset.labels, str(subset.transform))).encode())
        for path, _ in getattr(subset.dataset, "samples", ()):
            status = os.stat(path)
            data.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return {
        "freeze": stages.name,
        "network": stages.state_hash(),
        "data": data.hexdigest(),
        "copies": copies,
        "augmentation_seed": AUGMENTATION_SEED,
    }


def _make(stages: FrozenStages, parts: dict[str, tuple[ClassSubset, int]], cache: Path) -> None:
    example, _ = parts["val"][0][0]
    shape = tuple(stages.compute(example.unsqueeze(0)).shape[1:])
    num_rows = {name: len(subset) * copies for name, (subset, copies) in parts.items()}
    num_bytes = sum(num_rows.values()) * int(np.prod(shape)) * 2
    cache.mkdir(parents=True, exist_ok=True)
    present = sum(path.stat().st_size for path in cache.glob("*.npy"))
    free = shutil.disk_usage(cache).free
    if num_bytes - present > free:
        raise OSError(errno.ENOSPC, _full_disk(num_bytes, free), str(cache))
    print(f"Frozen stages up to {stages.name}: {num_bytes / 1e9:.2f} GB in {cache}", flush=True)
    with tqdm(total=sum(num_rows.values()), desc="frozen stages", unit="image") as bar:
        for name, (subset, copies) in parts.items():
            _fill(stages, subset, copies, shape, cache / f"{name}.npy", bar)


def _fill(
    stages: FrozenStages, subset: ClassSubset, copies: int, shape: tuple[int, ...], path: Path, bar: Any
) -> None:
    progress = path.with_suffix(".progress")
    done = int(progress.read_text()) if progress.exists() and path.exists() else 0
    if done == 0:
        _allocate(path, (len(subset), copies, *shape))
    activations = open_memmap(path, mode="r+")
    bar.update(done * copies)
    step = max(1, _IMAGES_PER_RUN // copies)
    for first in range(done, len(subset), step):
        indices = range(first, min(first + step, len(subset)))
        images = torch.stack([copy for index in indices for copy in _copies(subset, index, copies)])
        computed = stages.compute(images.to(memory_format=torch.channels_last)).half().cpu()
        activations[first : first + len(indices)] = computed.unflatten(0, (-1, copies)).numpy()
        # The rows are on the disk before the file says so.
        activations.flush()
        with atomic_file(progress) as file:
            file.write(str(first + len(indices)).encode())
        bar.update(len(indices) * copies)


def _copies(subset: ClassSubset, index: int, copies: int) -> Iterator[Tensor]:
    """Augmented versions of an image, the same ones whenever and in whatever order they are asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(AUGMENTATION_SEED + index)
        yield from subset.copies(index, copies)


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    """A file with room for all, so that a full disk is an error here and no crash in the middle."""
    open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with open(path, "r+b") as file:
        size = path.stat().st_size
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            free = shutil.disk_usage(path.parent).free
            raise OSError(errno.ENOSPC, _full_disk(size, free), str(path)) from error


def _full_disk(num_bytes: int, free: int) -> str:
    return (
        f"the activations of the frozen stages must have {num_bytes / 1e9:.2f} GB on the disk, got "
        f"{free / 1e9:.2f} GB free; take fewer copies, smaller images, or another module to freeze up to"
    )
