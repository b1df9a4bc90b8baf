"""A user's own images, checked before anything is trained on them."""

from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

#: Training, validation and test need two classes each.
FEWEST_CLASSES = 6


def open_image_folder(folder: str | Path) -> ImageFolder:
    """Open a folder that holds one folder of images a class.

    Args:
        folder: the folder, laid out as torchvision's ``ImageFolder`` expects.

    Returns:
        The data set, which gives ``(image, label)``.

    Raises:
        ValueError: if the folder is not there, has too few classes, or a class has fewer than two images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"dataset: there is no folder {str(folder)!r}; give a folder with one folder of images a class"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(classes) < FEWEST_CLASSES:
        raise ValueError(
            f"dataset: {str(folder)!r} has {len(classes)} class folder(s) ({_names(classes)}); training, "
            f"validation and test share no class and need two each, so at least {FEWEST_CLASSES}"
        )
    for class_folder in classes:
        num_images = sum(path.suffix.lower() in IMG_EXTENSIONS for path in class_folder.rglob("*"))
        if num_images < 2:
            raise ValueError(
                f"dataset: the class folder {str(class_folder)!r} has {num_images} image(s); retrieval "
                f"needs at least two a class, in one of the formats {', '.join(IMG_EXTENSIONS)}"
            )
    return ImageFolder(str(folder))


def check_images(dataset: ImageFolder) -> None:
    """Read every image to its end, so that a broken one is found before training and not in its middle.

    Args:
        dataset: what :func:`open_image_folder` returned.

    Raises:
        ValueError: if an image cannot be read; the message names it.
    """
    for path, _ in tqdm(dataset.samples, desc="checking images", unit="image", leave=False):
        try:
            with Image.open(path) as image:
                # JPEG decodes at an eighth of its size many times faster, and still reads all of the file.
                image.draft("RGB", (image.width // 8, image.height // 8))
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"dataset: the image {path!r} cannot be read ({error}); mend or remove it"
            ) from error


def _names(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders) or "none"
