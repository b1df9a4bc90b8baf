"""A user's own images, checked before anything is trained on them."""

import filecmp
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..datasets._images import open_image

#: Training, validation and test need two classes each.
FEWEST_CLASSES = 6
#: The side of the images that are trained on, where theirs are not smaller.
LARGEST_DEFAULT_SIZE = 224

_PARTS = ("train", "val", "test", "query", "gallery")
_SIZED_IMAGES = 100
_SHOWN = 5


def open_image_folders(folder: str | Path) -> dict[str, ImageFolder]:
    """Opens a folder of images, with the split that it has.

    Args:
        folder: holds one folder of images a class; or ``train``, perhaps ``val``, and ``test`` or ``query``
            and ``gallery``, each of which does.

    Returns:
        The data sets by the names of these folders, "all" for one without a split. Each has ``labels``, which
        are the same for the same class in all of them.

    Raises:
        ValueError: if a folder is not there, has too few classes or images, or a split shares classes.
    """
    folder = Path(folder)
    names = _parts_in(folder)
    if not names:
        parts = {"all": open_image_folder(folder)}
    else:
        _check_parts(folder, names)
        fewest_of_train = 2 if "val" in names else 4
        parts = {
            name: open_image_folder(
                folder / name,
                fewest_classes=fewest_of_train if name == "train" else 2,
                fewest_images=1 if name in ("query", "gallery") else 2,
            )
            for name in names
        }
        _check_disjoint(parts)
    names_of_classes = sorted({name for part in parts.values() for name in part.classes})
    labels = {name: label for label, name in enumerate(names_of_classes)}
    for part in parts.values():
        part.labels = [labels[part.classes[target]] for target in part.targets]
    return parts


def open_image_folder(
    folder: str | Path, fewest_classes: int = FEWEST_CLASSES, fewest_images: int = 2
) -> ImageFolder:
    """Opens a folder that holds one folder of images a class.

    Args:
        folder: the folder, laid out as torchvision's ``ImageFolder`` expects.
        fewest_classes: how many classes it must have.
        fewest_images: how many images each of them must have.

    Returns:
        The data set, which gives ``(image, label)``, images as 8-bit RGB.

    Raises:
        ValueError: if the folder is not there, has too few classes, or a class has too few images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"dataset: there is no folder {str(folder)!r}; give a folder with one folder of images a class"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(classes) < fewest_classes:
        raise ValueError(
            f"dataset: {str(folder)!r} has {len(classes)} class folder(s) ({_listed(classes)}); training, "
            f"validation and test share no class and need two each, so at least {fewest_classes}"
            f"{_holding_classes(classes, fewest_classes)}"
        )
    for class_folder in classes:
        num_images = sum(path.suffix.lower() in IMG_EXTENSIONS for path in class_folder.rglob("*"))
        if num_images < fewest_images:
            raise ValueError(
                f"dataset: the class folder {str(class_folder)!r} has {num_images} image(s); retrieval "
                f"needs at least {fewest_images} a class, in one of the formats {', '.join(IMG_EXTENSIONS)}"
            )
    return ImageFolder(str(folder), loader=open_image)


def default_image_size(dataset: ImageFolder) -> int:
    """224, or the median shorter side of the images where that is smaller, in pixels."""
    step = max(1, len(dataset.samples) // _SIZED_IMAGES)
    sides = []
    for path, _ in dataset.samples[::step]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # check_images names it
    return min(LARGEST_DEFAULT_SIZE, int(median(sides))) if sides else LARGEST_DEFAULT_SIZE


def check_images(datasets: Iterable[ImageFolder]) -> None:
    """Reads every image to its end, so that a broken one is found before training and not in its middle.

    Args:
        datasets: what :func:`open_image_folders` returned.

    Raises:
        ValueError: if images cannot be read; the message names them.
    """
    paths = [path for dataset in datasets for path, _ in dataset.samples]
    broken = []
    for path in tqdm(paths, desc="checking images", unit="image", leave=False):
        try:
            with Image.open(path) as image:
                if image.mode in ("RGB", "L", "RGBA", "P"):
                    # JPEG decodes at an eighth of its size many times faster, and still reads the whole file.
                    image.draft("RGB", (image.width // 8, image.height // 8))
                    image.load()
                    continue
            open_image(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{path!r} ({error})")
    if broken:
        raise ValueError(
            f"dataset: {len(broken)} image(s) cannot be read; mend or remove them: {', '.join(broken)}"
        )


def check_no_own_reference(parts: Mapping[str, ImageFolder]) -> None:
    """Refuses a gallery that holds a query itself, which would find it first.

    Args:
        parts: what :func:`open_image_folders` returned.

    Raises:
        ValueError: if a file of query and one of gallery are the same, byte for byte; the message names both.
    """
    if "query" not in parts:
        return
    gallery: dict[tuple[str, int], list[Path]] = {}
    for class_name, path in _by_class(parts["gallery"]):
        gallery.setdefault((class_name, path.stat().st_size), []).append(path)
    for class_name, path in _by_class(parts["query"]):
        for other in gallery.get((class_name, path.stat().st_size), ()):
            if filecmp.cmp(path, other, shallow=False):
                raise ValueError(
                    f"dataset: query and gallery must share no image, got {str(path)!r} and {str(other)!r}, "
                    "the same image; a query would find itself"
                )


def describe_unusual(datasets: Iterable[ImageFolder]) -> list[str]:
    """What of a user's folders may be a mistake, in sentences: files left out, and folders within classes."""
    left_out: list[str] = []
    nested: list[str] = []
    for dataset in datasets:
        root = Path(dataset.root)
        images = {path for path, _ in dataset.samples}
        left_out += sorted(
            str(path)
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".") and str(path) not in images
        )
        parents = {Path(path).parent for path in images}
        nested += sorted(
            {str(root / path.relative_to(root).parts[0]) for path in parents if path.parent != root}
        )
    sentences = []
    if left_out:
        sentences.append(
            f"Left out: {len(left_out)} file(s) outside of the class folders or in none of the formats "
            f"{', '.join(IMG_EXTENSIONS)}: {_few(left_out)}."
        )
    if nested:
        sentences.append(
            f"Each class folder is one class, with all images in folders below it: {_few(nested)} hold(s) "
            "such folders."
        )
    return sentences


