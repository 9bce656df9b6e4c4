"""What a configuration and a cell are called, in every list, table and figure."""

from collections.abc import Mapping
from typing import Any

from ablations.study import Cell


def configuration_name(attention: str, settings: Mapping[str, Any]) -> str:
    """Name of a mechanism with its settings, top-k first: `bra topk=8 lepe=false`."""
    names = sorted(settings, key=lambda name: (name != "topk", name))
    return " ".join([attention, *(f"{name}={as_text(settings[name])}" for name in names)])


def cell_name(cell: Cell) -> str:
    """Name of a cell: its configuration, with the top-k also where that is the default, and what it is measured on."""
    settings = {name: value for name, value in cell.defaults if name == "topk"} | dict(cell.settings)
    configuration = configuration_name(cell.attn, settings)
    return f"{configuration} {cell.layout} {cell.height_px}x{cell.width_px} {cell.data} seed {cell.seed}"


def as_text(value: Any) -> str:
    """Write a value into one field of text: per-stage values are joined by dashes, named ones by semicolons."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(map(as_text, value))
    if isinstance(value, Mapping):
        return ";".join(f"{name}={as_text(item)}" for name, item in sorted(value.items()))
    return str(value)
