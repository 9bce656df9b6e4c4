"""Cells and studies: pure data, no tensors, so that planning never imports torch."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep: everything that decides its accuracy and its costs, the device excepted.

    A default never changes: `cell_key` leaves defaults out, so a new field finds the old cells again.
    `settings` holds the mechanism's config fields as sorted (name, value) pairs; a value that differs between
    stages is a string with dashes, `"1-4-16-full"`. `defaults` holds the mechanism's other fields, for readers of the
    cell; the key leaves them out, as all defaults.
    """

    attn: str = "bra"
    settings: tuple[tuple[str, Scalar], ...] = ()
    layout: str = "small"
    height_px: int = 64
    width_px: int = 64
    seed: int = 0
    data: str = "digit-vote"
    steps: int = 400
    batch_size: int = 64
    precision: str = "fp32"
    compile: bool = False
    threads: int | None = field(default=None)
    defaults: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        changed.pop("defaults", None)
        if "settings" in changed:
            changed["settings"] = dict(self.settings)
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
        for name in values.keys() & {"settings", "defaults"}:
            if not isinstance(data[name], dict):
                raise ValueError(f"cell {name} must be an object, got {data[name]!r}")
            values[name] = tuple(sorted(data[name].items()))
        return cls(**values)


def cell_key(cell: Cell) -> str:
    """Name of the cell's folder: 16 hex digits of the SHA-256 of what differs from the defaults."""
    canonical = json.dumps(cell.to_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A product of values, each axis a tuple; what a command line or a study declares.

    `settings` maps a config field to its values as text: `topk` for every mechanism that has it, `swin.window` for
    one. `resolution` holds (height, width) in pixels; None is the layout's own. `epochs` replaces `steps` where given.
    """

    attn: tuple[str, ...] = ("bra",)
    settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    layout: tuple[str, ...] = ("small",)
    resolution: tuple[tuple[int, int], ...] | None = None
    seeds: tuple[int, ...] = (0,)
    data: tuple[str, ...] = ("digit-vote",)
    steps: tuple[int, ...] = (400,)
    epochs: int | None = None
    batch_size: tuple[int, ...] = (64,)
    precision: tuple[str, ...] = ("fp32",)
    compile: bool = False
    threads: tuple[int | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what is expected, and the cells that answer it (the union of its axes).

    `slurm` holds what its jobs ask of SLURM unless the command line says otherwise: options of sbatch by their long
    names, such as `(("time", "2:00:00"), ("gpus-per-node", "1"))`.
    """

    name: str
    question: str
    expectation: str
    axes: tuple[Axes, ...]
    measures: tuple[str, ...] = ("flops", "throughput", "memory", "accuracy")
    slurm: tuple[tuple[str, str], ...] = ()
