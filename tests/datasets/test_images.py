import io

import numpy as np
import pytest
from PIL import Image

from pml_xbml.datasets._images import open_image

GRADIENT = np.linspace(0, 65535, 64).reshape(8, 8).round().astype(np.uint16)


def levels(path):
    image = open_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grayscale_keeps_its_scale(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(GRADIENT).save(path)
    assert (levels(path) == np.rint(GRADIENT / 257)).all()
    assert levels(str(path)).max() == 255


def test_16_bit_grayscale_of_either_byte_order(tmp_path):
    path = tmp_path / "image.tif"
    image = Image.new("I;16B", (8, 8))
    image.frombytes(GRADIENT.astype(">u2").tobytes())
    image.save(path)
    with Image.open(path) as opened:
        assert opened.mode == "I;16B"
    assert (levels(path) == np.rint(GRADIENT / 257)).all()


def test_a_png_that_pillow_opens_as_32_bit_integers_has_16(tmp_path, monkeypatch):
    """As older versions of Pillow open 16-bit PNG files."""
    path = tmp_path / "image.png"
    Image.fromarray(GRADIENT).save(path)
    as_before = Image.fromarray(GRADIENT.astype(np.int32))
    as_before.format = "PNG"
    monkeypatch.setattr(Image, "open", lambda _: as_before)
    assert (levels(path) == np.rint(GRADIENT / 257)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_8_bits_are_what_pillow_makes_of_them(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.radial_gradient("L").resize((8, 8)).convert(mode).save(path)
    with Image.open(path) as image:
        expected = image.convert("RGB")
    assert (np.asarray(open_image(path)) == np.asarray(expected)).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    path = tmp_path / "image.tif"
    Image.fromarray(GRADIENT.astype(dtype)).save(path)
    with pytest.raises(ValueError, match=r"must be integers of 8 or 16 bits, got mode '[IF]'") as error:
        open_image(path)
    assert str(path) in str(error.value)


def jpeg():
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image", jpeg()[:400]], ids=["empty", "text", "cut short"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "image.jpg")
