"""Labels of the places of an image, from files: the label maps of "All Tokens Matter" (arXiv:2104.10858, section 3).

A folder is what the paper's code writes (generate_label.py of zihangJiang/TokenLabeling; its label_top5_train_nfnet is
one): for the image CLASS/NAME.jpg a file CLASS/NAME.pt, NAME up to its first dot, which holds one tensor (2, K, h, w).
Of each place [0] has the K largest scores of a strong model, before softmax, and [1] their classes; all others score 0.
A map covers the whole image.

The crop and the flip of an image are followed: RoIAlign takes the same box of the map, then a softmax makes shares of
classes. Mixup and CutMix are followed place by place. The shears, turns and shifts of RandAugment, and erasing, move no
label.
"""

import functools
import os
import pickle
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from runners.data.folders import open_folders
from runners.data.image_specs import is_image_spec


class Box(NamedTuple):
    """Part of an image that a changed one shows, its borders as shares of the sides, and whether it is mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    flipped: bool


def drawn_box(transform: Any, image: Any) -> Box:
    """Draw the crop and flip that begin a transform of timm; from the same seed they are those of the image."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms

    width, height = image.size
    box = Box(0, 0, 1, 1, False)
    for step in transform.transforms:
        if isinstance(step, RandomResizedCropAndInterpolation):
            draw: Any = step.get_params
            top, left, rows, columns = draw(image, step.scale, step.ratio)
            box = Box(left / width, top / height, (left + columns) / width, (top + rows) / height, False)
        elif isinstance(step, transforms.Resize):
            height, width = step.size
        elif isinstance(step, transforms.RandomCrop):
            pad_x, pad_y = step.padding
            padded = torch.empty(1, height + 2 * pad_y, width + 2 * pad_x, device="meta")
            top, left, rows, columns = step.get_params(padded, step.size)
            top, left = top - pad_y, left - pad_x
            box = Box(left / width, top / height, (left + columns) / width, (top + rows) / height, False)
        elif isinstance(step, transforms.RandomHorizontalFlip):
            box = box._replace(flipped=bool(torch.rand(1) < step.p))
        else:
            break
    return box


class LabelMaps:
    """The label maps of a folder, cut to the boxes of changed images for a last map of H x W places."""

    def __init__(self, folder: Path, num_classes: int, size: tuple[int, int]) -> None:
        """Name the folder, the number of classes, and H and W."""
        self.folder, self.num_classes, self.size = folder, num_classes, size

    def labels(self, name: str, box: Box) -> Tensor:
        """Shares of classes (H, W, C) for the box of an image, by its name in its listing.

        Raises:
            ValueError: its file cannot be read, or holds no label map.
        """
        from torchvision.ops import roi_align  # seconds of import

        scores, classes = read_label_map(self.folder / file_of(name), self.num_classes)
        height, width = scores.shape[1:]
        maps = torch.zeros(self.num_classes, height, width).scatter_(0, classes, scores)
        corners = [0.0, box.left * width, box.top * height, box.right * width, box.bottom * height]
        cut = roi_align(maps[None], torch.tensor([corners], dtype=maps.dtype), self.size, aligned=True)[0]
        shares: Tensor = cut.softmax(0).permute(1, 2, 0)
        return shares.flip(1) if box.flipped else shares


def file_of(name: str) -> str:
    """File of the label map of an image, below the folder: `train/cat/one.small.jpg` -> `cat/one.pt`."""
    path = PurePosixPath(name)
    return f"{path.parent.name}/{path.name.partition('.')[0]}.pt"


def read_label_map(path: Path, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read scores and classes, (K, h, w) each; runs no code of the file.

    Raises:
        ValueError: it cannot be read, or is no label map of so many classes.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"label map {path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"label map {path} cannot be read: it is no file of torch, or cut off") from error
    if not isinstance(found, Tensor) or found.dim() != 4 or len(found) != 2 or not found.numel():
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"label map {path} must be a tensor (2, K, height, width), got {shape}")
    scores, classes = found[0].float(), found[1].float()
    if not scores.isfinite().all() or not ((classes >= 0) & (classes < num_classes) & (classes % 1 == 0)).all():
        raise ValueError(f"label map {path}: scores must be finite and classes 0 to {num_classes - 1}")
    return scores, classes.long()


def mix_labels(labels: Tensor, mixup: Any, targets: Tensor, height_px: int, width_px: int) -> Tensor:
    """Mix the labels (B, H, W, C) of a batch as timm's Mixup, drawn from the same seed, mixes its images."""
    # a white image mixed with a black one shows how much of a pixel is its own
    drawing = torch.zeros(2, 1, height_px, width_px)
    drawing[0] = 1
    mixed, _ = mixup(drawing, targets[:2])
    own = F.adaptive_avg_pool2d(mixed[0], (labels.shape[1], labels.shape[2]))[0, :, :, None]
    return own * labels + (1 - own) * labels.flip(0)


@functools.lru_cache(maxsize=4)
def check_label_maps(folder: str, spec: str) -> None:
    """Check that a folder has a label map for every training image, and that the first is one.

    Raises:
        ValueError: there is no such folder, a file is missing or is no label map, or the data are not image files.
    """
    given, root = f"recipe.token_labels={folder}", Path(folder)
    if not is_image_spec(spec):
        raise ValueError(f"{given}: label maps are of image files, and data {spec} are drawn; take `teacher`")
    if not root.is_dir():
        raise ValueError(f"{given}: there is no such folder; give one of label maps, or `teacher`")
    folders = open_folders(spec)
    wanted = [file_of(folders.train.name(int(index))) for index in folders.train_indices]
    there = {f"{sub.name}/{file.name}" for sub in os.scandir(root) if sub.is_dir() for file in os.scandir(sub)}
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{given} lacks the label maps of {len(missing)} training images, {missing[0]} for one")
    try:
        read_label_map(root / wanted[0], len(folders.classes))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
