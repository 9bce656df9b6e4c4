"""The small files of a cell: what `cell.json` says, if it is the cell's own, and how far a job is."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ablations.study import Cell, key_of
from runners.store.names import cell_name

SCHEMA = 1


def cell_text(cell: Cell) -> str:
    """Content of `cell.json`."""
    content = {"label": cell_name(cell), "cell": cell.to_dict(), "defaults": dict(cell.defaults)}
    return json.dumps({"schema": SCHEMA, "sha256": _digest(content), **content}, indent=2, default=str) + "\n"


def fields_of(content: Any, key: str) -> dict[str, Any] | None:
    """Fields of a cell, and the defaults of its mechanism, from what was read; None if it is not the cell of `key`."""
    cell = content.get("cell") if isinstance(content, dict) else None
    if not isinstance(cell, dict) or not isinstance(cell.get("settings", {}), dict) or key_of(cell) != key:
        return None
    # cells of earlier versions lack the defaults, or the checksum
    defaults = content.get("defaults")
    if not isinstance(defaults, dict):
        return cell
    if content.get("sha256", digest := _digest(content)) != digest:
        return None
    return {**cell, "defaults": defaults}


def _digest(content: Mapping[str, Any]) -> str:
    """Checksum of what a cell's file says, as it reads in JSON."""
    checked = {name: content.get(name) for name in ("label", "cell", "defaults")}
    return hashlib.sha256(json.dumps(checked, sort_keys=True, default=str).encode()).hexdigest()


def sound_progress(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a job says of its progress; what is of another type is left out."""
    return {name: content[name] for name, fits in _PROGRESS.items() if fits(content.get(name))}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


_PROGRESS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("measure", "slurm_job", "updated_at"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("step", "steps", "pid"), _is_count),
    **dict.fromkeys(("loss", "seconds_per_step"), lambda value: type(value) in (int, float) and abs(value) < 1e300),
}
"""What a job says of its progress, and whether a value can be that."""
