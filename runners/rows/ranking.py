"""Who is best under equal conditions, who is tied with it, and what equal accuracy costs; as data and as sentences."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from ablations import load_study, study_names
from runners.measures import ACCURACY, COSTS, NOT_FAILED, QUANTITIES, Quantity
from runners.rows import selection, stats
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


@dataclass(frozen=True)
class Failure:
    """A configuration of which a measure failed, with the gravest status of a row."""

    configuration: str
    status: str


@dataclass(frozen=True)
class Group:
    """The rows of one study under equal conditions, with a column `configuration`, and what follows from them."""

    study: str
    conditions: str
    rows: pd.DataFrame
    standings: dict[str, Standing]
    failures: tuple[Failure, ...]


def groups(rows: pd.DataFrame) -> list[Group]:
    """Split rows by study and conditions; a row of two studies is in both, one of none in the study ``."""
    # a table has a hundred columns, and each selection of rows would copy them all
    columns = ["study", "configuration", "conditions", "seed", "status"]
    rows = rows[[*columns, *(metric.column for metric in QUANTITIES)]]
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
    return [Group(study, name, part, standings[name], tuple(failures[name])) for name, part in parts.items()]


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


def sentences(group: Group) -> list[str]:
    """What the rows of a group say: the best, what is tied with it, what equal accuracy costs, and what failed."""
    return [*_findings(group), *_failures(group.failures)]


def _findings(group: Group) -> Iterator[str]:
    accuracy = group.standings.get(ACCURACY.column)
    costs = [group.standings[metric.column] for metric in COSTS if metric.column in group.standings]
    if accuracy is None:
        if not costs:
            yield "Nothing has been measured yet."
            return
        yield "Accuracy was not measured."
        yield from map(_lowest, costs)
        return
    yield _best(accuracy)
    if len(accuracy.leaders) > 1:
        yield from _cheapest(costs, accuracy)
    elif accuracy.tested:
        yield "No other configuration reaches its accuracy, so there is no cost at equal accuracy."
    else:
        yield from map(_lowest, costs)


def _best(standing: Standing) -> str:
    best = standing.best
    reached = f"{best} reaches {_value(standing, best)}"
    others = len(standing.intervals) - 1
    if not others:
        return f"{reached}; there is nothing to compare it with."
    if not standing.tested:
        return f"{reached}, the highest acc1; no other was measured with two of its seeds, so none can be told from it."
    if not standing.ties:
        return f"{reached}, significantly more than the other {others} (paired over seeds, 95 %)."
    tied = [f"{name} ({standing.intervals[name].mean:.1f} %)" for name in standing.ties]
    return f"{reached}, the highest acc1. Not significantly below it (paired over seeds, 95 %): {_listed(tied)}."


def _lowest(standing: Standing) -> str:
    text = f"Lowest {standing.metric.name}: {standing.best}, {_value(standing, standing.best)}"
    if standing.ties:
        text += f"; tied: {_listed(standing.ties)}"
    return f"{text}{'' if standing.tested else ' (not tested: fewer than two common seeds)'}."


def _cheapest(costs: Sequence[Standing], accuracy: Standing) -> Iterator[str]:
    """A sentence for each configuration that has the lowest of any cost among those of equal accuracy."""
    lowest: dict[str, list[str]] = {}
    for standing in costs:
        best = next((name for name in standing.intervals if name in accuracy.leaders), None)
        if best is None:
            continue
        text = f"{standing.metric.name} {_value(standing, best, with_range=False)}"
        if accuracy.best in standing.intervals and accuracy.best != best:
            ratio = standing.intervals[best].mean / standing.intervals[accuracy.best].mean
            text += f" ({ratio:.2f} times that of {accuracy.best})"
        lowest.setdefault(best, []).append(text)
    for name, texts in lowest.items():
        reached = f"{accuracy.intervals[name].mean:.1f} %"
        yield f"At equal accuracy, as far as these seeds tell, {name} ({reached}) has the lowest {'; '.join(texts)}."


def _failures(failures: Iterable[Failure]) -> Iterator[str]:
    named = [f"{failure.configuration} ({failure.status})" for failure in failures]
    if named:
        yield f"Failed: {_listed(named)}."


def _value(standing: Standing, name: str, *, with_range: bool = True) -> str:
    interval = standing.intervals[name]
    mean = f"{interval.mean:.4g} {standing.metric.unit}"
    if standing.metric.is_exact or not with_range:
        return mean
    if interval.low is None or interval.high is None:
        return f"{mean} (1 seed)"
    return f"{mean} ({interval.low:.4g} to {interval.high:.4g}, {interval.n} seeds)"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
