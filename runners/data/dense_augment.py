"""How images of dense tasks are resized, cut and changed, as plain fields, without torch."""

from dataclasses import dataclass
from typing import Literal

from ablations.values import MAX_PX

MULTIPLE = 32
"""Of which the sides of every canvas of detection are."""
LONG_PER_SHORT = 4
"""Segmentation's long side at most, in short sides: 2048 for 512."""


@dataclass(frozen=True, kw_only=True)
class DenseAugmentation:
    """How images are changed for training, and resized for the test.

    An image keeps its ratio: its short side becomes `short_px`, or less where its long side would exceed `long_px`.
    Segmentation multiplies both by a random factor and cuts a crop; detection pads the image.

    Attributes:
        short_px: short side of an image, 0 for the short side of the resolution.
        long_px: long side at most, 0 for four short sides (segmentation) or the resolution's long side (detection).
        zoom_min: smallest factor, of segmentation.
        zoom_max: largest.
        cat_max_ratio: share of a crop that one class may have, which is drawn up to ten times more; 1 for any.
        hflip: probability of a horizontal flip.
        photometric: whether brightness, contrast, saturation and hue are changed.
        eval_multiple: sides of a test image of segmentation are stretched to multiples of this; 1 leaves them.
        eval_labels: `resized` compares in the pixels of the resized image; `original` leaves labels as they are, and
            predictions are resized to them, as in published figures.
        eval_scales: whether segmentation is also evaluated over six scales and their mirror images.
        keep_empty: whether detection learns from images without an object too.
    """

    short_px: int = 0
    long_px: int = 0
    zoom_min: float = 1.0
    zoom_max: float = 1.0
    cat_max_ratio: float = 1.0
    hflip: float = 0.5
    photometric: bool = False
    eval_multiple: int = MULTIPLE
    eval_labels: Literal["resized", "original"] = "resized"
    eval_scales: bool = False
    keep_empty: bool = False

    def __post_init__(self) -> None:
        """Check each field.

        Raises:
            ValueError: one is out of its range.
        """
        allowed = {
            "short_px": (0 <= self.short_px <= MAX_PX, f"0 to {MAX_PX} px"),
            "long_px": (
                self.long_px == 0 or self.short_px <= self.long_px <= MAX_PX,
                f"0, or from short_px to {MAX_PX} px",
            ),
            "zoom_max": (0 < self.zoom_max <= 16, "above 0, at most 16"),
            "zoom_min": (0 < self.zoom_min <= self.zoom_max, "above 0, at most zoom_max"),
            "cat_max_ratio": (0 < self.cat_max_ratio <= 1, "a share above 0, at most 1"),
            "hflip": (0 <= self.hflip <= 1, "a probability"),
            "eval_multiple": (1 <= self.eval_multiple <= 1024, "1 to 1024 px"),
            "eval_labels": (self.eval_labels in ("resized", "original"), "'resized' or 'original'"),
        }
        for name, (fits, wanted) in allowed.items():
            if not fits:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")


PUBLISHED = {
    "segment": DenseAugmentation(zoom_min=0.5, zoom_max=2.0, cat_max_ratio=0.75, photometric=True),
    "detect": DenseAugmentation(),
    "instance": DenseAugmentation(),
}
"""By task: mmseg's ADE20K as Swin's, UniFormer's and BiFormer's configurations have it, and mmdet's COCO, 1x.

The last two stretch test images to multiples of 32 px for Semantic FPN; for UPerNet `eval_multiple` is 1.
"""


def fitted(height: int, width: int, short_px: int, long_px: int) -> tuple[int, int]:
    """Size of an image whose short side becomes `short_px`, or whose long side `long_px` where that is less."""
    scale = min(long_px / max(height, width), short_px / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def padded(height: int, width: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """Next multiples that an image fits into."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
