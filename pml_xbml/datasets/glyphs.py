import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .. import _pml

# The other fonts that matplotlib ships draw placeholders (LastResort) or map codepoints to other
# characters than Unicode does (the TeX fonts, cm*).
FACES = ("DejaVu", "STIX")
# Letters, numbers and punctuation. Symbols are mostly copied from face to face: of the 646 that 12 faces
# have, 16 have 12 images that differ.
CATEGORIES = ("L", "N", "P")
MIN_IMAGES_PER_CLASS = 12

IMAGE_SIZE = 32
EM_SIZE = 24
# Drawn larger and averaged down, a glyph is centered to a quarter of a pixel, and hinting hardly shows.
SUPERSAMPLING = 4

# In units of `_relative_differences`. In one font, Latin A and Cyrillic А are up to 0.020 apart, Latin T and
# Cyrillic Т 0.046. A few bold letters that differ by a small accent are as close (À and Á 0.047, Ò and Ó
# 0.032) and go with them; close to 1,000 characters remain.
SAME_LOOK = 0.05

UInt8Array = npt.NDArray[np.uint8]


class Glyphs(_pml.BaseDataset):
    """Characters in the fonts that matplotlib ships: a class is a character, its images are the fonts.

    A data set for zero-shot retrieval that is drawn in seconds and needs no download and no folder. Every
    class has at least 12 images that differ visibly; no two classes look the same in a font that has both
    (Latin A stands for Greek Α and Cyrillic А too). Train and test have half of the classes each, with no
    character in common. The side of a character depends on its codepoint alone.

    Images are 32 x 32 pixels, grayscale (PIL mode "L"), light on dark, at one scale, centered. For networks
    that expect three channels, put ``torchvision.transforms.Grayscale(3)`` first in ``transform``.

    The images are drawn once a process, and shared by all objects of this class.

    Args:
        split: "train", "test" or "train+test".
        transform: takes a PIL image and returns what stands for it in the items.
        target_transform: takes the label and returns what stands for it in the items.

    Attributes:
        labels: the label of each image, an int. Those of "train" are 0 .. T-1, those of "test" T .. 2T-1,
            and "train+test" has them all.
        characters: the character of each label of "train+test": ``characters[label]``.
        fonts: the file name of the font of each image.

    Raises:
        ValueError: if there is no such split.
        FileNotFoundError: if the installed matplotlib comes without the fonts.

    Example:
        >>> from pml_xbml.datasets import Glyphs
        >>> train = Glyphs(split="train")
        >>> image, label = train[0]
        >>> image.size, image.mode, label
        ((32, 32), 'L', 0)
        >>> set(train.labels).isdisjoint(Glyphs(split="test").labels)
        True
    """

    def __init__(
        self,
        split: str = "train+test",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        if split not in self.get_available_splits():
            raise ValueError(f"split is {split!r}; it must be one of {self.get_available_splits()}")
        super().__init__(_fonts_folder(), split, transform, target_transform)

    def generate_split(self) -> None:
        drawn = _draw_classes(self.root)
        num_train_images = int(np.searchsorted(drawn.labels, len(drawn.characters) // 2))
        chosen = {
            "train": slice(None, num_train_images),
            "test": slice(num_train_images, None),
            "train+test": slice(None),
        }[self.split]
        self.images = drawn.images[chosen]
        self.labels = drawn.labels[chosen].tolist()
        self.fonts = drawn.fonts[chosen]
        self.characters = drawn.characters

    def download_and_remove(self) -> None:
        raise NotImplementedError("Glyphs are drawn; there is nothing to download")

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        img: Any = Image.fromarray(self.images[idx])
        label: Any = self.labels[idx]
        if self.transform is not None:
            img = self.transform(img)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return img, label


def _relative_differences(images: UInt8Array) -> npt.NDArray[np.float32]:
    """The squared difference of two images as a share of the brighter one's energy, for all pairs.

        d(a, b) = ‖a - b‖² / max(‖a‖², ‖b‖²)

    Args:
        images: (n, IMAGE_SIZE, IMAGE_SIZE).

    Returns:
        (n, n), from 0 (identical) to about 1 (nothing in common); 0 for two blank images.
    """
    pixels = images.reshape(len(images), IMAGE_SIZE**2).astype(np.float32)
    energies = (pixels**2).sum(1)
    squared_differences = (energies[:, None] + energies - 2 * pixels @ pixels.T).clip(min=0)
    return squared_differences / np.maximum.outer(energies, energies).clip(min=1)


class _DrawnClasses(NamedTuple):
    images: UInt8Array  # (n, IMAGE_SIZE, IMAGE_SIZE), sorted by label
    labels: npt.NDArray[np.int64]  # (n,)
    fonts: tuple[str, ...]  # n file names
    characters: tuple[str, ...]  # by label: those of "train", then as many of "test"


def _fonts_folder() -> str:
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    num_fonts = len(_font_paths(folder))
    if num_fonts < MIN_IMAGES_PER_CLASS:
        raise FileNotFoundError(
            f"{folder} has {num_fonts} DejaVu and STIX fonts; Glyphs needs {MIN_IMAGES_PER_CLASS} at least, "
            "and matplotlib's own distribution has 31: pip install --force-reinstall matplotlib"
        )
    return str(folder)


def _font_paths(folder: Path) -> list[Path]:
    return sorted(path for face in FACES for path in folder.glob(f"{face}*.ttf"))


@functools.lru_cache(maxsize=1)
def _draw_classes(fonts_folder: str) -> _DrawnClasses:
    charmaps = _charmaps(fonts_folder)
    # The other layout engine, Raqm, is not on every machine.
    fonts = [
        ImageFont.truetype(path, EM_SIZE * SUPERSAMPLING, layout_engine=ImageFont.Layout.BASIC)
        for path in charmaps
    ]
    counts = Counter(codepoint for charmap in charmaps.values() for codepoint in charmap)
    characters, images, distinct = [], [], []
    for character in map(chr, sorted(counts)):
        if counts[ord(character)] < MIN_IMAGES_PER_CLASS:
            continue
        if unicodedata.category(character)[0] not in CATEGORIES:
            continue
        drawn = np.stack(
            [
                _draw(character, font) if ord(character) in charmap else _blank()
                for font, charmap in zip(fonts, charmaps.values(), strict=True)
            ]
        )
        kept = _without_repeats(drawn)
        if len(kept) >= MIN_IMAGES_PER_CLASS:
            characters.append(character)
            images.append(drawn)
            distinct.append(kept)

    train_classes, test_classes = _halves(characters, _without_look_alikes(np.stack(images)))
    file_names = [Path(path).name for path in charmaps]
    classes = train_classes + test_classes
    class_images = np.concatenate([images[i][distinct[i]] for i in classes])
    class_images.setflags(write=False)  # one array for all objects
    return _DrawnClasses(
        images=class_images,
        labels=np.repeat(np.arange(len(classes)), [len(distinct[i]) for i in classes]),
        fonts=tuple(file_names[font] for i in classes for font in distinct[i]),
        characters=tuple(characters[i] for i in classes),
    )


def _charmaps(fonts_folder: str) -> dict[str, frozenset[int]]:
    """The codepoints that each font file has a glyph for."""
    from matplotlib.ft2font import FT2Font

    paths = map(str, _font_paths(Path(fonts_folder)))
    return {path: frozenset(FT2Font(path).get_charmap()) for path in paths}


def _blank() -> UInt8Array:
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)


def _draw(character: str, font: ImageFont.FreeTypeFont) -> UInt8Array:
    """The glyph, centered by its ink; blank if it has none, or more than the image can hold."""
    window = IMAGE_SIZE * SUPERSAMPLING
    canvas = Image.new("L", (2 * window, 2 * window))
    ImageDraw.Draw(canvas).text((window, window), character, fill=255, font=font, anchor="mm")
    ink = canvas.getbbox()
    if ink is None or max(ink[2] - ink[0], ink[3] - ink[1]) > window:
        return _blank()
    left, top = (ink[0] + ink[2] - window) // 2, (ink[1] + ink[3] - window) // 2
    return np.asarray(canvas.crop((left, top, left + window, top + window)).reduce(SUPERSAMPLING))


def _without_repeats(images: UInt8Array) -> list[int]:
    """Which of one character's images have ink and look like none before them.

    Faces of a family share outlines, and an image whose double is in the same class would be found at
    rank 1 by any network.
    """
    same = _relative_differences(images) < SAME_LOOK
    kept: list[int] = []
    for i in np.flatnonzero(images.any(axis=(1, 2))):
        if not same[i, kept].any():
            kept.append(int(i))
    return kept


def _without_look_alikes(images: UInt8Array) -> list[int]:
    """Which characters look like none before them in any font that has both.

    Args:
        images: (characters, fonts, IMAGE_SIZE, IMAGE_SIZE), blank where the font lacks the character.
    """
    same = np.zeros((len(images), len(images)), bool)
    for in_font in images.swapaxes(0, 1):
        drawn = np.flatnonzero(in_font.any(axis=(1, 2)))
        same[np.ix_(drawn, drawn)] |= _relative_differences(in_font[drawn]) < SAME_LOOK
    kept: list[int] = []
    for i in range(len(images)):
        if not same[i, kept].any():
            kept.append(i)
    return kept


def _halves(characters: list[str], classes: list[int]) -> tuple[list[int], list[int]]:
    """Deals the classes to train and test, by a hash of the character alone, equally many to each.

    Were the side a matter of rank, a character more or less (another FreeType) would move others across.
    """
    hashes = {i: hashlib.sha256(characters[i].encode()).digest() for i in classes}
    in_order = sorted(classes, key=hashes.__getitem__)
    train = [i for i in in_order if hashes[i][-1] % 2 == 0]
    test = [i for i in in_order if hashes[i][-1] % 2 == 1]
    num_classes = min(len(train), len(test))
    return train[:num_classes], test[:num_classes]
