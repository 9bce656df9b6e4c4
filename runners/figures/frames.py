"""Rows for a figure: what is refused, what makes a line of its own, and which cells failed."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pandas import DataFrame, Series

from runners.measures import NOT_FAILED, Quantity
from runners.rows import selection
from runners.rows.stats import Interval, mean_interval

CONDITIONS = tuple(name for name in selection.CONDITIONS if name != "device_id")
"""Fields of a cell beside its mechanism and settings; where they differ, values do not belong on one line."""

IDENTITY = ("attention", "settings", "topk", "seed", "status", "device_id", "device_name", "versions", *CONDITIONS)
"""Columns that every figure needs."""


def results(folder: str | Path = "results") -> DataFrame:
    """Rows of one's own sweeps in `folder/runs` if there are any, else those of the committed sample.

    Raises:
        ValueError: neither is there.
    """
    folder = Path(folder)
    samples = sorted(folder.glob("sample_*.csv"))
    if not (folder / "runs" / "cells").is_dir():
        if not samples:
            raise ValueError(f"no results: neither {folder / 'runs'} nor {folder}/sample_*.csv; run runners/sweep.py")
        return selection.read_rows(samples[-1])
    return selection.read_rows(folder / "runs")


def check(frame: DataFrame, columns: Sequence[str], by_device: bool) -> DataFrame:
    """Return the rows that a device has measured, or failed to.

    Raises:
        ValueError: a missing column, no row, one row alone, or several devices without `by_device`.
    """
    missing = [name for name in (*IDENTITY, *columns) if name not in frame.columns]
    if missing:
        raise ValueError(f"the table lacks {'columns' if missing[1:] else 'column'} {', '.join(missing)}")
    if frame.empty:
        raise ValueError("the table has no rows: nothing to draw")
    rows = frame[frame["device_id"].notna()]
    if len(rows) < 2:
        raise ValueError(f"a figure compares rows, and the table has {len(rows)} that a device has measured")
    devices = selection.devices(rows)
    if len(devices) > 1 and not by_device:
        raise ValueError(
            f"rows of {len(devices)} devices do not compare: {', '.join(devices)}; "
            "select one of them, or ask for by_device, which draws them apart"
        )
    return rows


def settings_of(text: object) -> dict[str, str]:
    """Parse the column `settings`: name=value joined by semicolons, empty for the defaults."""
    return dict(part.split("=", 1) for part in text.split(";") if "=" in part) if isinstance(text, str) else {}


def conditions(frame: DataFrame, apart: Sequence[str] = ()) -> "Series[str]":
    """What a row was measured under, as text that is equal where values compare; `apart` is left out."""
    names = [name for name in CONDITIONS if name not in apart]
    return frame[names].astype("string").fillna("").agg("|".join, axis=1).astype("str")


def labels(frame: DataFrame, apart: Sequence[str] = ()) -> "Series[str]":
    """Name of the line that each row belongs to: its mechanism, and what tells its lines apart.

    That is each setting that differs between rows of the mechanism, and each condition that differs in the table.
    `apart` holds settings and conditions that lie along the line.
    """
    chosen = [_chosen(*row) for row in zip(frame["settings"], frame["topk"], strict=True)]
    varying = [name for name in CONDITIONS if name not in apart and frame[name].nunique(dropna=False) > 1]
    keys_of: dict[str, list[str]] = {}
    for name in frame["attention"].unique():
        own = [row for row, attention in zip(chosen, frame["attention"], strict=True) if attention == name]
        keys = sorted({key for row in own for key in row} - set(apart))
        keys_of[name] = [key for key in keys if len({row.get(key) for row in own}) > 1]
    under = zip(*(frame[column] for column in varying), strict=True) if varying else [()] * len(frame)
    found = []
    for name, row, values in zip(frame["attention"], chosen, under, strict=True):
        parts = [f"{key}={row[key]}" for key in keys_of[name] if key in row]
        parts += [_condition(column, value) for column, value in zip(varying, values, strict=True)]
        found.append(" ".join([str(name), *filter(None, parts)]))
    return Series(found, index=frame.index, dtype="str")


def _chosen(settings: object, topk: object) -> dict[str, str]:
    """Settings of a row, with the top-k that it has where `settings` leaves that out as the default."""
    found = settings_of(settings)
    return found if pd.isna(topk) else {"topk": str(topk), **found}  # type: ignore[call-overload]


def _condition(column: str, value: object) -> str:
    plain = ("layout", "resolution", "precision", "data")
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    if column == "compile":
        return "compiled" if value else ""
    return str(value) if column in plain else f"{column}={value}"


def failures(rows: DataFrame, quantity: Quantity) -> dict[Hashable, str]:
    """Status of each row whose value is missing because its measure failed, by the row's index."""
    own = f"{quantity.measure}_status"
    status = rows[own].fillna(rows["status"]) if own in rows.columns else rows["status"]
    failed = rows[quantity.column].isna() & status.notna() & ~status.isin(NOT_FAILED)
    return {index: str(text) for index, text in status[failed].items()}


def shown(rows: DataFrame, quantities: Sequence[Quantity]) -> list[Quantity]:
    """Return the quantities that have a value or a failure to draw.

    Raises:
        ValueError: none has.
    """
    found = [q for q in quantities if rows[q.column].notna().any()]
    if not found:
        raise ValueError(f"no row has a value of {', '.join(q.column for q in quantities)}")
    return [q for q in quantities if q in found or len(failures(rows, q))]


def intervals(rows: DataFrame, column: str, x: str) -> Mapping[float, Interval]:
    """Mean and t-interval over repeats of a column at each value of `x`, in their order."""
    found = rows[[x, column]].dropna()
    return {float(at): mean_interval(values) for at, values in found.groupby(x)[column]}  # type: ignore[arg-type]
