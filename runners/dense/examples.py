"""Targets drawn for measuring memory and the time of a training step: the same at every call, and no data needed."""

import torch
from torch import Tensor

from runners.dense.losses import IGNORE

OBJECTS = 7
"""Of an image; COCO has 7.7 on average (arXiv:1405.0312, section 5)."""
SHARES = (0.1, 0.5)
"""Sides of the smallest and of the largest object, as shares of those of the image."""
BLOCK_PX = 16
"""Side of a square of one label: labels of natural images come in regions."""


def example_targets(
    task: str,
    batch: int,
    height: int,
    width: int,
    num_classes: int,
    device: torch.device,
    seed: int = 0,
) -> Tensor | list[dict[str, Tensor]]:
    """Draw what is in a batch of images, a pure function of the arguments.

    Args:
        task: segment, detect or instance.
        batch: number of images.
        height: of an image, px.
        width: of an image, px.
        num_classes: labels are 0 .. num_classes - 1 of pixels, 1 .. num_classes of boxes.
        device: where the targets are.
        seed: of the draws.

    Returns:
        Labels (batch, height, width), some of them `IGNORE`, of segment; else for each image what a detector is trained
        with: `OBJECTS` boxes with labels, areas and numbers, and of instance their masks (N, height, width).

    Raises:
        ValueError: another task, or no image, pixel or class.
    """
    if task not in ("segment", "detect", "instance"):
        raise ValueError(f"task must be one of segment, detect, instance, got {task!r}")
    for name, value in (("batch", batch), ("height", height), ("width", width), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    generator = torch.Generator().manual_seed(seed)
    if task == "segment":
        return _labels(batch, height, width, num_classes, generator).to(device)
    images = [_objects(number, height, width, num_classes, generator) for number in range(batch)]
    if task == "instance":
        for image in images:
            image["masks"] = _ellipses(image["boxes"], height, width)
    return [{name: value.to(device) for name, value in image.items()} for image in images]


def _labels(batch: int, height: int, width: int, num_classes: int, generator: torch.Generator) -> Tensor:
    rows, cols = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    blocks = torch.randint(num_classes + 1, (batch, rows, cols), generator=generator)
    blocks[blocks == num_classes] = IGNORE
    return blocks.repeat_interleave(BLOCK_PX, 1).repeat_interleave(BLOCK_PX, 2)[:, :height, :width].contiguous()


def _objects(number: int, height: int, width: int, num_classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Boxes of an image, all within it, whose sides spread evenly over `SHARES`."""
    whole = torch.tensor([width, height], dtype=torch.float32)
    least, most = SHARES
    sides = whole * torch.linspace(least, most, OBJECTS)[:, None]
    corners = (whole - sides) * torch.rand(OBJECTS, 2, generator=generator)
    return {
        "boxes": torch.cat((corners, corners + sides), 1),
        "labels": torch.randint(1, num_classes + 1, (OBJECTS,), generator=generator),
        "iscrowd": torch.zeros(OBJECTS, dtype=torch.bool),
        "area": sides.prod(1),
        "image_id": torch.tensor(number),
        "size": torch.tensor([height, width]),
    }


def _ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, height, width) uint8 that touch the sides of boxes (N, 4) and leave their corners free."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    across, down = (x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top)
    return (across**2 + down**2 <= 0.25).to(torch.uint8)
