"""How sure the ratio of two rows of one cell is: from the processes that timed each, or from the samples of one.

Rows of two results folders stand side by side, their columns ending in `_a` and `_b`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from runners.measures import Quantity
from runners.rows.stats import Logarithm, median_interval, ratio_interval
from runners.store.store import open_store


class Samples(NamedTuple):
    """Raw samples of a time, and the process that took each; none where that was not recorded."""

    values: list[float]
    processes: list[float]


ReadSamples = Callable[[str, "pd.Series", Quantity], Samples | None]
"""Raw samples of a side, `a` or `b`, and a row of both; None if there are none."""


def row_interval(metric: Quantity, row: pd.Series, samples: ReadSamples) -> tuple[float | None, float | None]:
    """95 % interval of B / A of a metric that is measured; None without one."""
    raw = {side: samples(side, row, metric) if metric.samples else None for side in "ab"}
    before, after = (_over_processes(metric, row, side, raw[side]) for side in "ab")
    if before and after:
        return ratio_interval(after, before)[1:]
    sides = [_of_one_process(metric, row, side, raw[side]) for side in "ab"]
    if None in sides:
        return None, None
    (low_a, high_a), (low_b, high_b) = (side for side in sides if side)
    return low_b / high_a, high_b / low_a


def _over_processes(metric: Quantity, row: pd.Series, side: str, raw: Samples | None) -> Logarithm | None:
    """Estimate of one row over the processes that timed it, None if it was one, or nobody knows."""
    if metric.interval:
        known = row.reindex([f"{name}_{side}" for name in (metric.column, *metric.interval, "timing_processes")])
        if known.isna().any():
            return None
        value, low, high, processes = map(float, known)
        return Logarithm.of_interval(value, low, high, int(processes))
    if raw is None or len(set(raw.processes)) < 2:
        return None
    return Logarithm.of_values(pd.Series(raw.values).groupby(raw.processes).median())


def _of_one_process(metric: Quantity, row: pd.Series, side: str, raw: Samples | None) -> tuple[float, float] | None:
    """Interval of one row's value, from its columns or its raw samples, None if neither is there."""
    if metric.interval:
        low, high = (row.get(f"{name}_{side}") for name in metric.interval)
        return None if pd.isna(low) or pd.isna(high) else (float(low), float(high))
    if raw is None:
        return None
    low, high = median_interval(raw.values, confidence=0.975)
    return None if low is None or high is None else (low, high)


def raw_samples(a: Path, b: Path) -> ReadSamples:
    """Return a function that reads the raw samples behind a time from the records of a results folder."""
    stores = {side: open_store(path, create=False) for side, path in (("a", a), ("b", b)) if path.is_dir()}

    def read(side: str, row: pd.Series, metric: Quantity) -> Samples | None:
        if side not in stores:
            return None
        names = [n for n in stores[side].record_names(row["cell_key"]) if n[:2] == (metric.measure, row["device_id"])]
        recorded = stores[side].read_record(row["cell_key"], names[-1]).samples if names else {}
        parts = [recorded.get(name) for name in metric.samples]
        if not all(isinstance(part, list) and part for part in parts):
            return None
        values = [float(sum(values)) for values in zip(*parts, strict=False)]
        processes = recorded.get(metric.processes)
        return Samples(values, processes if isinstance(processes, list) and len(processes) == len(values) else [])

    return read