def _by_class(dataset: ImageFolder) -> Iterator[tuple[str, Path]]:
    return ((dataset.classes[target], Path(path)) for path, target in dataset.samples)


def _parts_in(folder: Path) -> list[str]:
    """The parts of a split that a folder holds; none if its folders are classes.

    A class may be called "test": parts hold folders themselves, or there are no other folders than parts.
    """
    if not folder.is_dir():
        return []
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    parts = [name for name in _PARTS if name in folders]
    if folders == set(parts):
        return parts
    split = [name for name in parts if any(path.is_dir() for path in (folder / name).iterdir())]
    return split if "train" in split and set(split) - {"train", "val"} else []


def _check_parts(folder: Path, names: list[str]) -> None:
    evaluated = [name for name in names if name not in ("train", "val")]
    if "train" not in names or evaluated not in (["test"], ["query", "gallery"]):
        raise ValueError(
            f"dataset: {str(folder)!r} must have train/ and either test/ or query/ and gallery/ (and val/ if "
            f"you like), got {', '.join(f'{name}/' for name in names)}"
        )


def _check_disjoint(parts: dict[str, ImageFolder]) -> None:
    classes = {name: set(part.classes) for name, part in parts.items()}
    evaluated = set().union(*(classes[name] for name in classes if name not in ("train", "val")))
    pairs = [("train", "val"), ("train", "test"), ("val", "test")]
    groups = {"train": classes["train"], "val": classes.get("val", set()), "test": evaluated}
    for one, other in pairs:
        shared = groups[one] & groups[other]
        if shared and shared == groups[other]:
            raise ValueError(
                f"dataset: all classes of {other} are in {one} too, the split of closed-set retrieval. Here "
                "a network is measured on classes that it was not trained on: give the splits different "
                "classes, or one folder without a split"
            )
        if shared:
            raise ValueError(f"dataset: {one} and {other} must share no class, got {_few(shared)} in both")
    missing = classes.get("query", set()) - classes.get("gallery", set())
    if missing:
        raise ValueError(
            f"dataset: every class of query must be in gallery, got {_few(missing)} in query alone"
        )


def _holding_classes(folders: Iterable[Path], fewest_classes: int) -> str:
    """A question with a folder of a folder that may be the one that is meant."""
    for folder in folders:
        if sum(path.is_dir() for path in folder.iterdir()) >= fewest_classes:
            return f"; did you mean {str(folder)!r}?"
    return ""


def _few(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _listed(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders) or "none"
