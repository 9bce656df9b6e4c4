"""What a configuration and a cell are called, in every list, table and figure."""

import re
from collections.abc import Mapping
from typing import Any

from ablations.study import Cell

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal acts on or nothing shows: control characters, marks of direction, half surrogates."""


_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_name(text: Any) -> bool:
    """Whether a value that was read somewhere can be the name of one file here: a study, a measure, a device."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_key(text: Any) -> bool:
    """Whether a value that was read somewhere can be the key of a cell."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def visible(text: str) -> str:
    """Show control characters of a text, which may be anybody's, as a Python string would; lines and tabs stay."""
    if text.isprintable():
        return text
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def configuration_name(attention: str, settings: Mapping[str, Any]) -> str:
    """Name of a mechanism with its settings, top-k first: `bra topk=8 lepe=false`."""
    names = sorted(settings, key=lambda name: (name != "topk", name))
    return " ".join([attention, *(f"{name}={as_text(settings[name])}" for name in names)])


def cell_name(cell: Cell) -> str:
    """Name of a cell: its model, or its configuration with the top-k also where that is the default; and its input."""
    settings = {name: value for name, value in cell.defaults if name == "topk"} | dict(cell.settings)
    subject = cell.model or f"{configuration_name(cell.attn, settings)} {cell.layout}"
    task = f" {configuration_name(cell.head, dict(cell.head_settings))}" if cell.head else ""
    return f"{subject}{task} {cell.height_px}x{cell.width_px} {cell.data} seed {cell.seed}"


def as_text(value: Any) -> str:
    """Write a value into one field of text: per-stage values are joined by dashes, named ones by semicolons."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(map(as_text, value))
    if isinstance(value, Mapping):
        return ";".join(f"{name}={as_text(item)}" for name, item in sorted(value.items()))
    return str(value)
