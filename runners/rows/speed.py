"""Who is fastest, by the intervals of the speed-up over vanilla that rows carry, which are over fresh processes."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from runners.measures import SPEED_UP, TRAINING_SPEED_UP, Quantity
from runners.rows.stats import CONFIDENCE, Interval, Logarithm, ratio_interval

PROCESSES = "timing_processes"
METRICS = (SPEED_UP, TRAINING_SPEED_UP)

COLUMNS = tuple(dict.fromkeys([PROCESSES, *(name for m in METRICS for name in (m.column, *(m.interval or ())))]))
"""What rows must have to be ranked; those of earlier versions, timed in one process, lack the number of processes."""


@dataclass(frozen=True)
class Speeds:
    """Configurations by their speed-up over vanilla, the fastest first; `processes` are the fewest behind one."""

    metric: Quantity
    intervals: dict[str, Interval]
    processes: int
    logs: dict[str, Logarithm] = field(repr=False, compare=False)

    @property
    def fastest(self) -> str:
        """The configuration with the largest speed-up."""
        return next(iter(self.intervals))

    @property
    def ties(self) -> tuple[str, ...]:
        """What could not be told from the fastest: Welch's t on the logarithms, Bonferroni's correction."""
        first, *others = self.intervals
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
        ratios = {name: ratio_interval(self.logs[first], self.logs[name], confidence) for name in others}
        return tuple(name for name, (_, low, _) in ratios.items() if low <= 1)

    def among(self, names: Collection[str]) -> "Speeds":
        """The same of some configurations."""
        kept = {name: interval for name, interval in self.intervals.items() if name in names}
        return Speeds(self.metric, kept, self.processes, self.logs)


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that were timed in several processes."""
    return rows[(rows[PROCESSES].astype("Float64") > 1).fillna(False)]


def speeds(rows: pd.DataFrame, metric: Quantity) -> Speeds | None:
    """Rank the configurations of `timed` rows under equal conditions; None if none has an interval."""
    value, low, high = columns = [metric.column, *(metric.interval or ())]
    rows = rows[(rows[columns].astype("Float64") > 0).fillna(False).all(axis=1)]
    if rows.empty:
        return None
    logs = {str(name): _pooled(part, value, low, high) for name, part in rows.groupby("configuration")}
    ordered = dict(sorted(logs.items(), key=lambda item: -item[1].mean))
    seeds = rows.groupby("configuration")["seed"].nunique()
    return Speeds(
        metric,
        {name: _interval(log, int(seeds[name])) for name, log in ordered.items()},
        int(rows[PROCESSES].min()),
        ordered,
    )


def _pooled(rows: pd.DataFrame, value: str, low: str, high: str) -> Logarithm:
    """Mean of the independent estimates of a configuration's rows, its freedom by Welch and Satterthwaite."""
    one = [
        Logarithm.of_interval(float(row[value]), float(row[low]), float(row[high]), int(row[PROCESSES]))
        for row in rows.to_dict("records")
    ]
    variances = np.array([log.error**2 for log in one])
    freedoms = np.array([log.freedom for log in one])
    total = float(variances.sum())
    freedom = total**2 / float((variances**2 / freedoms).sum()) if total else float(freedoms.sum())
    return Logarithm(float(np.mean([log.mean for log in one])), total**0.5 / len(one), freedom)


def _interval(log: Logarithm, seeds: int) -> Interval:
    middle, low, high = ratio_interval(log, Logarithm(0.0, 0.0, 1.0))
    return Interval(middle, low, high, seeds)
