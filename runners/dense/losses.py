"""Losses of the dense tasks, which `runners.train.step.train_step` calls as it calls that of classification."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from runners.train.criterion import BatchLoss

IGNORE = 255
"""Label of a pixel that belongs to no class: it is neither learned nor evaluated."""

AUXILIARY_WEIGHT = 0.4
"""Of the loss of an auxiliary head, as UPerNet is trained by mmsegmentation and in arXiv:1612.01105, section 4.1."""


@dataclass(frozen=True)
class SegmentationLoss:
    """Cross-entropy of logits (B, C, H, W) with labels (B, H, W), plus `auxiliary_weight` times that of a second map.

    The mean is over all pixels, the ignored ones counting 0, which is what mmsegmentation computes
    (`avg_non_ignore=False`) and the published recipes were tuned with. It makes the loss of a batch the mean of those
    of its parts, however many pixels of each are ignored; a part without labels has loss 0 and gradients of 0.
    """

    in_model: ClassVar[bool] = False

    auxiliary_weight: float = AUXILIARY_WEIGHT

    def __call__(
        self,
        output: Tensor | tuple[Tensor, Tensor],
        targets: Tensor,
        images: Tensor,
        token_targets: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of logits, or of (logits, auxiliary logits), as a scalar in fp32."""
        if isinstance(output, Tensor):
            return _pixel_loss(output, targets)
        logits, auxiliary = output
        return _pixel_loss(logits, targets) + self.auxiliary_weight * _pixel_loss(auxiliary, targets)


@dataclass(frozen=True)
class DetectionLoss:
    """Sum of the losses that a detector computes itself, as torchvision's do in training.

    RetinaNet's are means over images, so accumulated parts add up to the whole batch. Those of Mask R-CNN are means
    over the regions that it samples from all of its images, and follow from how a batch is split.
    """

    in_model: ClassVar[bool] = True

    def __call__(
        self, output: Mapping[str, Tensor], targets: Any, images: Tensor, token_targets: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the losses by name, as a scalar in fp32.

        Raises:
            ValueError: the model returned no losses, as a detector in evaluation mode does.
        """
        if not isinstance(output, Mapping) or not output:
            raise ValueError(
                f"a detector in training returns a dict of losses, got {type(output).__name__} of {len(output)}; "
                "call model.train() first"
            )
        return torch.stack([loss.float() for loss in output.values()]).sum()


def make_dense_criterion(task: str) -> BatchLoss:
    """Return the loss of a task.

    Raises:
        ValueError: it is no dense task.
    """
    losses: dict[str, BatchLoss] = {
        "segment": SegmentationLoss(),
        "detect": DetectionLoss(),
        "instance": DetectionLoss(),
    }
    if task not in losses:
        raise ValueError(f"task must be one of {', '.join(losses)}, got {task!r}")
    return losses[task]


def _pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    # not reduction="mean": that divides by the labelled pixels, and is NaN where there are none
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / labels.numel()
