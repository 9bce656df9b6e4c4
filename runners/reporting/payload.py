"""What the report's page draws from, as plain data: the columns of its table and the points of its charts."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from runners.figures.looks import MODEL_MARKERS, Look, looks
from runners.measures import COSTS, MEASURES, NOT_FAILED, QUANTITIES, quality_among
from runners.rows import selection
from runners.rows.ranking import Group, mean_intervals
from runners.rows.stats import pareto_front
from runners.store.names import configuration_name

FIRST = (
    *("study", "configuration", "resolution", "seed", "acc1", "miou", "ap", "ap_mask", "gmacs", "params_m"),
    *("infer_latency_ms", "train_step_ms"),
    *("peak_infer_mib", "peak_train_mib", "vs_vanilla", "status", "command"),
)
"""Columns that the table shows at once, and with them those in which two of its rows differ that are else the same."""

IDENTITY = ("study", "configuration", "resolution", "seed")
TELLING = (
    "impl",
    "depths",
    "matmul_precision",
    "cudnn_tf32",
    "world_size",
    "attention_hash",
    "versions",
    "git_sha",
    "host",
)

ORDER = ["attention", "model", "topk", "settings", "layout", "height_px", "width_px", "seed"]

FILTERS = ("study", "attention", "model", "layout", "resolution", "data", "precision", "device_id", "status")
_SYMBOLS: dict[Any, str] = {
    **dict(zip(MODEL_MARKERS, ("star-diamond", "hexagram", "star-square", "star-triangle-up"), strict=True)),
    **{"o": "circle", "s": "square", "D": "diamond", "P": "cross", "X": "x", "p": "pentagon", "h": "hexagon"},
    **{"*": "star", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left", ">": "triangle-right"},
    "d": "diamond-tall",
}
"""matplotlib's markers in plotly's words, so that a mechanism looks the same in figures and charts."""

MOST_CHOICES = 60
"""A filter with more values than this would be no list to choose from."""


def to_script(data: Any) -> str:
    r"""Write data as JSON that no text in it can end: `<` is \u003c, so neither </script> nor <!-- appears.

    An infinity becomes 1e999, which JSON's grammar allows and every reader takes for infinite.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.replace('"\\u0000inf"', "1e999").replace('"\\u0000-inf"', "-1e999")


def table(rows: pd.DataFrame) -> dict[str, Any]:
    """Columns that have any value: numbers as they are, text as distinct levels and a code for each row."""
    rows = selection.as_read(rows).assign(configuration=rows["configuration"]).sort_values(ORDER, kind="stable")
    names = [str(name) for name in rows if rows[name].notna().any() and not (rows[name] == "").all()]
    first = [name for name in FIRST if name in names]
    if selection.disturbed(rows).any():
        first.append("disturbed")
    identity = [name for name in IDENTITY if name in names]
    first = [*identity, *telling(rows, identity), *(name for name in first if name not in identity)]
    about = selection.units(names) | {"configuration": ("", "mechanism and its settings, or model")}
    columns = [
        {"name": name, "unit": about[name][0], "about": about[name][1], "main": name in first, **_values(rows[name])}
        for name in [*first, *(name for name in names if name not in first)]
    ]
    filters = [
        name for name in FILTERS if name in names and 1 < rows[name].replace("", pd.NA).nunique() <= MOST_CHOICES
    ]
    failures = [status for status in rows["status"].unique() if status not in NOT_FAILED]
    return {"size": len(rows), "columns": columns, "filters": filters, "failures": failures}


