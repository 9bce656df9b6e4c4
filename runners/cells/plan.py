"""From axes to cells: which axis multiplies which mechanism, and every error before any work starts."""

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ablations.study import ARGUMENTS, SHORT_FLAGS, Axes, Cell, Scalar, cell_key
from ablations.values import as_text
from attention_zoo import LAYOUTS, names, resolve
from attention_zoo.config import field_names, parse_values
from attention_zoo.registry import suggest
from runners.cells.models import Description, describe
from runners.cells.named import check_model, own_resolution
from runners.cells.plan_tasks import HEAD, tasks_of
from runners.cells.plan_training import (
    RECIPE,
    Spelling,
    check_training,
    lengths_of,
    recipes_of,
)
from runners.cells.task_data import check_data_of
from runners.cells.tasks import published_regions
from runners.measures import MEASURES

CONDITIONS = ("precision", "threads", "compile", "sdpa", "memory_format", "deterministic", "cudnn_benchmark")
AXES = (*CONDITIONS, "baseline")
"""Axes that may differ for every cell. `CONDITIONS` say how numbers are computed, not which."""

TRAINING = ("strict_data", "init_from", "reset_classes", "freeze", "target_acc")
"""Axes that say how a model is trained, beside data, recipe and batch size."""


def as_keyword(name: str, values: Sequence[str]) -> str:
    """Spell an argument as in Python: `topk=1,8`."""
    return f"{name}={'True' if list(values) == ['on'] else ','.join(values)}" if values else name


def as_flag(name: str, values: Sequence[str]) -> str:
    """Spell an argument as on the command line: `--topk 1,8`, `--clip-topk`, `--set swin.window=2,4`."""
    if "." in name:
        return f"--set {name}={','.join(values)}" if values else f"--set {name}"
    flag = f"--{name.replace('_', '-')}"
    return flag if list(values) in ([], ["on"]) else f"{flag} {','.join(values)}"


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they run, each once, and what the user should know about them."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def make_plan(all_axes: Iterable[Axes], spell: Spelling = as_keyword) -> Plan:
    """Expand axes into cells and check each against its maps.

    Raises:
        ValueError: unknown mechanism, layout, field or data; a field that no selected mechanism has; a value that does
            not fit a map. One message that names the argument as `spell` does, the value and what is allowed.
    """
    cells: dict[str, Cell] = {}
    remarks: dict[str, None] = {}
    for axes in all_axes:
        selected = _selected(axes, spell)
        remarks.update(dict.fromkeys(_check_settings(axes, selected, spell)))
        for cell in _expand(axes, selected, spell):
            cells.setdefault(cell_key(cell), cell)
    for cell in cells.values():
        remarks.update(dict.fromkeys(_check(cell).notes))
    return Plan(tuple(cells.values()), tuple(remarks))


def _selected(axes: Axes, spell: Spelling) -> list[str]:
    if axes.model and axes.attn is None:
        return []
    attn = axes.attn or (Cell.attn,)
    selected = list(dict.fromkeys(itertools.chain(*(names() if name == "all" else [name] for name in attn))))
    for name in selected:
        try:
            resolve(name)
        except ValueError as error:
            raise ValueError(f"{spell('attn', [])}: {error}") from error
    return selected


def _fields(name: str) -> list[str]:
    return field_names(resolve(name).Config)


def _applies(setting: str, name: str) -> bool:
    owner, _, field = setting.rpartition(".")
    # the class alone is enough of `package.module:Class`
    return owner in (name, name.partition(":")[2]) if owner else field in _fields(name)


def _check_settings(axes: Axes, selected: list[str], spell: Spelling) -> list[str]:
    """Refuse settings that reach no selected mechanism; say of the others which cells they multiply."""
    if not selected and axes.layout != (Cell.layout,):
        shown = spell("layout", axes.layout)
        raise ValueError(f"{shown}: models have hosts of their own; give {spell('attn', [])} beside them")
    remarks = []
    for setting, values in axes.settings:
        owner, _, field = setting.rpartition(".")
        shown = spell(setting, values)
        if owner in (RECIPE, HEAD):
            continue
        if not selected:
            raise ValueError(f"{shown}: models have no settings of a mechanism; give {spell('attn', [])} beside them")
        having = [name for name in selected if _applies(setting, name)]
        if owner and not having:
            raise ValueError(f"{shown}: {owner!r} is not selected; {spell('attn', [])} has {', '.join(selected)}")
        for name in having:
            if field not in _fields(name):
                raise ValueError(f"{shown}: {suggest(f'field of {name}', field, _fields(name))}")
        if not having:
            raise ValueError(f"{shown}: {_unknown(field, selected)}")
        without = [name for name in selected if name not in having]
        if without and not owner:
            remarks.append(f"{shown} applies to {', '.join(having)}; it changes nothing of {', '.join(without)}")
    return remarks


