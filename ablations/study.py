"""Cells and studies: pure data, no tensors, so that listing studies does not import torch."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any

from ablations.values import (
    EARLIER_PRECISIONS,
    HEADS,
    MEMORY_FORMATS,
    PRECISIONS,
    SDPA,
    Argument,
    argument_field,
    arguments,
    choice,
    data_parts,
    integer,
    percent,
    precision,
    precision_today,
    rates,
    read_values,
    resolution,
    switch,
)

Scalar = bool | int | float | str

SHORT_FLAGS = ("topk", "regions", "region_size", "clip_topk")
"""Fields of mechanisms that have a flag of their own; every other one is reached by --set."""


PAIRS = {"settings", "training", "head_settings"}
"""Fields of a cell that are fields of something else, as (name, value) pairs."""

_STORED_PRECISION = {today: stored for stored, today in EARLIER_PRECISIONS.items()}


def _axis(default: Any, name: str, parse: Callable[[str], Any], metavar: str, text: str, words: str = "") -> Any:
    return argument_field(default, Argument(name, parse, metavar, text, several=True, default=words or str(default)))


def _switch(name: str, text: str) -> Any:
    return argument_field(False, Argument(name, switch, "on|off", text, several=True, default="off", alone=(True,)))


_DATA = Argument(
    "data",
    str,
    "D",
    "digit-vote, digit-recall, fashion-mnist, imagefolder:PATH, timm:NAME,root=PATH, package.module:Class",
    several=True,
    default="digit-vote",
    parts=data_parts,
)


def _heads() -> str:
    return "; ".join(f"{', '.join(heads)} of {task}" for task, heads in HEADS.items() if heads)


_TUNE = Argument("tune_lr", rates, "LR,LR...", "choose the rate by short trainings on training images", default="none")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep: everything that decides its accuracy and its costs, the device excepted.

    A default never changes: `cell_key` leaves defaults out, so a new field finds the old cells again.
    A cell with a `model` has neither `attn` nor `layout`, both "", nor settings.
    `settings` holds the mechanism's config fields as sorted (name, value) pairs; a value that differs between
    stages is a string with dashes, `"1-4-16-full"`. `training` holds fields of the recipe in the same way, and
    `head_settings` those of the head of a dense task. `defaults` holds the mechanism's other fields, for readers of
    the cell; the key leaves them out, as all defaults.
    """

    attn: str = _axis("bra", "attn", str, "A", "mechanisms, 'all', or package.module:Class")
    settings: tuple[tuple[str, Scalar], ...] = ()
    model: str = _axis("", "model", str, "M", "published models, or timm:NAME; alone unless --attn is given", "none")
    baseline: str = _axis("", "baseline", str, "M", "model that vs_vanilla compares with", "vanilla in the same host")
    layout: str = _axis("small", "layout", str, "L", "shared host: small, small32, stl")
    task: str = _axis("classify", "task", choice(*HEADS), "T", f"of {', '.join(HEADS)}")
    head: str = _axis("", "head", str, "H", "what reads the maps of a dense task: " + _heads(), "the task's first")
    head_settings: tuple[tuple[str, Scalar], ...] = ()
    height_px: int = _axis(64, "resolution", resolution, "PX|HxW", "input in pixels", "the layout's own")
    width_px: int = 64
    seed: int = _axis(0, "seeds", integer(0, "a seed"), "N", "seeds, each a cell")
    data: str = argument_field("digit-vote", _DATA)
    steps: int = _axis(400, "steps", integer(1, "a number of steps"), "N", "training steps")
    recipe: str = _axis(
        "probe", "recipe", str, "R", "how a model is trained, see docs/training.md and docs/dense.md", "the task's own"
    )
    training: tuple[tuple[str, Scalar | None], ...] = ()
    strict_data: bool = _switch(
        "strict_data", "an image that cannot be read ends the training, instead of being left out"
    )
    init_from: str = _axis(
        "", "init_from", str, "KEY|FILE", "weights to start from: of a cell that kept them, or a file", "none"
    )
    reset_classes: bool = _switch("reset_classes", "begin with a new classifier where --init-from has another")
    freeze: bool = _switch("freeze", "train the classifier alone, on what --init-from has")
    tune_lr: str = argument_field("", _TUNE)
    target_acc: int | None = _axis(None, "target_acc", percent, "%", "tell when training reaches this acc1", "none")
    batch_size: int = _axis(64, "batch_size", integer(1, "a batch size"), "N", "images")
    precision: str = _axis("fp32", "precision", precision, "P", f"of {', '.join(PRECISIONS)}")
    compile: bool = _switch("compile", "through torch.compile")
    sdpa: str = _axis("auto", "sdpa", choice(*SDPA), "S", f"kernel of torch's attention, of {', '.join(SDPA)}")
    memory_format: str = _axis("contiguous", "memory_format", choice(*MEMORY_FORMATS), "F", " or ".join(MEMORY_FORMATS))
    deterministic: bool = _switch("deterministic", "torch's deterministic algorithms")
    cudnn_benchmark: bool = _switch("cudnn_benchmark", "let cuDNN time its algorithms and choose")
    threads: int | None = _axis(None, "threads", integer(1, "a number of threads"), "N", "CPU threads", "all")
    defaults: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        changed.pop("defaults", None)
        if "precision" in changed:
            changed["precision"] = _STORED_PRECISION.get(self.precision, self.precision)
        for name in changed.keys() & PAIRS:
            changed[name] = dict(changed[name])
        return changed

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Cell":
        """Invert `to_dict`.

        Raises:
            ValueError: a field that this version does not know, or one of another type.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"unknown cell fields {unknown}; known: {', '.join(sorted(known))}")
        values = dict(data)
        for name in values.keys() & {*PAIRS, "defaults"}:
            if not isinstance(data[name], dict):
                raise ValueError(f"cell {name} must be an object, got {data[name]!r}")
            values[name] = tuple(sorted(data[name].items()))
        for name, value in values.items():
            # None is the default of a number
            kinds = {type(default)} if (default := getattr(cls, name)) is not None else {int, NoneType}
            if type(value) not in kinds:
                raise ValueError(f"cell {name} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
        for name in values.keys() & PAIRS:
            if not all(type(value) in (bool, int, float, str, NoneType) for _, value in values[name]):
                raise ValueError(f"{name} of a cell are single values, got {data[name]!r}")
        if "precision" in values:
            values["precision"] = precision_today(values["precision"])
        return cls(**values)


def cell_key(cell: Cell) -> str:
    """Name of the cell's folder: 16 hex digits of the SHA-256 of what differs from the defaults."""
    return key_of(cell.to_dict())


