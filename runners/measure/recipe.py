"""How a model is optimised: AdamW with a linear warm-up and a cosine decay."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is optimised. The learning rate is decisive on the probes: 2e-3 makes learning a lottery."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    final_share: float = 0.02
    clip_norm: float = 1.0

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step (from 0): linear to the peak, then a cosine that the last step ends."""
        warmup = int(self.warmup_share * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - 1 - warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    def learning_rate_rule(self) -> str:
        """Say the learning rate of every step, and that the batch does not move it."""
        return (
            f"{self.learning_rate:g} at any batch size, linear warm-up over {self.warmup_share:g} of the steps, "
            f"cosine to {self.final_share:g} of it"
        )


RECIPE = Recipe()


def make_optimizer(model: nn.Module, recipe: Recipe = RECIPE) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions, not biases, norms and other parameters of at most one axis."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