def _unknown(field: str, selected: list[str]) -> str:
    """Say of a field that no selected mechanism has who else has it, or what it may have been meant for."""
    if others := [name for name in names() if field in _fields(name)]:
        have = "has" if len(others) == 1 else "have"
        return f"none of the selected mechanisms ({', '.join(selected)}) has {field}; {', '.join(others)} {have} it"
    return suggest("argument", field, sorted({*ARGUMENTS, *itertools.chain(*map(_fields, selected))}))


def _expand(axes: Axes, selected: list[str], spell: Spelling) -> Iterable[Cell]:
    for name in axes.layout:
        if name not in LAYOUTS:
            raise ValueError(f"{spell('layout', [])}: {suggest('layout', name, sorted(LAYOUTS))}")
    conditions = [dict(zip(AXES, values, strict=True)) for values in _products(axes, AXES)]
    switches = [dict(zip(TRAINING, values, strict=True)) for values in _products(axes, TRAINING)]
    hosts = [*_mechanisms(axes, selected, spell), *_models(axes, spell)]
    tasks = [
        (task, data, recipe)
        for task in tasks_of(axes, spell)
        for recipe in recipes_of(axes, task.task, spell)
        for data in task.data
    ]
    trained = itertools.product(tasks, switches, axes.batch_size)
    for (subjects, (height, width)), how, under in itertools.product(hosts, trained, conditions):
        (task, data, (recipe_name, training, recipe)), trained_so, batch_size = how
        lengths = lengths_of(axes, task.task, data, recipe, batch_size, spell)
        for subject, steps, seed in itertools.product(subjects, lengths, axes.seeds):
            yield Cell(
                **_for_task(subject, task.task, height, width),
                **task.fields,
                height_px=height,
                width_px=width,
                seed=seed,
                data=data,
                steps=steps,
                recipe=recipe_name,
                training=training,
                tune_lr=axes.tune_lr,
                batch_size=batch_size,
                **trained_so,
                **under,
            )


def _for_task(subject: dict[str, Any], task: str, height_px: int, width_px: int) -> dict[str, Any]:
    """Fields of a cell with the settings that a task gives its mechanism."""
    if not subject["attn"]:
        return subject
    settings = published_regions(subject["attn"], subject["settings"], task, height_px, width_px)
    return subject | {"settings": settings, "defaults": _defaults(subject["attn"], settings)}


Host = tuple[list[dict[str, Any]], tuple[int, int]]
"""Fields of cells that run on images of one size, and that size."""


def _mechanisms(axes: Axes, selected: list[str], spell: Spelling) -> Iterable[Host]:
    """Mechanisms with their settings, in each layout at each resolution."""
    for layout in axes.layout:
        fields_of_layout = [
            {"attn": attn, "settings": settings, "layout": layout, "defaults": _defaults(attn, settings)}
            for attn in selected
            for settings in _settings(axes, attn, spell)
        ]
        for resolution in axes.resolution or ((LAYOUTS[layout].resolution_px,) * 2,):
            yield fields_of_layout, resolution


def _models(axes: Axes, spell: Spelling) -> Iterable[Host]:
    """Models at each resolution, or at their own."""
    for flag, given in (("model", axes.model), ("baseline", filter(None, axes.baseline))):
        for name in given:
            try:
                check_model(name)
            except ValueError as error:
                raise ValueError(f"{spell(flag, [])}: {error}") from error
    for name in axes.model:
        for resolution in axes.resolution or (own_resolution(name),):
            yield [{"attn": "", "layout": "", "model": name}], resolution


