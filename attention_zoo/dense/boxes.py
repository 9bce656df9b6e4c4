"""What the two detection heads share: anchors, images and targets as torchvision takes them, and numbers in float32.

torchvision's own models resize and normalise their images; here these come ready, on one canvas for the whole batch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

Target = dict[str, Tensor]
"""Boxes (N, 4) as x1, y1, x2, y2 in pixels, labels (N,) from 1, maybe masks (N, H, W), iscrowd (N,), and more."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of anchors, as published."""


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors as mmdet makes them: centred on multiples of the strides, their corners not rounded, in float32.

    torchvision takes the strides from the sizes of maps, which is off where these are rounded up (stride 128 of 800 px:
    114), rounds corners to whole pixels, and counts in the dtype of the maps, where bfloat16 misses by pixels.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float]) -> None:
        """Make anchors of sides stride x scale at each level, in three ratios."""
        super().__init__(
            tuple(tuple(stride * scale for scale in scales) for stride in strides), (RATIOS,) * len(strides)
        )
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Anchors around the origin, ratio by ratio: (A, 4)."""
        sides = [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in aspect_ratios for side in scales]
        return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """All anchors of each image, level by level: (levels' H W A, 4) for each."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [list(map_.shape[-2:]) for map_ in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors] * len(image_list.image_sizes)


def on_canvas(images: Tensor) -> ImageList:
    """Images of one size as torchvision's heads take them, each as large as the canvas."""
    height, width = images.shape[-2:]
    return ImageList(images, [(height, width)] * len(images))


def to_learn(targets: Iterable[Mapping[str, Tensor]]) -> list[Target]:
    """Targets without crowds and without boxes that have no area, which no loss may see."""
    learnt = []
    for target in targets:
        boxes = target["boxes"]
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if "iscrowd" in target:
            keep = keep & ~target["iscrowd"].bool()
        names = [name for name in ("boxes", "labels", "masks") if name in target]
        learnt.append({name: target[name][keep] for name in names})
    return learnt


def at_least_float32(tensor: Tensor) -> Tensor:
    """Under autocast, boxes and losses need more digits than convolutions do."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
