"""What a measured training step learns: its targets, and their loss."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from runners.train.criterion import LABELS, BatchLoss


class MakeTargets(Protocol):
    """Makes the targets of so many images of a height and a width in pixels: the same at every call."""

    def __call__(self, batch: int, height: int, width: int, *, device: torch.device) -> Any:
        """Make them on a device."""
        ...


def same_class(batch: int, height: int, width: int, *, device: torch.device) -> torch.Tensor:
    """Labels (batch,) of the first class."""
    return torch.zeros(batch, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Goal:
    """Targets and loss; pickled, so functions of modules.

    A batch of fewer than `least_images` cannot be learnt: BatchNorm has no variance of one value.
    """

    make_targets: MakeTargets = same_class
    criterion: BatchLoss = LABELS
    least_images: int = 1


CLASSES = Goal()
"""Classes of images."""