def _products(axes: Axes, names: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    return itertools.product(*(getattr(axes, name) for name in names))


def _settings(axes: Axes, attn: str, spell: Spelling) -> Iterable[tuple[tuple[str, Scalar], ...]]:
    """Products of a mechanism's settings, typed; what equals the default is left out, it names the same cell."""
    config = resolve(attn).Config
    defaults: dict[str, Any] = vars(config())
    applying = [(setting, values) for setting, values in axes.settings if _applies(setting, attn)]
    for combination in itertools.product(*(values for _, values in applying)):
        typed: dict[str, Scalar] = {}
        for (setting, _), text in zip(applying, combination, strict=True):
            field = setting.rpartition(".")[2]
            try:
                values = parse_values(config, field, text)
            except ValueError as error:
                raise ValueError(f"{spell(setting, [])}: {error}") from error
            typed[field] = text if len(values) > 1 or isinstance(values[0], tuple) else values[0]
        yield tuple(sorted((field, value) for field, value in typed.items() if value != defaults[field]))


def _defaults(attn: str, settings: tuple[tuple[str, Scalar], ...]) -> tuple[tuple[str, Any], ...]:
    """Fields of a mechanism that the settings leave as they are."""
    chosen = dict(settings)
    return tuple((name, value) for name, value in sorted(vars(resolve(attn).Config()).items()) if name not in chosen)


def _check(cell: Cell) -> Description:
    check_training(cell)
    settings = ", ".join(f"{name}={value}" for name, value in cell.settings)
    try:
        check_data_of(cell.task, cell.data, cell.height_px, cell.width_px)
        found = describe(cell)
    except ValueError as error:
        raise ValueError(f"{cell.model or cell.attn}{f' ({settings})' if settings else ''}: {error}") from error
    if cell.baseline:
        subject: dict[str, Any] = {"attn": "", "layout": "", "settings": (), "defaults": (), "model": cell.baseline}
        _check(replace(cell, **subject, baseline="", init_from="", reset_classes=False, freeze=False))
    return found


def estimate_seconds(cell: Cell, measures: Iterable[str]) -> float:
    """Guess how long a cell takes; rough, since it assumes two CPU cores of 2023."""
    image_s = describe(cell).training_macs / 15e9
    step_s = 0.02 + image_s * cell.batch_size
    asked = [MEASURES[name] for name in measures]
    steps = sum(cell.steps if measure.training_steps is None else measure.training_steps for measure in asked)
    # a step is a forward and a backward of twice its work
    forwards_s = sum(measure.forwards for measure in asked) * image_s / 3
    return 4.0 + sum(measure.seconds for measure in asked) + steps * step_s + forwards_s


def command_for(cell: Cell, measures: Iterable[str]) -> str:
    """Write the command that measures a cell again, everything that is not a default spelled out."""
    parts = [] if cell.model else [as_flag("attn", [cell.attn])]
    for name, value in cell.settings:
        is_short = name in SHORT_FLAGS and value is not False
        parts.append(as_flag(name if is_short else f"{cell.attn}.{name}", [as_text(value)]))
    parts += [as_flag(f"{RECIPE}.{name}", [as_text(value)]) for name, value in cell.training]
    parts += [as_flag(f"{HEAD}.{name}", [as_text(value)]) for name, value in cell.head_settings]
    if (cell.height_px, cell.width_px) != _own_resolution(cell):
        parts.append(as_flag("resolution", [f"{cell.height_px}x{cell.width_px}"]))
    for field in fields(Cell):
        value, argument = getattr(cell, field.name), field.metadata.get("argument")
        if value not in (field.default, "") and argument and argument.name not in ("attn", "resolution"):
            # a path may have spaces
            parts.append(as_flag(argument.name, [shlex.quote(as_text(value))]))
    return f"python runners/sweep.py {' '.join(parts)} --measure {','.join(measures)}"


def _own_resolution(cell: Cell) -> tuple[int, int] | None:
    """What a cell has where no resolution is given; None of a layout or a model that is not known here."""
    if not cell.model:
        side = LAYOUTS[cell.layout].resolution_px if cell.layout in LAYOUTS else None
        return (side, side) if side else None
    try:
        return own_resolution(cell.model)
    except ValueError:  # of another version
        return None
