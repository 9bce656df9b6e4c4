"""Who is best under equal conditions, what could not be told from it, and what is equal to it within a margin."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from ablations import load_study, study_names
from runners.measures import NOT_FAILED, QUANTITIES, Quantity
from runners.rows import selection, speed, stats
from runners.rows.speed import Speeds
from runners.rows.stats import Interval, tied_with_best


@dataclass(frozen=True)
class Standing:
    """Configurations by one metric, best first, each with its interval over seeds; tests wait until they are asked."""

    metric: Quantity
    intervals: dict[str, Interval]
    rows: pd.DataFrame = field(repr=False, compare=False)

    @property
    def best(self) -> str:
        """The configuration with the best mean."""
        return next(iter(self.intervals))

    @cached_property
    def tested(self) -> bool:
        """Whether anything can be told from the best: counts, or two seeds in common with another configuration."""
        if self.metric.is_exact:
            return True
        pairs = list(zip(self._repeats["configuration"], self._repeats["seed"], strict=True))
        seeds = {seed for name, seed in pairs if name == self.best}
        common = Counter(name for name, seed in pairs if name != self.best and seed in seeds)
        return any(count > 1 for count in common.values())

    @cached_property
    def ties(self) -> tuple[str, ...]:
        """What is not significantly worse than the best; nothing where that could not be tested."""
        others = [name for name in self.intervals if name != self.best]
        if self._is_counted:
            return tuple(name for name in others if self.intervals[name].mean == self.intervals[self.best].mean)
        if not self.tested:
            return ()
        column, higher = self.metric.column, self.metric.higher_is_better
        _, tied = tied_with_best(self._repeats, column, "configuration", higher_is_better=higher)
        return tuple(name for name in others if name in tied)

    @cached_property
    def gaps(self) -> Mapping[str, Interval]:
        """How far each other is behind the best: the mean of the differences over common seeds, with its interval.

        Without two common seeds there is none; nor of differences that are all the same but not 0, which are no
        evidence among few noisy repeats.
        """
        values: dict[str, dict[int, float]] = {name: {} for name in self.intervals}
        for name, seed, value in self._repeats[["configuration", "seed", self.metric.column]].itertuples(index=False):
            values[name][seed] = value
        best = values.pop(self.best)
        behind = {name: [best[seed] - own[seed] for seed in own if seed in best] for name, own in values.items()}
        return stats.intervals_of({name: gap for name, gap in behind.items() if _is_evidence(gap)})

    def equal(self, margin: float) -> tuple[str, ...]:
        """What is equal to the best within a margin: the 95 % interval of its gap lies inside (two one-sided tests)."""
        return tuple(
            name
            for name, gap in self.gaps.items()
            if gap.low is not None and gap.high is not None and -margin <= gap.low and gap.high <= margin
        )

    @cached_property
    def _is_counted(self) -> bool:
        """Whether values are compared as they are: counts, and costs such as memory that were the same every time."""
        if self.metric.is_exact or self.metric.higher_is_better:
            return self.metric.is_exact
        values = self._repeats.groupby("configuration")[self.metric.column].agg(["nunique", "count"])
        return bool(values["nunique"].eq(1).all() and values["count"].gt(1).any())

    @cached_property
    def _repeats(self) -> pd.DataFrame:
        return repeats(self.rows, self.metric, ["configuration"])

    @property
    def leaders(self) -> tuple[str, ...]:
        """The best and what is tied with it; nobody where that could not be tested."""
        return (self.best, *self.ties) if self.tested else ()


def _is_evidence(gap: Sequence[float]) -> bool:
    return len(gap) > 1 and (not math.isclose(min(gap), max(gap), abs_tol=1e-9) or not any(gap))


@dataclass(frozen=True)
class Failure:
    """A configuration of which a measure failed, with the gravest status of a row."""

    configuration: str
    status: str


@dataclass(frozen=True)
class Group:
    """The rows of one study under equal conditions, with a column `configuration`, and what follows from them.

    `speeds` are empty for rows that carry no interval over processes, and `disturbed` names the configurations with a
    timing that other work disturbed.
    """

    study: str
    conditions: str
    rows: pd.DataFrame
    standings: dict[str, Standing]
    failures: tuple[Failure, ...]
    speeds: tuple[Speeds, ...] = ()
    disturbed: frozenset[str] = frozenset()


def groups(rows: pd.DataFrame) -> list[Group]:
    """Split rows by study and conditions; a row of two studies is in both, one of none in the study ``."""
    # a table has a hundred columns, and each selection of rows would copy them all
    columns = ["study", "configuration", "conditions", "seed", "status"]
    rows = rows.reindex(columns=[*columns, "disturbed", *(metric.column for metric in QUANTITIES), *speed.COLUMNS])
    split = []
    for study in selection.study_names(rows) or [""]:
        split += _groups(study, selection.of_study(rows, study) if study else rows)
    return split


def _groups(study: str, rows: pd.DataFrame) -> list[Group]:
    parts = {str(name): part for name, part in rows.groupby("conditions", sort=False)}
    standings: dict[str, dict[str, Standing]] = {name: {} for name in parts}
    failures: dict[str, list[Failure]] = {name: [] for name in parts}
    for metric in QUANTITIES:
        apart: dict[str, dict[str, Interval]] = {}
        for (conditions, name), interval in mean_intervals(rows, metric, ["conditions", "configuration"]).items():
            apart.setdefault(conditions, {})[name] = interval
        for conditions, intervals in apart.items():
            standings[conditions][metric.column] = Standing(metric, intervals, parts[conditions])
    failed = rows[~rows["status"].isin(NOT_FAILED)]
    for row in failed.drop_duplicates(["conditions", "configuration", "status"]).to_dict("records"):
        failures[row["conditions"]].append(Failure(row["configuration"], row["status"]))
    ranked = {
        str(name): tuple(filter(None, (speed.speeds(part, metric) for metric in speed.METRICS)))
        for name, part in speed.timed(rows).groupby("conditions")
    }
    marked = rows.loc[selection.disturbed(rows), ["conditions", "configuration"]]
    disturbed = {str(name): frozenset(part) for name, part in marked.groupby("conditions")["configuration"]}
    return [
        Group(
            *(study, name, part, standings[name], tuple(failures[name])),
            speeds=ranked.get(name, ()),
            disturbed=disturbed.get(name, frozenset()),
        )
        for name, part in parts.items()
    ]


def mean_intervals(rows: pd.DataFrame, metric: Quantity, by: list[str]) -> dict[tuple[str, ...], Interval]:
    """Mean and interval of each group over its seeds, best first."""
    intervals = stats.mean_intervals(repeats(rows, metric, by), metric.column, by).items()
    return dict(sorted(intervals, key=lambda item: item[1].mean, reverse=metric.higher_is_better))


def repeats(rows: pd.DataFrame, metric: Quantity, by: list[str]) -> pd.DataFrame:
    """Rows with a value, one for each group and seed: two cells may differ in no more than how they were asked for."""
    measured = rows[[*by, "seed", metric.column]].dropna()
    return measured.drop_duplicates([*by, "seed"], keep="last")


def question(study: str) -> tuple[str, str]:
    """What a declared study asks and expects; both empty for any other."""
    if study not in study_names():
        return "", ""
    declared = load_study(study)
    return declared.question, declared.expectation
