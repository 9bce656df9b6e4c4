"""Images of strangers: turned upright, in 8-bit RGB, or refused with a reason."""

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

MAX_PIXELS = 1 << 27
"""Larger images are refused before their pixels are unpacked: 134 million, 11,585 x 11,585."""


def decode(file: "IO[bytes] | str | Path") -> "Image":
    """Read an image whole, turned as its camera says, in RGB.

    Raises:
        ValueError: no image that Pillow can read, damaged, cut off, or of more than MAX_PIXELS.
        FileNotFoundError: no such file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
            # read whole, so that damage shows here
            return _in_colour(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError("no image that Pillow can read") from error
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        # truncated files, broken PNG chunks, sizes that no memory holds
        raise ValueError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _in_colour(image: "Image") -> "Image":
    """Convert an image to 8-bit RGB; Pillow alone would clip a grey of more bits at 255.

    Raises:
        ValueError: its greys are not finite.
    """
    import numpy as np
    from PIL import Image

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
