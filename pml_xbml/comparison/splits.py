"""Training, validation and test classes of a data set, none shared."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pytorch_metric_learning import datasets as pml_datasets
from torchvision import transforms
from torchvision.datasets import ImageFolder

from .. import datasets
from .class_subset import ClassSubset, LabeledDataset
from .image_folder import LARGEST_DEFAULT_SIZE, default_image_size, open_image_folders

#: Fixed, so that every seed, every variant and every user has the same classes in the same splits.
CLASS_SPLIT_SEED = 2307

# Data sets whose own training and test classes are kept.
_PML_DATASETS = {
    "cub": pml_datasets.CUB,
    "cars196": pml_datasets.Cars196,
    "sop": pml_datasets.StanfordOnlineProducts,
}
_WITH_ROOT = (*_PML_DATASETS, "inshop")
#: What a data set can be called; anything else is a folder.
NAMED_DATASETS = ("glyphs", *_WITH_ROOT)

# Mean and standard deviation of ImageNet's channels, which pretrained weights expect.
_NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

Transform = Callable[[Any], torch.Tensor]

#: Images, or the activations that frozen stages made of them.
Subset = TypeVar("Subset", bound=LabeledDataset, covariant=True)


@dataclass(frozen=True)
class Splits(Generic[Subset]):
    """The data of a comparison, in the shape that PML's testers take.

    Attributes:
        train: the training classes, labelled 0, 1, 2, …
        val: the validation classes.
        test: the test classes by split name: "test", or "query" and "gallery".
        test_query: name of the split whose images look for others of their class.
        test_reference: name of the split that they look in.
    """

    train: Subset
    val: Subset
    test: Mapping[str, Subset]
    test_query: str = "test"
    test_reference: str = "test"


def split_classes(labels: Iterable[int], num_first: int) -> tuple[list[int], list[int]]:
    """Deals classes to two sides at random, always the same way.

    Args:
        labels: the labels, repeated or not.
        num_first: how many classes the first side gets.

    Returns:
        The classes of the first side and the others, each in ascending order.

    Example:
        >>> first, second = split_classes([7, 7, 8, 9, 9, 9], num_first=2)
        >>> len(first), sorted(first + second)
        (2, [7, 8, 9])
    """
    shuffled = np.random.default_rng(CLASS_SPLIT_SEED).permutation(sorted(set(labels)))
    return sorted(shuffled[:num_first].tolist()), sorted(shuffled[num_first:].tolist())


def load_splits(
    dataset: str,
    root: str | None = None,
    train_classes: int | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Splits[ClassSubset]:
    """Loads a data set and deals its classes.

    Glyphs, CUB, Cars196, SOP and In-Shop come with test classes of their own, and so may a folder, see
    :func:`~pml_xbml.comparison.image_folder.open_image_folders`; of one without a split a quarter of the
    classes is for testing. Of the others ``train_classes`` are trained on, and the rest validates.

    Args:
        dataset: "glyphs", "cub", "cars196", "sop", "inshop", or a folder with one folder of images a class.
        root: the folder of CUB, Cars196, SOP or In-Shop.
        train_classes: number of classes to train on; None is three quarters of those not for testing.
        image_size: side of the images in pixels; None is 224, that of a folder's images where they are
            smaller, and 32 for glyphs.
        download: let PML download CUB, Cars196 or SOP into ``root``.

    Returns:
        The splits.

    Raises:
        ValueError: if there is no such data set or folder, it has too few classes, or it is glyphs or a
            folder and there is a ``root`` or ``download`` beside it.
    """
    if dataset not in _WITH_ROOT:
        for name, value in (("root", root), ("download", download)):
            if value:
                raise ValueError(
                    f"{name} must be left out with dataset={dataset!r}, got {value!r}: it is for "
                    f"{', '.join(_WITH_ROOT)}"
                )
    if dataset == "glyphs" and image_size is None:
        return _load_small_glyphs(train_classes)
    return _load_splits(dataset, root, train_classes, image_size, download)


@functools.lru_cache(maxsize=1)
def _load_small_glyphs(train_classes: int | None) -> Splits[ClassSubset]:
    """Half of a run would be transforms: all runs of a process, and those that it forks, share the images."""
    splits = _load_splits("glyphs", None, train_classes, None, False)
    for subset in (splits.train, splits.val, *splits.test.values()):
        subset.keep_in_memory()
    return splits


def _load_splits(
    dataset: str, root: str | None, train_classes: int | None, image_size: int | None, download: bool
) -> Splits[ClassSubset]:
    if dataset == "glyphs":
        train = datasets.Glyphs(split="train")
        tests = {"test": datasets.Glyphs(split="test")}
    elif dataset in _PML_DATASETS:
        make, folder = _PML_DATASETS[dataset], _folder_of(dataset, root, download)
        try:
            train, tests = make(folder, "train", download=download), {"test": make(folder, "test")}
        except FileNotFoundError as error:
            raise ValueError(
                f"root must be the folder of {dataset} as PML lays it out, got {folder!r}, which lacks "
                f"{error.filename!r}; or let it be downloaded"
            ) from error
    elif dataset == "inshop":
        folder = _folder_of(dataset, root, download)
        train = datasets.InShop(folder, "train", download=download)
        tests = {split: datasets.InShop(folder, split) for split in ("query", "gallery")}
    else:
        return _split_images(open_image_folders(dataset), dataset, train_classes, image_size)
    # Of all test splits together: an item has one label, also where the gallery lacks another.
    test_classes = sorted({label for test in tests.values() for label in test.labels})
    transforms_of = (
        _glyph_transforms(image_size) if dataset == "glyphs" else _photograph_transforms(image_size)
    )
    training_classes, validation_classes = _split_pool(train.labels, train_classes, dataset)
    return _splits(train, train, tests, training_classes, validation_classes, test_classes, transforms_of)


def _split_images(
    parts: dict[str, ImageFolder], dataset: str, train_classes: int | None, image_size: int | None
) -> Splits[ClassSubset]:
    """Of a user's folder: the split that it has, or one that is made of its classes."""
    train = parts["all"] if "all" in parts else parts["train"]
    transforms_of = _photograph_transforms(default_image_size(train) if image_size is None else image_size)
    if "all" in parts:
        pool = sorted(set(train.labels))
        test_classes, pool = split_classes(pool, max(2, len(pool) // 4))
        training, validation = _split_pool(pool, train_classes, dataset)
        return _splits(train, train, {"test": train}, training, validation, test_classes, transforms_of)
    tests = {name: part for name, part in parts.items() if name not in ("train", "val")}
    test_classes = sorted({label for test in tests.values() for label in test.labels})
    if "val" not in parts:
        training, validation = _split_pool(train.labels, train_classes, dataset)
        return _splits(train, train, tests, training, validation, test_classes, transforms_of)
    training = sorted(set(train.labels))
    if train_classes is not None:
        if not 2 <= train_classes <= len(training):
            raise ValueError(
                f"train_classes must lie between 2 and {len(training)}, the classes of train/, "
                f"got {train_classes}"
            )
        training, _ = split_classes(training, train_classes)
    validation = sorted(set(parts["val"].labels))
    return _splits(train, parts["val"], tests, training, validation, test_classes, transforms_of)


def _split_pool(
    labels: Iterable[int], train_classes: int | None, dataset: str
) -> tuple[list[int], list[int]]:
    """Training and validation classes."""
    pool = sorted(set(labels))
    num_train = min(len(pool) * 3 // 4, len(pool) - 2) if train_classes is None else train_classes
    if not 2 <= num_train <= len(pool) - 2:
        raise ValueError(
            f"train_classes must leave two classes for validation, so lie between 2 and {len(pool) - 2} "
            f"for {dataset}, got {num_train}"
        )
    return split_classes(pool, num_train)


def _splits(
    train: Any,
    val: Any,
    tests: Mapping[str, Any],
    training_classes: list[int],
    validation_classes: list[int],
    test_classes: list[int],
    transforms_of: tuple[Transform, Transform],
) -> Splits[ClassSubset]:
    for_training, for_evaluation = transforms_of
    query, reference = ("query", "gallery") if "query" in tests else ("test", "test")
    return Splits(
        train=ClassSubset(train, train.labels, training_classes, for_training),
        val=ClassSubset(val, val.labels, validation_classes, for_evaluation),
        test={
            name: ClassSubset(test, test.labels, test_classes, for_evaluation) for name, test in tests.items()
        },
        test_query=query,
        test_reference=reference,
    )


def _folder_of(dataset: str, root: str | None, download: bool) -> str:
    if root is None:
        raise ValueError(
            f"root: give the folder of {dataset}, where it is or, with download, where it shall be"
        )
    if not download and not Path(root).is_dir():
        raise ValueError(
            f"root: there is no folder {root!r}; give that of {dataset}, or let it be downloaded"
        )
    return root


def _to_rgb(image: Any) -> Any:
    return image.convert("RGB")


def _glyph_transforms(image_size: int | None) -> tuple[Transform, Transform]:
    resize = [] if image_size is None else [transforms.Resize((image_size, image_size))]
    transform = transforms.Compose([*resize, _to_rgb, transforms.ToTensor(), _NORMALIZE])
    return transform, transform


def _photograph_transforms(image_size: int | None) -> tuple[Transform, Transform]:
    """For training and for evaluation, as the metric-learning benchmarks have them."""
    image_size = LARGEST_DEFAULT_SIZE if image_size is None else image_size
    for_training = [
        transforms.RandomResizedCrop(image_size, scale=(0.16, 1)),
        transforms.RandomHorizontalFlip(),
    ]
    for_evaluation = [transforms.Resize(image_size * 256 // 224), transforms.CenterCrop(image_size)]
    to_tensor = [transforms.ToTensor(), _NORMALIZE]
    return (
        transforms.Compose([_to_rgb, *for_training, *to_tensor]),
        transforms.Compose([_to_rgb, *for_evaluation, *to_tensor]),
    )
