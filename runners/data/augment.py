"""What is done to an image before a model sees it: timm's transforms, from plain fields.

Every random draw of these transforms comes from Python's, NumPy's or torch's global generators, which
`runners.data.seeding` sets for each image.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from timm.data import Mixup
    from torch import Tensor

PAD_SHARE = 8
"""`crop="padded"` pads each side by this part of it: 4 of 32 px."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed, and how test images are cut.

    Attributes:
        crop: `resized` cuts a random part and resizes it, `padded` pads and cuts a random window, `none` resizes.
        scale_min: smallest share of the area that `resized` cuts.
        hflip: probability of a horizontal flip.
        color_jitter: strength of jitter of brightness, contrast and saturation; RandAugment takes its place.
        auto_augment: timm's name of a policy, such as `rand-m9-mstd0.5-inc1`; empty for none.
        erasing: probability of erasing a rectangle, filled with noise.
        mixup: alpha of Beta(alpha, alpha) for Mixup (arXiv:1710.09412), 0 for none.
        cutmix: the same for CutMix (arXiv:1905.04899); with both, each batch takes one of them by a coin.
        repeats: how often an image comes, each time changed otherwise, in an epoch of the same number of images
            (repeated augmentation, arXiv:1901.09335).
        interpolation: of every resize.
        eval_crop: side of the central part of a test image that is kept, as a share of its resized short side.
    """

    crop: Literal["resized", "padded", "none"] = "none"
    scale_min: float = 0.08
    hflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str = ""
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    eval_crop: float = 1.0

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of two classes."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Pixels:
    """Size of the images of a batch in pixels, and the mean and standard deviation that normalise them."""

    height_px: int
    width_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def size(self) -> tuple[int, int, int]:
        """(3, height_px, width_px)."""
        return 3, self.height_px, self.width_px


def train_transform(augmentation: Augmentation, pixels: Pixels) -> "Callable[[Image], Tensor]":
    """Return what turns an RGB image into a changed and normalised (3, height_px, width_px)."""
    from timm.data import create_transform
    from torchvision import transforms

    height, width = pixels.height_px, pixels.width_px
    jitter: Any = augmentation.color_jitter or None
    composed: Any = create_transform(
        pixels.size,
        is_training=True,
        scale=(augmentation.scale_min, 1.0),
        hflip=augmentation.hflip,
        color_jitter=jitter,
        auto_augment=augmentation.auto_augment or None,
        interpolation=augmentation.interpolation,
        mean=pixels.mean,
        std=pixels.std,
        re_prob=augmentation.erasing,
        re_mode="pixel",
    )
    if augmentation.crop != "resized":
        mode = transforms.InterpolationMode(augmentation.interpolation)
        first: list[Any] = [transforms.Resize((height, width), mode)]
        if augmentation.crop == "padded":
            first.append(transforms.RandomCrop((height, width), padding=(width // PAD_SHARE, height // PAD_SHARE)))
        # timm puts its crop first, or the images as they are where there is nothing to draw
        composed.transforms[:1] = first
    _allow_zero_bits(composed.transforms)
    transform: Callable[[Image], Tensor] = composed
    return transform


def eval_transform(augmentation: Augmentation, pixels: Pixels) -> "Callable[[Image], Tensor]":
    """Return what resizes, cuts the centre and normalises: an RGB image to (3, height_px, width_px)."""
    from timm.data import create_transform

    composed: Any = create_transform(
        pixels.size,
        interpolation=augmentation.interpolation,
        mean=pixels.mean,
        std=pixels.std,
        crop_pct=augmentation.eval_crop,
        # a whole image that is not square would be cut to the part that fits
        crop_mode="squash" if augmentation.eval_crop == 1 else "center",
    )
    transform: Callable[[Image], Tensor] = composed
    return transform


def check_policy(name: str) -> None:
    """Refuse a name that is none of timm's policies.

    Raises:
        ValueError: it is not.
    """
    try:
        train_transform(Augmentation(auto_augment=name), Pixels(32, 32, (0, 0, 0), (1, 1, 1)))
    except Exception as error:  # of timm's parser
        raise ValueError(
            f"auto_augment {name!r} is no policy of timm, such as rand-m9-mstd0.5-inc1, augmix-m3 or original"
        ) from error


def make_mixup(augmentation: Augmentation, num_classes: int, smoothing: float) -> "Mixup | None":
    """Return timm's Mixup and CutMix of a batch, None where neither is on."""
    from timm.data import Mixup

    if not augmentation.mixes:
        return None
    return Mixup(
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        label_smoothing=smoothing,
        num_classes=num_classes,
    )


def _allow_zero_bits(steps: Sequence[Any]) -> None:
    """Let posterize keep 0 bits, a black image, which Pillow refuses from version 13 on."""
    from timm.data import auto_augment

    for step in steps:
        # of RandAugment and AugMix, and of AutoAugment
        for operation in (*getattr(step, "ops", ()), *itertools.chain(*getattr(step, "policy", ()))):
            if getattr(operation, "aug_fn", None) is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: "Image", bits_to_keep: int, **_: Any) -> "Image":
    """Keep the upper bits of each channel, none of them for 0."""
    from PIL import ImageOps

    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep > 0 else image.point(lambda _: 0)
