"""Tasks of a sweep: which heads they have, what they read by default, and what does not fit, before any work starts.

Heads are as published. Of Mask R-CNN that is 1,000 proposals and 512 regions to learn from, 67 GMAC of a 64 px image;
a few CPU cores train it on small images with

    --set head.width=64 --set head.box_width=256 --set head.proposals=100 --set head.rois_per_image=64
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from ablations.study import Axes, Cell
from ablations.values import HEADS
from attention_zoo.registry import suggest
from runners.cells.plan_training import Spelling
from runners.cells.task_data import CLASSIFY
from runners.cells.tasks import Fields

HEAD = "head"
"""Owner of the settings that are fields of the head of a dense task."""

DENSE_DATA = "scenes"
"""What dense tasks read where no data are named."""


class TaskChoice(NamedTuple):
    """A task with a head and its fields, as a cell has them, and the data that a sweep names for it."""

    task: str
    head: str
    head_settings: Fields
    data: tuple[str, ...]

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a cell."""
        return {"task": self.task, "head": self.head, "head_settings": self.head_settings}


def tasks_of(axes: Axes, spell: Spelling) -> Iterable[TaskChoice]:
    """Tasks with their heads and the products of the fields of these.

    Raises:
        ValueError: a head that no selected task has, or a field that no selected head has.
    """
    allowed = [head for task in axes.task for head in HEADS[task]]
    for head in axes.head or ():
        if head not in allowed:
            listed = ", ".join(f"{task}: {'|'.join(HEADS[task]) or 'none'}" for task in axes.task)
            raise ValueError(f"{spell('head', [head])}: the task does not have it; heads of {listed}")
    chosen = {task: _heads(task, axes.head) for task in axes.task}
    setting = [(name.rpartition(".")[2], values) for name, values in axes.settings if name.startswith(f"{HEAD}.")]
    for name, _ in setting:
        selected = [head for heads in chosen.values() for head in heads if head]
        known = {field for head in selected for field in swept_fields(head)}
        if name not in known:
            shown = spell(f"{HEAD}.{name}", [])
            if not selected:
                raise ValueError(f"{shown}: task={', '.join(axes.task)} has no head")
            owners = ", ".join(selected)
            raise ValueError(f"{shown}: {suggest(f'field of {owners}', name, sorted(known))}")
    for task, heads in chosen.items():
        data = axes.data or ((DENSE_DATA,) if task != CLASSIFY else (Cell.data,))
        for head in heads:
            for fields in _products(head, setting, spell):
                yield TaskChoice(task, head, fields, data)


def swept_fields(head: str) -> dict[str, Any]:
    """Fields of a head that hold one number, and their defaults: what a sweep can set."""
    if not head:
        return {}
    from attention_zoo.dense import head_fields  # a second of torchvision, which classification does without

    fields = head_fields(head)
    return {name: value for name, value in fields.items() if isinstance(value, int | float)}


def _heads(task: str, given: tuple[str, ...] | None) -> tuple[str, ...]:
    own = HEADS[task]
    if not own:
        return ("",)
    return tuple(head for head in given if head in own) or own[:1] if given else own[:1]


def _products(head: str, setting: list[tuple[str, tuple[str, ...]]], spell: Spelling) -> Iterable[Fields]:
    """Products of the fields of a head, typed as their defaults are; what equals the default is left out."""
    own = swept_fields(head)
    having = [(name, values) for name, values in setting if name in own]
    for combination in itertools.product(*(values for _, values in having)):
        typed = {}
        for (name, _), text in zip(having, combination, strict=True):
            kind = type(own[name])
            try:
                typed[name] = kind(text)
            except ValueError as error:
                shown = spell(f"{HEAD}.{name}", [text])
                wanted = "an integer" if kind is int else "with or without a point"
                raise ValueError(f"{shown}: a number as its default {own[name]} is expected, {wanted}") from error
        yield tuple(sorted((name, value) for name, value in typed.items() if value != own[name]))
