"""Images of strangers: turned upright, in 8-bit RGB, or refused with a reason."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

MAX_PIXELS = 1 << 27
"""Larger images are refused before their pixels are unpacked: 134 million, 11,585 x 11,585."""
MAX_ASPECT = 500
"""So are longer ones: with its short side at 256 px, an image of 1 x 100,000 would take gigabytes."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name; of others Pillow would call programs, Ghostscript for EPS."""

ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations of EXIF that exchange the sides."""


def decode(file: "IO[bytes] | str | Path") -> "Image":
    """Read an image whole, the first of several frames, turned as its camera says, in RGB.

    Raises:
        ValueError: no image of FORMATS, damaged, cut off, or of more than MAX_PIXELS or MAX_ASPECT.
        FileNotFoundError: no such file.
    """
    with _opened(file) as image:
        return finish(image)


@contextlib.contextmanager
def _opened(file: "IO[bytes] | str | Path") -> "Iterator[Image]":
    """Open an image; errors of Pillow, also of what is done with it meanwhile, become ValueErrors.

    Raises:
        FileNotFoundError: no such file.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        # Pillow's warnings are of what is refused or read all the same
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image,
        ):
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("no image that Pillow can read") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise ValueError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def upright_size(file: "IO[bytes]") -> tuple[int, int]:
    """Width and height that `decode` would give, px, of an image that need not be whole.

    Raises:
        ValueError: no image of FORMATS, or of more than MAX_PIXELS or MAX_ASPECT.
    """
    from PIL.ExifTags import Base

    with _opened(file) as image:
        check_size(image.width, image.height)
        orientation = None
        with contextlib.suppress(Exception):  # as in `_turn_upright`
            orientation = image.getexif().get(Base.Orientation)
        # of a TIFF, Pillow tells the size of the image as it is turned
        return image.size[::-1] if orientation in ON_ITS_SIDE and image.format != "TIFF" else image.size


def finish(image: "Image") -> "Image":
    """Unpack an image, turn it as its camera says, and convert it to RGB.

    Raises:
        ValueError: it is too large or too long, or its greys are not finite.
        OSError: its file is damaged or cut off; other errors of Pillow's decoders.
    """
    check_size(image.width, image.height)
    # read whole, so that damage shows here and not in a transform
    image.load()
    _turn_upright(image)
    return image if image.mode == "RGB" else _in_colour(image)


def check_size(width_px: int, height_px: int) -> None:
    """Refuse an image by its size.

    Raises:
        ValueError: it has more than MAX_PIXELS, or one side is longer than MAX_ASPECT times the other.
    """
    if width_px * height_px > MAX_PIXELS:
        raise ValueError(f"{width_px} x {height_px} pixels, the limit is {MAX_PIXELS}")
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        raise ValueError(f"{width_px} x {height_px} pixels, one side more than {MAX_ASPECT} times the other")


def _turn_upright(image: "Image") -> None:
    from PIL import ImageOps

    # the pixels are whole; what is written beside them is damaged in some of ImageNet's
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _in_colour(image: "Image") -> "Image":
    """Convert an image to 8-bit RGB; Pillow alone would clip a grey of more bits at 255.

    What is transparent keeps the colour that it is stored with, as in timm and torchvision.

    Raises:
        ValueError: its greys are not finite.
    """
    import numpy as np
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns of the direct way, which gives the same
        return image.convert("RGBA").convert("RGB")
    if image.mode.partition(";")[0] not in ("I", "F"):
        return image.convert("RGB")
    grey = np.asarray(image, dtype=np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("its greys are not all finite")
    low, high = _range(image.mode, float(grey.min()), float(grey.max()))
    scaled = 255 * (grey - low) / max(high - low, 1e-300)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _range(mode: str, low: float, high: float) -> tuple[float, float]:
    """Values of black and white: 0 and the largest of the fewest bits that hold the image, else its own extremes."""
    whites = [float(2**bits - 1) for bits in (8, 10, 12, 14, 16)]
    if mode == "F":
        whites.insert(0, 1.0)
    if low >= 0 and high <= whites[-1]:
        return 0.0, next(white for white in whites if high <= white)
    return low, high
