"""The loss of a recipe: labels, what a teacher says of the images, and labels of the places of the last map."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runners.train.distillation import hard_distillation, soft_distillation
from runners.train.recipe import PROBE, Recipe
from runners.train.token_labels import labels_of, token_loss

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of logits (B, C) in fp32 and labels (B,) or shares of classes (B, C)."""

Output = Tensor | tuple[Tensor, Tensor]
"""Logits (B, C) of a model, and of one that is `Dense` those of the places of its last map, (B, H, W, C)."""


class BatchLoss(Protocol):
    """Mean loss of a batch, in fp32, of what a model gives for its images; `train_step` works with any of them.

    Attributes:
        in_model: the model computes its losses itself, so it is called with the targets as well: `model(images,
            targets)`. The wrapper that adds up the gradients of several processes must see them go by.
    """

    in_model: ClassVar[bool]

    def __call__(self, output: Any, targets: Any, images: Tensor, token_targets: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        ...


@dataclass(frozen=True)
class Criterion:
    """Mean loss of what a model gives for images: (1 - alpha) labels + alpha distillation + token_weight tokens."""

    in_model: ClassVar[bool] = False

    label_loss: LabelLoss = F.cross_entropy
    recipe: Recipe = PROBE
    teacher: nn.Module | None = None

    def __call__(self, output: Output, targets: Tensor, images: Tensor, token_targets: Tensor | None = None) -> Tensor:
        """Return the loss of a batch; `token_targets` (B, H, W, C) label places if no teacher does."""
        logits, places = _parts(output)
        loss = self.label_loss(logits, targets)
        if self.teacher is None and token_targets is None:
            return loss
        taught, taught_places = logits, None
        if self.teacher is not None:
            with torch.no_grad():
                taught, taught_places = _parts(self.teacher(images))
        recipe = self.recipe
        if recipe.distillation != "none":
            is_soft = recipe.distillation == "soft"
            tau = recipe.distillation_tau
            learned = soft_distillation(logits, taught, tau) if is_soft else hard_distillation(logits, taught)
            loss = (1 - recipe.distillation_alpha) * loss + recipe.distillation_alpha * learned
        if places is not None:
            if token_targets is None:
                assert taught_places is not None
                token_targets = labels_of(taught_places, places.shape[1], places.shape[2])
            loss = loss + recipe.token_weight * token_loss(places, token_targets)
        return loss


LABELS = Criterion()
"""Cross-entropy with the labels alone."""


def _parts(output: Output) -> tuple[Tensor, Tensor | None]:
    """Logits of images and of places in fp32."""
    if isinstance(output, Tensor):
        return output.float(), None
    return output[0].float(), output[1].float()


def make_criterion(recipe: Recipe, teacher: nn.Module | None = None) -> Criterion:
    """Return the loss of a recipe; where images are mixed, the labels are smoothed with them."""
    label_loss: LabelLoss = F.cross_entropy
    if recipe.mixes or recipe.smoothing:
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # seconds of import

        label_loss = SoftTargetCrossEntropy() if recipe.mixes else LabelSmoothingCrossEntropy(recipe.smoothing)
    return Criterion(label_loss, recipe, teacher)
