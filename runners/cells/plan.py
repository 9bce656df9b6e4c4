"""From axes to cells: which axis multiplies which mechanism, and every error before any work starts."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ablations.study import Axes, Cell, Scalar, cell_key
from attention_zoo import LAYOUTS, names, resolve
from attention_zoo.config import field_names, parse_values
from attention_zoo.registry import suggest
from runners.cells.models import identity, notes, training_macs
from runners.data.datasets import check_data, steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they run, each once, and what the user should know about them."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def make_plan(all_axes: Iterable[Axes]) -> Plan:
    """Expand axes into cells and check each against its maps.

    Raises:
        ValueError: unknown mechanism, layout, field or data; a flag that no selected mechanism has; a value that does
            not fit a map. One message that names flag or argument, value and what is allowed.
    """
    cells: dict[str, Cell] = {}
    remarks: dict[str, None] = {}
    for axes in all_axes:
        selected = _selected(axes)
        remarks.update(dict.fromkeys(_check_settings(axes, selected)))
        for cell in _expand(axes, selected):
            cells.setdefault(cell_key(cell), cell)
    for cell in cells.values():
        _check(cell)
        remarks.update(dict.fromkeys(notes(cell.attn, cell.settings, cell.layout)))
    return Plan(tuple(cells.values()), tuple(remarks))


def _selected(axes: Axes) -> list[str]:
    selected = list(dict.fromkeys(itertools.chain(*(names() if name == "all" else [name] for name in axes.attn))))
    for name in selected:
        try:
            resolve(name)
        except ValueError as error:
            raise ValueError(f"--attn: {error}") from error
    return selected


def _fields(name: str) -> list[str]:
    return field_names(resolve(name).Config)


def _flag(setting: str) -> str:
    """How a setting is spelled on the command line."""
    return f"--set {setting}" if "." in setting else f"--{setting.replace('_', '-')}"


def _applies(setting: str, name: str) -> bool:
    """Whether a setting is one of a mechanism: `field` of all that have it, `Class.field` also of module:Class."""
    owner, _, field = setting.rpartition(".")
    return owner in (name, name.partition(":")[2]) if owner else field in _fields(name)


def _check_settings(axes: Axes, selected: list[str]) -> list[str]:
    """Refuse settings that reach no selected mechanism; say of the others which cells they multiply."""
    remarks = []
    for setting, values in axes.settings:
        owner, _, field = setting.rpartition(".")
        shown = f"{_flag(setting)}{'=' if owner else ' '}{','.join(values)}"
        having = [name for name in selected if _applies(setting, name)]
        if owner and not having:
            raise ValueError(f"{shown}: {owner!r} is not selected; --attn has {', '.join(selected)}")
        for name in having:
            if field not in _fields(name):
                raise ValueError(f"{shown}: {suggest(f'field of {owner}', field, _fields(name))}")
        if not having:
            owners = [name for name in names() if field in _fields(name)]
            raise ValueError(
                f"{shown}: none of the selected mechanisms ({', '.join(selected)}) has {field}; "
                f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it"
            )
        without = [name for name in selected if name not in having]
        if without and not owner:
            remarks.append(f"{shown} applies to {', '.join(having)}; it changes nothing of {', '.join(without)}")
    return remarks


def _expand(axes: Axes, selected: list[str]) -> Iterable[Cell]:
    for name in axes.layout:
        if name not in LAYOUTS:
            raise ValueError(f"--layout: {suggest('layout', name, sorted(LAYOUTS))}")
    hosts = [
        (layout, resolution)
        for layout in axes.layout
        for resolution in axes.resolution or ((LAYOUTS[layout].resolution_px,) * 2,)
    ]
    outer = itertools.product(hosts, axes.data, axes.batch_size, axes.precision, axes.threads)
    for (layout, (height, width)), data, batch_size, precision, threads in outer:
        for attn in selected:
            for settings in _settings(axes, attn):
                for steps, seed in itertools.product(_steps(axes, data, batch_size), axes.seeds):
                    yield Cell(
                        attn=attn,
                        settings=settings,
                        layout=layout,
                        height_px=height,
                        width_px=width,
                        seed=seed,
                        data=data,
                        steps=steps,
                        batch_size=batch_size,
                        precision=precision,
                        compile=axes.compile,
                        threads=threads,
                    )


def _settings(axes: Axes, attn: str) -> Iterable[tuple[tuple[str, Scalar], ...]]:
    """Products of a mechanism's own settings, typed; what equals the default is left out, it names the same cell."""
    config = resolve(attn).Config
    own = [(setting, values) for setting, values in axes.settings if _applies(setting, attn)]
    for combination in itertools.product(*(values for _, values in own)):
        typed: dict[str, Scalar] = {}
        for (setting, _), text in zip(own, combination, strict=True):
            field = setting.rpartition(".")[2]
            try:
                values = parse_values(config, field, text)
            except ValueError as error:
                raise ValueError(f"{_flag(setting)}: {error}") from error
            typed[field] = text if len(values) > 1 or isinstance(values[0], tuple) else values[0]
        defaults: dict[str, Any] = vars(config())
        yield tuple(sorted((field, value) for field, value in typed.items() if value != defaults[field]))


