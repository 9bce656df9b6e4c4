"""How well a model labels pixels, as mmsegmentation counts it.

One confusion matrix over all validation pixels, without those that are ignored. IoU and accuracy are means over
classes: IoU over those that occur in truth or prediction, accuracy over those that occur in truth, since both are 0 / 0
for the others. Images are judged at the size at which the data give them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runners.dense.evaluating import Columns, LabelData
from runners.dense.losses import IGNORE
from runners.machine.conditions import Conditions
from runners.train.distributed import ALONE, Group
from runners.train.step import PLAIN

MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of mmsegmentation's test with augmentation, each also flipped."""
MULTIPLE_PX = 32
"""Sides of resized images are multiples of it, the stride of the last map: any model takes them."""


@dataclass
class Segmented:
    """Pixels of a validation set by (truth, prediction), (C, C) int64 each, and the losses of its images.

    Attributes:
        plain: of the images as they are.
        augmented: of means over scales and flips, None if there were none.
        losses: sum of the cross-entropies of each image's labelled pixels.
    """

    plain: Tensor
    augmented: Tensor | None = None
    losses: list[float] = field(default_factory=list)

    def columns(self) -> Columns:
        """Return `miou`, `macc`, `aacc` (percent), `val_loss` (nats), `n_eval`; those of `augmented` end in `_ms`.

        Raises:
            ValueError: no pixel has a label, or there are no images.
        """
        if not self.losses:
            raise ValueError("there are no test images, or none of them can be read")
        pixels = int(self.plain.sum())
        if not pixels:
            raise ValueError(f"no pixel of {len(self.losses)} validation images has a label: all are {IGNORE}")
        found: Columns = segmentation_scores(self.plain)
        if self.augmented is not None:
            found |= {f"{name}_ms": value for name, value in segmentation_scores(self.augmented).items()}
        # exact, so that the order of images, which follows from the number of processes, does not matter
        return {**found, "val_loss": math.fsum(self.losses) / pixels, "n_eval": len(self.losses)}


@torch.inference_mode()
def count_pixels(
    model: nn.Module,
    data: LabelData,
    *,
    device: torch.device,
    conditions: Conditions = PLAIN,
    group: Group = ALONE,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Segmented:
    """Label all validation images and count pixels by truth and prediction. Leaves the model in evaluation mode.

    Args:
        model: images (B, 3, H, W) -> logits (B, C, H, W).
        data: labels are (B, H, W), `IGNORE` where there are none; logits are resized to them where sizes differ.
        device: where the model is.
        conditions: how it computes.
        group: the processes that share the images out; each gets the counts of all.
        scales: images are also resized by these factors, and the probabilities averaged, as `MULTI_SCALES`.
        flip: average over mirrored images as well.

    Raises:
        ValueError: no scale, or one that is not positive; a label that is no class.
    """
    if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
        raise ValueError(f"scales must be positive numbers, got {list(scales)}")
    model.eval()
    is_plain = tuple(scales) == (1.0,) and not flip
    counts = torch.zeros((1 if is_plain else 2, data.num_classes, data.num_classes), dtype=torch.int64)
    losses: list[float] = []
    for images, labels in data.eval_batches(group.rank, group.world_size):
        images, labels = conditions.place_images(images, device), labels.to(device)
        with conditions.autocast(device):
            logits = model(images).float()
        if logits.shape[-2:] != labels.shape[-2:]:  # labels may have the size of their file
            logits = resized(logits, labels.shape[-2:])
        counts[0] += confusion_matrix(logits.argmax(1), labels, data.num_classes).cpu()
        # float64 is not to be had on every device
        pixels = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").cpu()
        losses += pixels.double().sum((1, 2)).tolist()
        if not is_plain:
            shares = _mean_shares(model, images, logits, conditions, scales, flip)
            counts[1] += confusion_matrix(shares.argmax(1), labels, data.num_classes).cpu()
    counts = group.total(counts).cpu()
    losses = [loss for part in group.gather(losses) for loss in part]
    return Segmented(counts[0], None if is_plain else counts[1], losses)


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (truth, prediction): classes (B, H, W) and labels (B, H, W) -> (C, C) int64.

    Raises:
        ValueError: a label that is neither a class nor `IGNORE`.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # seconds of import

    strange = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORE)]
    if len(strange):
        raise ValueError(f"labels must be 0 to {num_classes - 1}, or {IGNORE} for none, got {int(strange[0])}")
    # its own checks of the values take longer than the counting
    return multiclass_confusion_matrix(predicted, labels, num_classes, ignore_index=IGNORE, validate_args=False)


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """Return `miou`, `macc`, `aacc` in percent of pixels by (truth, prediction), (C, C)."""
    counts = confusion.double()
    hits, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    # 0 / 0 is NaN, and the class is left out of the mean
    return {
        "miou": 100 * (hits / (truth + predicted - hits)).nanmean().item(),
        "macc": 100 * (hits / truth).nanmean().item(),
        "aacc": 100 * (hits.sum() / truth.sum()).item(),
    }


def _mean_shares(
    model: nn.Module, images: Tensor, logits: Tensor, conditions: Conditions, scales: Sequence[float], flip: bool
) -> Tensor:
    """Mean over scales and flips of the probabilities of classes, (B, C, H, W); `logits` are those of the images."""
    total, count = torch.zeros_like(logits), 0
    for scale in scales:
        for mirrored in (False, True)[: 1 + flip]:
            if scale == 1 and not mirrored:
                seen = logits
            else:
                given = _scaled(images, scale)
                with conditions.autocast(images.device):
                    seen = model(given.flip(-1) if mirrored else given).float()
                seen = seen.flip(-1) if mirrored else seen
                seen = resized(seen, logits.shape[-2:])
            total += seen.softmax(1)
            count += 1
    return total / count


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) at another height and width, as mmseg resizes logits."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Images larger or smaller by a factor, their sides rounded to what any model takes."""
    if scale == 1:
        return images
    sides = [max(MULTIPLE_PX, round(side * scale / MULTIPLE_PX) * MULTIPLE_PX) for side in images.shape[-2:]]
    return resized(images, sides)
