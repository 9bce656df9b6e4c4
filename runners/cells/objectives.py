"""What the training of a cell is for: the loss of its task, its evaluation, and the column that says how good it is."""

import functools
from typing import Any

import torch
from torch import nn

from ablations.study import Cell
from runners.cells.task_data import CLASSIFY
from runners.data.datasets import Data
from runners.machine.conditions import Conditions
from runners.train.criterion import BatchLoss
from runners.train.distributed import Group
from runners.train.objective import CLASSIFY as CLASSES
from runners.train.objective import Objective, Quality
from runners.train.recipe import Recipe

METRICS = {"classify": "acc1", "segment": "miou", "detect": "ap", "instance": "ap_mask"}
"""By task: the column that says how good a model is."""


def objective_of(cell: Cell) -> Objective:
    """Return what a cell is trained for."""
    if cell.task == CLASSIFY:
        return CLASSES
    evaluate = functools.partial(_evaluate, cell.task)
    return Objective(METRICS[cell.task], functools.partial(_criterion, cell.task), evaluate)


def _criterion(task: str, recipe: Recipe, teacher: nn.Module | None) -> BatchLoss:
    from runners.dense.losses import make_dense_criterion  # most cells are of another task

    return make_dense_criterion(task)


def _evaluate(
    task: str, model: nn.Module, data: Data, *, device: torch.device, conditions: Conditions, group: Group
) -> Quality:
    given: dict[str, Any] = {"device": device, "conditions": conditions, "group": group}
    dense: Any = data
    if task == "segment":
        from runners.dense.segmentation import evaluate_segmentation

        return evaluate_segmentation(model, dense, **given)
    from runners.dense.detection import evaluate_detection

    return evaluate_detection(model, dense, masks=task == "instance", **given)