def _steps(axes: Axes, data: str, batch_size: int) -> tuple[int, ...]:
    try:
        check_data(data)
        if axes.epochs is None:
            return axes.steps
        per_epoch = steps_per_epoch(data, batch_size)
    except ValueError as error:
        raise ValueError(f"--data: {error}") from error
    if per_epoch is None:
        raise ValueError(f"--epochs {axes.epochs}: {data} is an endless stream; give --steps")
    return (axes.epochs * per_epoch,)


def _check(cell: Cell) -> None:
    settings = ", ".join(f"{name}={value}" for name, value in cell.settings)
    try:
        check_data(cell.data, cell.height_px, cell.width_px)
        identity(cell)
    except ValueError as error:
        raise ValueError(f"{cell.attn}{f' ({settings})' if settings else ''}: {error}") from error


def label(cell: Cell) -> str:
    """Name a cell for people: mechanism, settings and top-k even where it is the default, layout, size, seed."""
    config = resolve(cell.attn).Config()
    shown = {"topk": vars(config)["topk"]} if "topk" in vars(config) else {}
    settings = "".join(f" {name}={value}" for name, value in {**shown, **dict(cell.settings)}.items())
    return f"{cell.attn}{settings} {cell.layout} {cell.height_px}x{cell.width_px} seed {cell.seed}"


def estimate_seconds(cell: Cell, measures: Iterable[str]) -> float:
    """Guess how long a cell takes; rough, since it assumes two CPU cores of 2023."""
    macs = training_macs(cell.attn, cell.settings, cell.layout, cell.height_px, cell.width_px) * cell.batch_size
    step_s = 0.02 + macs / 15e9
    seconds = {"flops": 5.0, "throughput": 7.0, "memory": 8.0 + 3 * step_s, "accuracy": 3.0 + cell.steps * step_s}
    return 4.0 + sum(seconds[measure] for measure in measures)


def command_for(cell: Cell, measures: Iterable[str]) -> str:
    """Write the command that measures a cell again, everything that is not a default spelled out."""
    parts = [f"--attn {cell.attn}"]
    for name, value in cell.settings:
        text = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
        if name in ("topk", "regions", "region_size"):
            parts.append(f"--{name.replace('_', '-')} {text}")
        elif name == "clip_topk" and value:
            parts.append("--clip-topk")
        else:
            parts.append(f"--set {cell.attn}.{name}={text}")
    side = LAYOUTS[cell.layout].resolution_px
    flags = {
        "--layout": (cell.layout, "small"),
        "--resolution": (f"{cell.height_px}x{cell.width_px}", f"{side}x{side}"),
        "--data": (cell.data, "digit-vote"),
        "--steps": (cell.steps, 400),
        "--batch-size": (cell.batch_size, 64),
        "--precision": (cell.precision, "fp32"),
        "--threads": (cell.threads, None),
        "--seeds": (cell.seed, 0),
    }
    parts += [f"{flag} {value}" for flag, (value, default) in flags.items() if value != default]
    parts += ["--compile"] if cell.compile else []
    return f"python runners/sweep.py {' '.join(parts)} --measure {','.join(measures)}"
