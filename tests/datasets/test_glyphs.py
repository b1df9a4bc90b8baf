import hashlib
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw
from pytorch_metric_learning.datasets.base_dataset import BaseDataset
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from torchvision import transforms

from pml_xbml.datasets import Glyphs

FONTS_FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")


@pytest.fixture(scope="module")
def glyphs():
    return Glyphs()


def squared_shares(images):
    """‖a - b‖² / max(‖a‖², ‖b‖²) for all pairs, in float64."""
    vectors = images.reshape(len(images), -1).astype(np.float64)
    energies = (vectors**2).sum(1)
    return euclidean_distances(vectors, squared=True) / np.maximum.outer(energies, energies)


def drawn_by_matplotlib(character, font):
    """The character at 24 pixels per em, centered by its ink on 32 x 32 pixels."""
    font.set_size(4 * 24, 72)
    font.set_text(character)
    font.draw_glyphs_to_bitmap(antialiased=True)
    image = Image.fromarray(np.asarray(font.get_image()))
    image = image.crop(image.getbbox())
    canvas = Image.new("L", (4 * 32, 4 * 32))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return np.asarray(canvas.reduce(4))


def test_is_a_dataset_in_the_manner_of_pml(glyphs):
    assert isinstance(glyphs, BaseDataset)
    assert isinstance(glyphs, torch.utils.data.Dataset)
    assert glyphs.get_available_splits() == ["train", "test", "train+test"]
    assert glyphs.split == "train+test"
    assert len(glyphs) == len(glyphs.labels) == len(glyphs.images) == len(glyphs.fonts)
    image, label = glyphs[len(glyphs) - 1]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("L", (32, 32))
    assert type(label) is int
    assert label == glyphs.labels[-1]


def test_is_large_enough(glyphs):
    images_per_class = Counter(glyphs.labels)
    assert len(images_per_class) >= 400
    assert min(images_per_class.values()) >= 12
    assert sorted(images_per_class) == list(range(len(glyphs.characters)))
    assert len(set(glyphs.characters)) == len(glyphs.characters)


def test_train_and_test_are_halves_without_a_common_character(glyphs):
    train, test = Glyphs(split="train"), Glyphs(split="test")
    num_train = len(set(train.labels))
    assert num_train == len(set(test.labels)) == len(glyphs.characters) // 2
    assert set(train.labels) == set(range(num_train))
    assert set(test.labels) == set(range(num_train, 2 * num_train))
    assert train.labels + test.labels == glyphs.labels
    assert train.fonts + test.fonts == glyphs.fonts
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), glyphs.images)


def test_the_side_of_a_character_depends_on_the_character_alone(glyphs):
    num_train = len(glyphs.characters) // 2
    for label, character in enumerate(glyphs.characters):
        is_odd = int(hashlib.sha256(character.encode()).hexdigest(), 16) % 2
        assert is_odd == (label >= num_train), character


def test_both_halves_have_the_large_scripts(glyphs):
    num_train = len(glyphs.characters) // 2
    for first, last in (("A", "Z"), ("a", "z"), ("Α", "ω"), ("А", "я"), ("Ա", "և")):
        in_train = [first <= character <= last for character in glyphs.characters[:num_train]]
        in_test = [first <= character <= last for character in glyphs.characters[num_train:]]
        assert min(sum(in_train), sum(in_test)) >= 6


def test_every_image_is_of_a_dejavu_or_stix_font_that_has_the_character(glyphs):
    charmaps = {name: FT2Font(str(FONTS_FOLDER / name)).get_charmap() for name in set(glyphs.fonts)}
    assert all(name.startswith(("DejaVu", "STIX")) for name in charmaps)
    for label, name in zip(glyphs.labels, glyphs.fonts, strict=True):
        assert ord(glyphs.characters[label]) in charmaps[name]


def test_images_show_what_another_renderer_draws(glyphs):
    fonts = {name: FT2Font(str(FONTS_FOLDER / name)) for name in set(glyphs.fonts)}
    similarities = []
    for i in range(0, len(glyphs), 97):
        expected = drawn_by_matplotlib(glyphs.characters[glyphs.labels[i]], fonts[glyphs.fonts[i]])
        similarities.append(
            cosine_similarity(expected.reshape(1, -1), glyphs.images[i].reshape(1, -1)).item()
        )
    assert len(similarities) > 100
    assert min(similarities) > 0.85  # the two hint the outlines differently
    assert np.mean(similarities) > 0.97


def test_no_image_is_blank_and_no_two_are_the_same(glyphs):
    assert glyphs.images.any(axis=(1, 2)).all()
    assert len({image.tobytes() for image in glyphs.images}) == len(glyphs)


def test_glyphs_are_centered_and_whole(glyphs):
    for image in glyphs.images[::50]:
        left, top, right, bottom = Image.fromarray(image).getbbox()
        assert abs(left - (32 - right)) <= 1
        assert abs(top - (32 - bottom)) <= 1


def test_the_images_of_a_class_differ_visibly(glyphs):
    labels = np.array(glyphs.labels)
    for label in range(len(glyphs.characters)):
        shares = squared_shares(glyphs.images[labels == label])
        assert shares[np.triu_indices(len(shares), 1)].min() > 0.049


def test_no_two_classes_look_the_same_in_any_font(glyphs):
    names = np.array(glyphs.fonts)
    for name in set(glyphs.fonts):
        shares = squared_shares(glyphs.images[names == name])
        assert shares[np.triu_indices(len(shares), 1)].min() > 0.049, name


@pytest.mark.parametrize("look_alikes", ["AΑА", "HΗН", "BΒВ", "OΟО", "oοо", "pр", "xх", "iі", "Il"])
def test_characters_that_look_the_same_are_one_class(glyphs, look_alikes):
    assert sum(character in look_alikes for character in glyphs.characters) == 1


def test_transforms_are_applied(glyphs):
    dataset = Glyphs(
        split="test",
        transform=transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()]),
        target_transform=lambda label: -label,
    )
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5)))
    assert images.shape == (5, 3, 32, 32)
    torch.testing.assert_close(images[:, 1], torch.from_numpy(dataset.images[:5] / np.float32(255)))
    assert labels.tolist() == [-label for label in dataset.labels[:5]]


def test_images_are_drawn_once_and_cannot_be_spoilt(glyphs):
    again = Glyphs(split="train")
    assert np.shares_memory(again.images, glyphs.images)
    before = again.images[0].copy()
    ImageDraw.Draw(again[0][0]).rectangle((0, 0, 31, 31), fill=77)
    np.testing.assert_array_equal(np.asarray(again[0][0]), before)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0] = 0


def test_an_unknown_split_is_named():
    with pytest.raises(
        ValueError, match=r"split is 'val'; it must be one of \['train', 'test', 'train\+test'\]"
    ):
        Glyphs(split="val")


@pytest.mark.parametrize("has_folder", [True, False])
def test_missing_fonts_are_an_error_that_names_the_folder(tmp_path, monkeypatch, has_folder):
    folder = tmp_path / "fonts" / "ttf"
    if has_folder:
        folder.mkdir(parents=True)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has 0 DejaVu and STIX fonts") as error:
        Glyphs()
    assert str(folder) in str(error.value)