def telling(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Columns that tell rows apart which are the same in the columns `names`, as few as that takes."""
    protocols = [name for name in map(str, rows) if name.endswith("_protocol")]
    found: list[str] = []
    for name in (name for name in (*selection.CONDITIONS, *protocols, *TELLING) if name in rows and name not in names):
        same = rows.groupby([*names, *found], dropna=False)[name]
        if (same.nunique(dropna=False) > 1).any():
            found.append(name)
    return found


def _values(column: pd.Series) -> dict[str, Any]:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return {"values": [None if pd.isna(value) else _number(float(value)) for value in column]}
    codes, levels = pd.factorize(column.astype("string"), sort=False)
    return {"codes": codes.tolist(), "levels": [str(level) for level in levels]}


def _number(value: float) -> float | int | str:
    """Seven digits, which is more than any measurement has and half the size."""
    if not math.isfinite(value):
        return f"\0{value}"
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def points(rows: pd.DataFrame, groups: Sequence[Group]) -> dict[str, Any]:
    """Mean and interval of each configuration under its conditions, and what the charts group them by.

    Args:
        rows: the table.
        groups: what `ranking.groups` makes of it, which knows the ties.
    """
    present = [metric for metric in QUANTITIES if rows[metric.column].notna().any()]
    models = selection.models(rows)
    mechanisms = looks(rows["subject"].dropna().unique(), models)
    configurations = _configurations(rows, list(mechanisms))
    for group in groups:
        for name in group.disturbed:
            configurations[group.conditions, name]["disturbed"] = True
        if quality := quality_among(group.standings):
            for name in group.standings[quality.column].leaders:
                configurations[group.conditions, name]["leads"] = True
    for metric in present:
        for key, interval in mean_intervals(rows, metric, ["conditions", "configuration"]).items():
            point, ends = configurations[key], (interval.low, interval.mean, interval.high)
            point["values"][metric.column] = [None if end is None else _number(end) for end in ends]
            point["n"] = max(interval.n, point["n"])
    for point in configurations.values():
        quality = quality_among(point["values"])
        point["quality"] = quality and quality.column
    _mark_fronts(list(configurations.values()))
    return {
        "metrics": [
            {"column": m.column, "name": m.name, "heading": m.heading, "timing": MEASURES[m.measure].is_timing}
            for m in present
        ],
        "costs": [metric.column for metric in COSTS if metric in present],
        "mechanisms": [_look(name, look, models) for name, look in mechanisms.items()],
        "points": list(configurations.values()),
    }


def _configurations(rows: pd.DataFrame, mechanisms: Sequence[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """A point for each (conditions, configuration), without its values."""
    columns = ["conditions", "configuration", "others", "subject", "resolution", "pixels", "topk", "status"]
    named = rows.assign(
        others=selection.conditions(rows, leave_out=("resolution",)),
        pixels=rows["height_px"] * rows["width_px"],
    )[[*columns, "settings", "error_message"]]
    configurations: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in named.drop_duplicates(columns[:2]).to_dict("records"):
        configurations[row["conditions"], row["configuration"]] = {
            "name": row["configuration"],
            "mechanism": None if pd.isna(row["subject"]) else mechanisms.index(row["subject"]),
            "series": _series(row["subject"], row["settings"]),
            **{name: _plain(row[name]) for name in ("conditions", "others", "resolution", "pixels", "topk")},
            **{"status": None, "message": None, "values": {}, "n": 0, "front": [], "leads": False, "disturbed": False},
        }
    failed = named[~named["status"].isin(NOT_FAILED)].drop_duplicates(columns[:2])
    for row in failed.to_dict("records"):
        what = {"status": row["status"], "message": _plain(row["error_message"])}
        configurations[row["conditions"], row["configuration"]] |= what
    return configurations


def _series(subject: Any, settings: Mapping[str, str]) -> str:
    """Name of the line that joins a configuration over its top-k."""
    others = {name: value for name, value in settings.items() if name != "topk"}
    return configuration_name("unknown" if pd.isna(subject) else subject, others)


def _mark_fronts(points: Sequence[dict[str, Any]]) -> None:
    """Note of each point for which costs it is on the front of the means; conditions are of one task."""
    apart: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        apart.setdefault(point["conditions"], []).append(point)
    for part in apart.values():
        for cost in COSTS:
            both = [point for point in part if point["quality"] and cost.column in point["values"]]
            means = [
                [point["values"][cost.column][1] for point in both],
                [point["values"][point["quality"]][1] for point in both],
            ]
            for point, is_front in zip(both, pareto_front(*means), strict=True):
                point["front"] += [cost.column] if is_front else []


def _look(name: str, look: Look, models: Collection[str]) -> dict[str, Any]:
    from matplotlib.colors import to_hex

    kind = ("models" if name in models else "mechanisms") if models else ""
    return {"name": name, "colour": to_hex(look.colour), "symbol": _SYMBOLS[look.marker], "kind": kind}


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value
