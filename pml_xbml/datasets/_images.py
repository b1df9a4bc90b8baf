from pathlib import Path

import numpy as np
from PIL import Image

# 16 bits a pixel in either byte order. Older versions of Pillow open 16-bit PNG files in mode "I".
_MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file as 8-bit RGB.

    Pillow's ``convert("RGB")`` clips what is above 255, so that 16-bit grayscale images become white. Here
    their range 0 .. 65535 is scaled to 0 .. 255.

    Args:
        path: the file, in any format that Pillow reads.

    Returns:
        The image, in mode "RGB", all of it read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or holds 32-bit integers or floats, which have no known white.

    Example:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)).save(file.name)
        ...     open_image(file.name).getpixel((1, 0))
        (128, 128, 128)
    """
    try:
        with Image.open(path) as image:
            if image.mode in _MODES_OF_16_BITS or (image.mode == "I" and image.format == "PNG"):
                scaled = np.rint(np.asarray(image).astype(np.float32) * (255 / 65535)).astype(np.uint8)
                return Image.fromarray(scaled).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(
                    f"pixels must be integers of 8 or 16 bits, got mode {image.mode!r}; convert the image"
                )
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image {str(path)!r} cannot be read ({error})") from error
