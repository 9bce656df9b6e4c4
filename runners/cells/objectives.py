"""What the training of a cell is for: the loss of its task, its evaluation, and the column that says how good it is."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ablations.study import Cell
from runners.cells.task_data import CLASSIFY
from runners.data.datasets import Data
from runners.machine.conditions import Conditions
from runners.measures import QUALITY_OF
from runners.train.criterion import BatchLoss
from runners.train.distributed import Group
from runners.train.evaluation import Quality
from runners.train.objective import CLASSIFY as CLASSES
from runners.train.objective import Objective
from runners.train.recipe import Recipe
from runners.train.recipes import make_recipe


@dataclass
class Evaluated:
    """What the latest evaluation of a model found beside its columns, and of no other model.

    Attributes:
        model: the one.
        found: `runners.dense.segmentation.Segmented` or `runners.dense.detection.Detected`, None before any.
    """

    model: nn.Module
    found: Any = None


def objective_of(cell: Cell, evaluated: Evaluated | None = None) -> Objective:
    """Return what a cell is trained for; `evaluated` is told what the evaluations of a dense task find."""
    if cell.task == CLASSIFY:
        return CLASSES
    scales = make_recipe(cell.recipe, cell.training).eval_scales
    evaluate = functools.partial(_evaluate, cell.task, evaluated, scales)
    return Objective(QUALITY_OF[cell.task].column, functools.partial(_criterion, cell.task), evaluate)


def _criterion(task: str, recipe: Recipe, teacher: nn.Module | None) -> BatchLoss:
    from runners.dense.losses import make_dense_criterion  # most cells are of another task

    return make_dense_criterion(task)


def _evaluate(
    task: str,
    evaluated: Evaluated | None,
    scales: bool,
    model: nn.Module,
    data: Data,
    *,
    device: torch.device,
    conditions: Conditions,
    group: Group,
) -> Quality:
    given: dict[str, Any] = {"device": device, "conditions": conditions, "group": group}
    dense: Any = data
    if task == "segment":
        from runners.dense.segmentation import MULTI_SCALES, count_pixels

        more: dict[str, Any] = {"scales": MULTI_SCALES, "flip": True} if scales else {}
        found: Any = count_pixels(model, dense, **given, **more)
    else:
        from runners.dense.detection import detect_all

        found = detect_all(model, dense, masks=task == "instance", **given)
    if evaluated is not None and model is evaluated.model:
        evaluated.found = found
    quality: Quality = found.columns()
    return quality
