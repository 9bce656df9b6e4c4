"""Evaluations between two steps of a training, which change no bit of it.

A recipe asks for them once in so many epochs, and a stated accuracy is looked for after each twentieth of the steps.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from runners.train.evaluation import Quality
from runners.train.resume import Checkpoint, Evaluation, Training

LOOKS = 20
"""Times in a training at which a stated accuracy is looked for."""


class Looks:
    """Evaluates the model after the steps at which that is due; of several processes each has one."""

    def __init__(
        self,
        training: Training,
        measure: Callable[[nn.Module], Quality],
        *,
        metric: str = "acc1",
        steps: int,
        every: int = 0,
        target_acc: float | None = None,
        checkpoint: Checkpoint | None = None,
        tell: Callable[[int, float, float | None], None] | None = None,
    ) -> None:
        """Say when to look: after every so many steps (0: never), and for a stated accuracy 20 times in all.

        `measure` returns `metric` and val_loss of a model; `tell` is given step, metric and val_loss of each look. The
        last step is left to the evaluation that ends a training.
        """
        self.training, self.measure, self.target_acc, self.checkpoint = training, measure, target_acc, checkpoint
        self.tell, self.metric = tell, metric
        self._evaluations = set(range(every, steps, every)) if every else set[int]()
        self._searches = {math.ceil(index * steps / LOOKS) for index in range(1, LOOKS + 1)}

    def __call__(self) -> None:
        """Look, if that is due after the present step and has not been done before its state was saved."""
        training = self.training
        step, seconds = training.step, training.seconds
        evaluates = step in self._evaluations
        searches = self.target_acc is not None and training.reached is None and step in self._searches
        if step == training.looked or not (evaluates or searches):
            return
        with self._at_rest():
            quality = self._measure()
        training.looked = step
        found = Evaluation(step, score_of(quality, self.metric), quality.get("val_loss"))
        if self.tell is not None:
            self.tell(*found)
        if searches and self.target_acc is not None and found.score >= self.target_acc:
            training.reached = step, seconds
        if evaluates:
            training.note(found)

    def _measure(self) -> Quality:
        device = next(self.training.model.parameters()).device
        # a copy: what a model caches in inference mode cannot be trained with
        subject = copy.deepcopy(self.training.model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return self.measure(subject)

    def _at_rest(self) -> AbstractContextManager[None]:
        return self.checkpoint.at_rest(self.training) if self.checkpoint else nullcontext()


def score_of(quality: Quality, metric: str) -> float:
    """The metric among the columns of an evaluation.

    Raises:
        ValueError: the test has nothing that it is of.
    """
    score = quality[metric]
    if score is None:
        raise ValueError(f"the test has nothing that counts, so there is no {metric}")
    return score


def best_columns(evaluations: list[Evaluation], metric: str = "acc1") -> dict[str, float | int | None]:
    """Columns of the first evaluation with the highest metric; empty where there is none."""
    best = max(evaluations, key=lambda evaluation: evaluation.score, default=None)
    return {f"{metric}_best": best and best.score, "best_step": best and best.step}


def curves(evaluations: list[Evaluation], metric: str = "acc1") -> dict[str, list[float | None]]:
    """Samples of a record: what each evaluation found."""
    names = {"step": "step", "score": metric, "val_loss": "val_loss"}
    return {
        f"eval_{name}": [getattr(each, field) for each in evaluations] for field, name in names.items() if evaluations
    }