def key_of(changed: Mapping[str, Any]) -> str:
    """Key of the cell that `Cell.to_dict` gave, of a version with other fields too."""
    canonical = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A product of values, each axis a tuple; `a + b` is first the cells of one, then those of the other.

    `settings` maps a config field to its values as text: `topk` for every mechanism that has it, `swin.window` for
    one, `recipe.lr` for the recipes, `head.width` for the heads. `resolution` holds (height, width) in pixels; None is
    the layout's own, and the model's. `epochs` replaces `steps` where given; without both the recipe says how long, or
    the default. Without `attn` there is that of `Cell`, unless there are models; with both, both are measured. Without
    `data`, `recipe` or `head` there is the first of each task.
    """

    attn: tuple[str, ...] | None = None
    settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    model: tuple[str, ...] = ()
    task: tuple[str, ...] = (Cell.task,)
    head: tuple[str, ...] | None = None
    baseline: tuple[str, ...] = (Cell.baseline,)
    layout: tuple[str, ...] = (Cell.layout,)
    resolution: tuple[tuple[int, int], ...] | None = None
    seeds: tuple[int, ...] = (Cell.seed,)
    data: tuple[str, ...] | None = None
    steps: tuple[int, ...] | None = None
    recipe: tuple[str, ...] | None = None
    strict_data: tuple[bool, ...] = (Cell.strict_data,)
    init_from: tuple[str, ...] = (Cell.init_from,)
    reset_classes: tuple[bool, ...] = (Cell.reset_classes,)
    freeze: tuple[bool, ...] = (Cell.freeze,)
    tune_lr: str = Cell.tune_lr
    target_acc: tuple[int | None, ...] = (Cell.target_acc,)
    epochs: int | None = argument_field(
        None, Argument("epochs", integer(1, "a number of epochs"), "N", "instead of steps, where data has an end")
    )
    batch_size: tuple[int, ...] = (Cell.batch_size,)
    precision: tuple[str, ...] = (Cell.precision,)
    compile: tuple[bool, ...] = (Cell.compile,)
    sdpa: tuple[str, ...] = (Cell.sdpa,)
    memory_format: tuple[str, ...] = (Cell.memory_format,)
    deterministic: tuple[bool, ...] = (Cell.deterministic,)
    cudnn_benchmark: tuple[bool, ...] = (Cell.cudnn_benchmark,)
    threads: tuple[int | None, ...] = (Cell.threads,)

    def __add__(self, other: "Axes | tuple[Axes, ...]") -> "tuple[Axes, ...]":
        """Return these cells, and then the others."""
        return (self, other) if isinstance(other, Axes) else (self, *other)

    def __radd__(self, others: "tuple[Axes, ...]") -> "tuple[Axes, ...]":
        """Return the others, and then these cells."""
        return (*others, self)

    def changed(self, values: Mapping[str, Any]) -> "Axes":
        """Return a copy with other values, one or several of each; names that no argument has are fields of mechanisms.

        A list is an axis, a pair (height, width) of integers one value of a size, `seeds=3` the seeds 0, 1 and 2;
        None changes nothing.

        Raises:
            ValueError: a value is not allowed; the message names argument, value and what is allowed.
        """
        given: dict[str, Any] = {}
        settings = dict(self.settings)
        for name, value in values.items():
            if value is None:
                continue
            if name not in ARGUMENTS:
                settings[name] = read_values(name, value, pairs=True)
            else:
                if name == "tune_lr" and not isinstance(value, str):  # several rates are one value
                    value = ",".join(map(str, value))
                is_count = name == "seeds" and isinstance(value, int)
                given[name] = ARGUMENTS[name].read(range(value) if is_count else value)
        return replace(self, **given, settings=tuple(settings.items()))


ARGUMENTS = arguments(Cell, Axes)
"""Arguments of a sweep that say what its cells are, the fields of mechanisms apart."""


class Study:
    """A question, what is expected, and the cells that answer it.

    `slurm` holds what its jobs ask of SLURM unless the command line says otherwise: options of sbatch by their long
    names, such as `{"time": "2:00:00", "gpus-per-node": 1}`.
    """

    def __init__(
        self,
        name: str,
        axes: Axes | tuple[Axes, ...],
        *,
        question: str = "",
        expectation: str = "",
        measures: Iterable[str] = (),
        slurm: Mapping[str, str | int] | Iterable[tuple[str, str]] = (),
        **values: Any,
    ) -> None:
        """Declare a study; `values` hold for all its cells: `seeds=3, resolution=[64, (96, 128)], batch_size=8`.

        Without `measures` those that a sweep takes by default.

        Question and expectation are those of the module's docstring unless they are given: its first paragraph, and
        the one that begins with "Expect:" (`ablations.load_study` reads them).

        Raises:
            ValueError: a value is not allowed; the message names argument, value and what is allowed.
        """
        self.name = name
        self.axes = tuple(one.changed(values) for one in ((axes,) if isinstance(axes, Axes) else axes))
        self.question, self.expectation = question, expectation
        self.measures = tuple(measures)
        self.slurm = tuple((option, str(value)) for option, value in dict(slurm).items())
