"""What a measured training step learns: its targets, and their loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runners.train.criterion import LABELS, BatchLoss

MakeTargets = Callable[[int, int, int, torch.device], Any]
"""Targets of so many images of a height and a width in pixels, on a device: the same at every call."""


def same_class(batch: int, height_px: int, width_px: int, device: torch.device) -> torch.Tensor:
    """Labels (batch,) of the first class."""
    return torch.zeros(batch, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Goal:
    """Targets and loss; pickled, so functions of modules."""

    make_targets: MakeTargets = same_class
    criterion: BatchLoss = LABELS


CLASSES = Goal()
"""Classes of images."""
