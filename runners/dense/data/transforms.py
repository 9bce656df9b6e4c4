"""What is done to an image and its annotation before a model sees them, by torchvision's transforms.

Segmentation, as mmseg's published configurations: resize by a random factor, crop so that no class fills it, flip,
photometric distortion, pad with what is ignored. Detection, as mmdet's 1x: resize, flip, pad. All draws are from
torch's global generator, which `runners.data.seeding` sets for each image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from runners.data.dense_augment import LONG_PER_SHORT, DenseAugmentation, fitted, padded
from runners.data.image_specs import IMAGENET_MEAN, IMAGENET_STD
from runners.dense.data.sources import IGNORE, Bytes, Objects
from runners.dense.targets import Target

CROPS = 10
"""Crops that are drawn anew at most."""
Mode = v2.InterpolationMode


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _chance(probability: float) -> bool:
    return float(torch.rand(())) < probability


def _image(image: Any, size: tuple[int, int]) -> tv_tensors.Image:
    """Resize a PIL image to (height, width): (3, height, width) in [0, 1]."""
    resized = F.resize(image, list(size), interpolation=Mode.BILINEAR, antialias=True)
    return tv_tensors.Image(F.to_dtype(F.pil_to_tensor(resized), torch.float32, scale=True))


def normalised(image: Tensor) -> tv_tensors.Image:
    """Values as timm and mmcv normalise them; padding with 0 after it is a mean colour."""
    return tv_tensors.Image(F.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD)))


def _scaled_masks(masks: Any, size: tuple[int, int]) -> tv_tensors.Mask:
    """Resize masks (N, h, w) to (N, height, width); a pixel takes what lies below its centre."""
    values = torch.from_numpy(masks)
    if not len(values) or values.shape[1:] == size:
        return tv_tensors.Mask(values.new_zeros(0, *size) if not len(values) else values)
    return tv_tensors.Mask(F.resize_image(values, list(size), interpolation=Mode.NEAREST_EXACT))


class SegmentTransform:
    """Turn an RGB image and labels (H, W) into (3, height_px, width_px) float32 and labels uint8, IGNORE outside."""

    def __init__(self, augmentation: DenseAugmentation, height_px: int, width_px: int, *, training: bool) -> None:
        """Set the size of crops, of training."""
        self.fields, self.crop, self.training = augmentation, (height_px, width_px), training
        self.short = augmentation.short_px or min(height_px, width_px)
        self.long = augmentation.long_px or LONG_PER_SHORT * self.short

    def __call__(self, image: Any, labels: Bytes, canvas: None = None) -> tuple[Tensor, Tensor]:
        """Transform one image."""
        return self._train(image, labels) if self.training else self._test(image, labels)

    def _test(self, image: Any, labels: Bytes) -> tuple[Tensor, Tensor]:
        size = fitted(image.height, image.width, self.short, self.long)
        size = padded(*size, self.fields.eval_multiple)
        kept = torch.from_numpy(labels)
        if self.fields.eval_labels == "resized":
            kept = _scaled_masks(labels[None], size)[0]
        return normalised(_image(image, size)).as_subclass(Tensor), kept.as_subclass(Tensor)

    def _train(self, image: Any, labels: Bytes) -> tuple[Tensor, Tensor]:
        fields = self.fields
        factor = _uniform(fields.zoom_min, fields.zoom_max)
        size = fitted(image.height, image.width, max(1, int(self.short * factor)), max(1, int(self.long * factor)))
        found, mask = _image(image, size), _scaled_masks(labels[None], size)
        window = self._window(mask[0])
        found, mask = F.crop(found, *window), F.crop(mask, *window)
        if _chance(fields.hflip):
            found, mask = F.horizontal_flip(found), F.horizontal_flip(mask)
        if fields.photometric:
            found = distorted(found)
        right, bottom = self.crop[1] - window[3], self.crop[0] - window[2]
        found, mask = F.pad(normalised(found), [0, 0, right, bottom]), F.pad(mask, [0, 0, right, bottom], fill=IGNORE)
        return found.as_subclass(Tensor), mask[0].as_subclass(Tensor)

    def _window(self, labels: Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop in which no class has more than its share."""
        window = self._drawn(*labels.shape)
        for _ in range(CROPS if self.fields.cat_max_ratio < 1 else 0):
            counts = torch.bincount(F.crop(labels, *window).flatten(), minlength=IGNORE + 1)[:IGNORE]
            # one class alone is above every share below 1
            if counts.max() < self.fields.cat_max_ratio * counts.sum():
                break
            window = self._drawn(*labels.shape)
        return window

    def _drawn(self, height: int, width: int) -> tuple[int, int, int, int]:
        size = min(height, self.crop[0]), min(width, self.crop[1])
        top, left = (int(torch.randint(side - part + 1, ())) for side, part in zip((height, width), size, strict=True))
        return top, left, *size


