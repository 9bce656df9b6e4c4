"""Optimiser and learning rate of a recipe, by timm."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from runners.train.recipe import PROBE, Recipe

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


def make_optimizer(model: nn.Module, recipe: Recipe = PROBE, batch_size: int = 1) -> torch.optim.Optimizer:
    """Make the optimiser; matrices and convolutions decay, not biases, norms and other parameters of one axis.

    Raises:
        ValueError: timm has no such optimiser.
    """
    from timm.optim import create_optimizer_v2  # seconds of import, which planning does without
    from timm.optim import param_groups_weight_decay as decay_groups

    kept: Any = getattr(model, "no_weight_decay", set)
    names = () if recipe.decay_positions else tuple(kept())
    groups = decay_groups(model, recipe.weight_decay, no_weight_decay_list=names)
    more: dict[str, Any] = {"fused": True} if recipe.fused else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=recipe.optimizer, lr=recipe.peak_lr(batch_size), betas=(recipe.beta1, recipe.beta2), **more
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"optimizer {recipe.optimizer!r} of a recipe cannot be made by timm: {error}") from error
    return optimizer


def make_average(model: nn.Module, recipe: Recipe) -> "ModelEmaV3 | None":
    """Make the moving average of the weights, None where a recipe has none."""
    if not recipe.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=recipe.ema)


class Schedule:
    """Sets the learning rate of each step of a training."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        steps: int,
        steps_per_epoch: int | None,
        batch_size: int = 1,
    ) -> None:
        """Describe a training of `steps` steps of `batch_size` images over all processes.

        Raises:
            ValueError: the recipe changes the rate by epochs, and the data have no end.
        """
        self.optimizer, self.recipe, self.steps = optimizer, recipe, steps
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self._epochs: Any = None
        if recipe.schedule == "epochs":
            if steps_per_epoch is None:
                raise ValueError("schedule=epochs needs data with epochs; an endless stream has none")
            from timm.scheduler import CosineLRScheduler

            self._epochs = CosineLRScheduler(
                optimizer,
                t_initial=-(-steps // steps_per_epoch),
                lr_min=recipe.min_lr,
                warmup_t=recipe.warmup_epochs,
                warmup_lr_init=recipe.warmup_lr,
            )

    def set(self, step: int) -> float:
        """Set the rate of a step, counted from 0, and return it."""
        if self._epochs is None:
            rate = self.recipe.learning_rate_at(step, self.steps, self.batch_size)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            return rate
        assert self.steps_per_epoch is not None
        # DeiT's loop sets the rate after an epoch, by that epoch's number: each epoch has the rate of the one before
        self._epochs.step(max(0, step // self.steps_per_epoch - 1))
        return float(self.optimizer.param_groups[0]["lr"])
