"""Images to look at a model with: a file, a photograph that scikit-learn ships, or a test image of a digit probe."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runners.data.datasets import parse_data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

PHOTOGRAPHS = {
    "china": "china.jpg: danielbuechele, CC BY 2.0, from scikit-learn",
    "flower": "flower.jpg: vultilion, CC BY 2.0, from scikit-learn",
}
PROBES = ("digit-vote", "digit-recall")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Shown(NamedTuple):
    """An image as people see it, (H, W, 3) in 0..1, as the model does, (1, 3, H, W), and its name with its credit."""

    pixels: "NDArray[np.float64]"
    input: "Tensor"
    name: str


class Source(NamedTuple):
    """A photograph that was read, or (None) the name of a probe, to be made at a resolution."""

    photograph: "Image | None"
    name: str

    def at(self, height_px: int, width_px: int) -> Shown:
        """Scale and crop to a resolution, the middle kept, and normalise as on ImageNet; draw a probe as it is trained.

        Raises:
            ValueError: a probe that does not fit the resolution.
        """
        import numpy as np
        import torch

        if self.photograph is None:
            # imports torch, which a wrong --image need not wait for
            from runners.data.loading import make_data

            images, _ = next(make_data(self.name, height_px, width_px, batch_size=1).eval_batches())
            # undoes the normalisation of the probes
            pixels = (images[0].permute(1, 2, 0) / 2 + 0.4).clamp(0, 1).double().numpy()
            return Shown(pixels, images, f"first test image of {self.name}")
        from PIL import ImageOps

        fitted = ImageOps.fit(self.photograph, (width_px, height_px))
        pixels = np.asarray(fitted, dtype=np.float64) / 255
        normal = (pixels - IMAGENET_MEAN) / IMAGENET_STD
        return Shown(pixels, torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None], self.name)


def open_image(name: str) -> Source:
    """Read an image file, or what is built in by name: china, flower, digit-vote, digit-recall.

    Raises:
        ValueError: no such file, or one that is no image or damaged.
    """
    if name.partition(":")[0] in PROBES:
        parse_data(name)
        return Source(None, name)
    from PIL import Image, ImageOps, UnidentifiedImageError

    if name in PHOTOGRAPHS:
        from sklearn.datasets import load_sample_image

        return Source(Image.fromarray(load_sample_image(f"{name}.jpg")), PHOTOGRAPHS[name])
    try:
        with Image.open(name) as file:
            # turned as the camera says, and read whole, so that damage shows here
            photograph = _in_colour(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image that Pillow can read") from error
    except FileNotFoundError as error:
        built_in = ", ".join((*PHOTOGRAPHS, *PROBES))
        raise ValueError(f"{name} does not exist; give an image file, or one built in: {built_in}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # truncated files, broken PNG chunks, sizes that no memory holds
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} cannot be read: {reason}") from error
    return Source(photograph, Path(name).name)


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
