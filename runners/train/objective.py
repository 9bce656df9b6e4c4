"""What a training is for: its loss, and how its model is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from runners.data.datasets import Data
from runners.machine.conditions import Conditions
from runners.train.criterion import BatchLoss, make_criterion
from runners.train.distributed import Group
from runners.train.evaluation import Quality, evaluate
from runners.train.recipe import Recipe


class Evaluate(Protocol):
    """Judges a model on the test images, which the processes of a group share out."""

    def __call__(
        self, model: nn.Module, data: Data, *, device: torch.device, conditions: Conditions, group: Group
    ) -> Quality:
        """Leave the model in evaluation mode; each process gets the columns of all."""
        ...


@dataclass(frozen=True)
class Objective:
    """The loss of a task and its evaluation.

    Attributes:
        metric: the column that says how good a model is, percent, higher is better.
        criterion: makes the loss of a recipe, with a teacher or without.
        evaluate: judges a model.
    """

    metric: str
    criterion: Callable[[Recipe, nn.Module | None], BatchLoss]
    evaluate: Evaluate


CLASSIFY = Objective("acc1", make_criterion, evaluate)
"""Classes of images."""
