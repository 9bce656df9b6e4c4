"""Rows for a figure: what is refused, what makes a line of its own, and which cells failed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pandas import DataFrame, Series

from runners.figures.choices import Refused
from runners.measures import MEASURES, NOT_FAILED, QUALITIES, Quantity, quality_of
from runners.rows import selection
from runners.rows.curves import with_curves
from runners.rows.stats import Interval, mean_intervals
from runners.store.names import configuration_name

IDENTITY = (
    *("attention", "model", "settings", "topk", "topk_schedule", "seed", "status", "device_name", "versions"),
    *selection.CONDITIONS,
)
"""Columns that every figure needs."""

QUALITY = "quality"
"""Column that `with_quality` attaches."""


def results(folder: str | Path = "results") -> DataFrame:
    """Rows of one's own sweeps in `folder/runs`, with curves, if there are any, else those of the committed sample.

    Raises:
        ValueError: neither is there.
    """
    folder = Path(folder)
    samples = sorted(folder.glob("sample_*.csv"))
    if not (folder / "runs" / "cells").is_dir():
        if not samples:
            raise ValueError(f"no results: neither {folder / 'runs'} nor {folder}/sample_*.csv; run runners/sweep.py")
        return selection.read_rows(samples[-1])
    return with_curves(selection.read_rows(folder / "runs"), folder / "runs")


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
    # tables that were joined have one index twice
    rows = frame[frame["device_id"].notna()].reset_index(drop=True)
    if len(rows) < 2:
        raise ValueError(f"a figure compares rows, and the table has {len(rows)} that a device has measured")
    devices = selection.devices(rows)
    if len(devices) > 1 and not by_device:
        raise ValueError(
            f"rows of {len(devices)} devices do not compare: {', '.join(devices)}; "
            "select one of them, or ask for by_device, which draws them apart"
        )
    return selection.described(rows)


def of_mechanisms(frame: DataFrame, attn: Sequence[str]) -> DataFrame:
    """Return the rows of these mechanisms or models.

    Raises:
        Refused: one of them has no row.
    """
    subjects = selection.subjects(frame)
    known = sorted(subjects.dropna().unique())
    missing = [name for name in attn if name not in known]
    if missing:
        raise Refused(f"attn {', '.join(missing)}: no such mechanism in the rows; they have {', '.join(known)}")
    return frame[subjects.isin([*attn])]


def labels(rows: DataFrame, apart: Sequence[str] = (), *, has_conditions: bool = True) -> "Series[str]":
    """Name of the line that each row belongs to: its mechanism, and what tells its lines apart.

    That is each setting that differs between rows of the mechanism, and, with `has_conditions`, each condition that
    differs in the table. `apart` holds settings and conditions that lie along the line.
    """
    differing: dict[str, set[str]] = {}
    for name, settings in rows.groupby("subject")["settings"]:
        values = {key: {row.get(key) for row in settings} for row in settings for key in row if key not in apart}
        differing[str(name)] = {key for key, several in values.items() if len(several) > 1}
    under = conditions(rows, apart) if has_conditions else Series("", rows.index, dtype="str")
    lines = []
    for name, settings, condition in zip(rows["subject"], rows["settings"], under, strict=True):
        chosen = {key: value for key, value in settings.items() if key in differing[name]}
        lines.append(f"{configuration_name(name, chosen)} {condition}".rstrip())
    return Series(lines, index=rows.index, dtype="str")


def conditions(rows: DataFrame, apart: Sequence[str] = ()) -> "Series[str]":
    """Conditions of each row that differ in the table, without its device and those in `apart`; empty if none does."""
    return selection.conditions(rows, leave_out=(*apart, "device_id")).replace(selection.ALL, "").astype("str")


def disturbed(rows: DataFrame, quantity: Quantity) -> "Series[bool]":
    """Whether other work on the machine disturbed the timing behind a quantity; a table that does not say was not."""
    return selection.disturbed(rows) & MEASURES[quantity.measure].is_timing


def seeds_of(rows: DataFrame, by: Sequence[str]) -> tuple[int, str]:
    """The most seeds of a point, and how many they have in words."""
    counts = rows.groupby([*by])["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return high, "one seed" if high == 1 else f"{high} seeds" if low == high else f"{low} to {high} seeds"


def failures(rows: DataFrame, quantity: Quantity) -> dict[Hashable, str]:
    """Status of each row whose value is missing because its measure failed, by the row's index.

    What says how good a model is can be missing from rows of its own task alone.
    """
    column = f"{quantity.measure}_status"
    status = rows[column].fillna(rows["status"]) if column in rows.columns else rows["status"]
    failed = rows[quantity.column].isna() & status.notna() & ~status.isin(NOT_FAILED)
    if quantity in QUALITIES and "task" in rows:
        failed &= rows["task"].map(lambda task: quality_of(task) is quantity).astype(bool)
    return {index: str(text) for index, text in status[failed].items()}


def with_quality(rows: DataFrame) -> DataFrame:
    """Rows with the column `QUALITY`: acc1, or what the task of each row has in its place."""
    columns = rows["task"].map(lambda task: quality_of(task).column)
    values = Series(float("nan"), rows.index, dtype="Float64")
    for quality in QUALITIES:
        values = values.mask(columns == quality.column, rows[quality.column].astype("Float64"))
    return rows.assign(**{QUALITY: values})


def quality_in(rows: DataFrame) -> Quantity:
    """What the column `QUALITY` of rows of one task is."""
    return replace(quality_of(rows["task"].iloc[0] if len(rows) else None), column=QUALITY)


def shown(rows: DataFrame, quantities: Sequence[Quantity]) -> list[Quantity]:
    """Return the quantities that have a value or a failure to draw.

    Raises:
        ValueError: none has.
    """
    measured = [q for q in quantities if rows[q.column].notna().any()]
    if not measured:
        raise ValueError(f"no row has a value of {', '.join(q.column for q in quantities)}")
    return [q for q in quantities if q in measured or len(failures(rows, q))]


def within(interval: Interval, quantity: Quantity) -> Interval:
    """The interval, that of a share cut at 0 and 100 %, beyond which it cannot be."""
    if quantity.unit != "%" or interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 100.0))


def intervals(rows: DataFrame, column: str, x: str) -> Mapping[float, Interval]:
    """Mean and t-interval over repeats of a column at each value of `x`, in their order."""
    by_x = mean_intervals(rows[[x, column]].dropna(), column, x)
    return {float(at): interval for at, interval in by_x.items()}