def distorted(image: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image in [0, 1], each by a coin, as mmseg does.

    Brightness is added, up to 32 of 255; contrast is a factor of the values, before or after the other two; saturation
    a factor of the distance to the largest channel; hue turns by up to 18 of 180 steps.
    """
    if _chance(0.5):
        image = (image + _uniform(-32 / 255, 32 / 255)).clamp(0, 1)
    first = _chance(0.5)
    if first and _chance(0.5):
        image = (image * _uniform(0.5, 1.5)).clamp(0, 1)
    if _chance(0.5):
        top = image.amax(0, keepdim=True)
        image = top - ((top - image) * _saturation(image, top))
    if _chance(0.5):
        image = F.adjust_hue(image, _uniform(-0.1, 0.1))
    if not first and _chance(0.5):
        image = (image * _uniform(0.5, 1.5)).clamp(0, 1)
    return image


def _saturation(image: Tensor, top: Tensor) -> Tensor:
    """Factor of each pixel's saturation, which ends at 1."""
    saturation = (top - image.amin(0, keepdim=True)) / top.clamp(min=1e-6)
    return (1 / saturation.clamp(min=1e-6)).clamp(max=_uniform(0.5, 1.5))


class DetectTransform:
    """Turn an RGB image and its objects into an image (3, H, W) float32 on a canvas, and a target."""

    def __init__(self, augmentation: DenseAugmentation, height_px: int, width_px: int, *, training: bool) -> None:
        """Set the sides of the resized image."""
        self.fields, self.training = augmentation, training
        self.short = augmentation.short_px or min(height_px, width_px)
        self.long = max(augmentation.long_px or max(height_px, width_px), self.short)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image before it is padded."""
        return fitted(height, width, self.short, self.long)

    def __call__(self, image: Any, objects: Objects, canvas: tuple[int, int] | None = None) -> tuple[Tensor, Target]:
        """Transform one image; without a canvas its sides become the next multiples of 32 px."""
        size = self.fitted(image.height, image.width)
        if canvas is None:
            canvas = padded(*size)
        elif size[0] > canvas[0] or size[1] > canvas[1]:
            # it stands in for one that could not be read
            size = _inside(size, canvas)
        ratio = np.divide(size, (image.height, image.width))
        boxes = torch.from_numpy((objects.boxes * np.tile(ratio[::-1], 2)).astype(np.float32))
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=size),
            "labels": torch.from_numpy(objects.labels),
            "iscrowd": torch.from_numpy(objects.iscrowd),
            "area": torch.from_numpy(objects.area.astype(np.float32)),
        }
        if objects.masks is not None:
            target["masks"] = _scaled_masks(objects.masks, size)
        found = normalised(_image(image, size))
        if self.training:
            target = learnt(target, size)
            if _chance(self.fields.hflip):
                found = F.horizontal_flip(found)
                for name in target.keys() & {"boxes", "masks"}:
                    target[name] = F.horizontal_flip(target[name])
        return on_canvas(found, target, canvas, objects.image_id, (image.height, image.width))


def _inside(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def learnt(target: Target, size: tuple[int, int]) -> Target:
    """Objects that a loss sees: no crowds, none without area inside of the image or without a pixel of their mask."""
    height, width = size
    boxes = target["boxes"].as_subclass(Tensor)
    limit = torch.tensor([width, height, width, height])
    boxes = tv_tensors.wrap(boxes.clamp(min=0).minimum(limit), like=target["boxes"])
    kept = ~target["iscrowd"] & (boxes[:, 2:] > boxes[:, :2]).all(1)
    if "masks" in target:
        kept &= (target["masks"].as_subclass(Tensor) != 0).flatten(1).any(1)
    target = {**target, "boxes": boxes}
    return {
        name: tv_tensors.wrap(value[kept], like=value) if isinstance(value, tv_tensors.TVTensor) else value[kept]
        for name, value in target.items()
    }


def on_canvas(
    image: Tensor, target: Target, canvas: tuple[int, int], image_id: int, original: tuple[int, int]
) -> tuple[Tensor, Target]:
    """Pad an image and its masks at the right and at the bottom, and complete its target."""
    height, width = image.shape[-2:]
    padding = [0, 0, canvas[1] - width, canvas[0] - height]
    if "masks" in target:
        target = {**target, "masks": F.pad(target["masks"], padding)}
    plain = {name: value.as_subclass(Tensor).contiguous() for name, value in target.items()}
    plain |= {
        "image_id": torch.tensor(image_id),
        "size": torch.tensor((height, width)),
        "original_size": torch.tensor(original),
    }
    return F.pad(image, padding).as_subclass(Tensor), plain
