"""What the rows of a study say, in sentences; what was not shown is not said."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from runners.measures import COSTS, LATENCY, MARGIN, SPEED_UP, TRAINING_STEP, quality_among
from runners.rows.ranking import Failure, Group, Standing
from runners.rows.speed import Speeds
from runners.rows.stats import Interval

WORDS = {SPEED_UP.column: "in inference"}
"""What a speed is that of; any other that of training."""


def sentences(group: Group, margin: float = MARGIN) -> list[str]:
    """What the rows of a group say: the best, what it could not be told from, what equal accuracy costs, what failed.

    Args:
        group: rows under equal conditions.
        margin: accuracies are equal if the 95 % interval of their gap lies within it, percentage points.
    """
    return [*_findings(group, margin), *_failures(group.failures)]


def _findings(group: Group, margin: float) -> Iterator[str]:
    quality = quality_among(group.standings)
    accuracy = group.standings[quality.column] if quality else None
    # times are ranked by their ratio to vanilla's, where rows know how well that is known
    ranked = {LATENCY if speeds.metric is SPEED_UP else TRAINING_STEP for speeds in group.speeds}
    costs = [group.standings[m.column] for m in COSTS if m.column in group.standings and m not in ranked]
    if accuracy is None:
        if not costs and not group.speeds:
            yield "Nothing has been measured yet."
            return
        yield "Accuracy was not measured."
        yield from map(_lowest, costs)
        yield from (_fastest(speeds, group.disturbed) for speeds in group.speeds)
        return
    yield from _best(accuracy, margin)
    equal = (accuracy.best, *accuracy.equal(margin))
    if len(equal) > 1:
        yield from _cheapest(costs, accuracy, equal, margin)
        for speeds in group.speeds:
            if len(speeds.among(equal).intervals) > 1:
                yield f"Of these, {_fastest(speeds.among(equal), group.disturbed, is_start=False)}"
    elif accuracy.tested:
        yield f"No other is shown to be equal to it within {margin:g} points, so no cost at equal accuracy is known."
    else:
        yield from map(_lowest, costs)
    yield from (_fastest(speeds, group.disturbed) for speeds in group.speeds)


def _best(standing: Standing, margin: float) -> Iterator[str]:
    best = standing.best
    reached = f"{best} reaches {_value(standing, best)}"
    others = len(standing.intervals) - 1
    if not others:
        yield f"{reached}; there is nothing to compare it with."
        return
    if not standing.tested:
        others_of_it = "no other was measured with two of its seeds, so none can be told from it"
        yield f"{reached}, the highest {standing.metric.name}; {others_of_it}."
        return
    equal = standing.equal(margin)
    below = others - len(standing.ties)
    significant = f", significantly more than {below} of the other {others} (paired over seeds, 95 %)" if below else ""
    yield f"{reached}, the highest {standing.metric.name}{significant}."
    if equal:
        yield f"Equal to it within {margin:g} points: {_gaps(standing, equal)}."
    unclear = [name for name in standing.ties if name not in equal]
    if unclear:
        among = f"in {others} comparisons" if others > 1 else "in one comparison"
        yield (
            f"Could not be told apart from it {among}, nor shown to be equal (each gap with its own 95 % interval): "
            f"{_gaps(standing, unclear)}."
        )


def _gaps(standing: Standing, names: Sequence[str]) -> str:
    """Names with how far they are behind the best."""
    return _listed([f"{name}, {_gap(standing.gaps.get(name))}" for name in names], "; ")


def _gap(gap: Interval | None) -> str:
    if gap is None or gap.low is None or gap.high is None:
        return "gap not known from its seeds"
    return f"gap {gap.mean:.1f} points ({gap.low:.1f} to {gap.high:.1f})"


def _lowest(standing: Standing) -> str:
    text = f"Lowest {standing.metric.name}: {standing.best}, {_value(standing, standing.best)}"
    if standing.ties:
        text += f"; tied: {_listed(standing.ties)}"
    return f"{text}{'' if standing.tested else ' (not tested: fewer than two common seeds)'}."


def _fastest(speeds: Speeds, disturbed: Collection[str], *, is_start: bool = True) -> str:
    where = WORDS.get(speeds.metric.column, "in training")
    named = [f"{name} (disturbed)" if name in disturbed else name for name in (speeds.fastest, *speeds.ties)]
    interval = speeds.intervals[speeds.fastest]
    text = f"{'F' if is_start else 'f'}astest {where}: {named[0]}, {interval.mean:.3g} times the speed of vanilla"
    text += f" ({interval.low:.3g} to {interval.high:.3g}, over {speeds.processes} processes)"
    return f"{text}; could not be told apart from it: {_listed(named[1:])}." if speeds.ties else f"{text}."


def _cheapest(costs: Sequence[Standing], accuracy: Standing, equal: Sequence[str], margin: float) -> Iterator[str]:
    """A sentence for each configuration that has the lowest of any cost among those of equal accuracy."""
    lowest: dict[str, list[str]] = {}
    for standing in costs:
        best = next((name for name in standing.intervals if name in equal), None)
        if best is None:
            continue
        text = f"{standing.metric.name} {_value(standing, best, with_range=False)}"
        if accuracy.best in standing.intervals and accuracy.best != best:
            ratio = standing.intervals[best].mean / standing.intervals[accuracy.best].mean
            text += f" ({ratio:.2f} times that of {accuracy.best})"
        lowest.setdefault(best, []).append(text)
    for name, texts in lowest.items():
        reached = f"{accuracy.intervals[name].mean:.1f} %"
        yield f"At equal accuracy (within {margin:g} points) {name} ({reached}) has the lowest {'; '.join(texts)}."


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


def _listed(names: Sequence[str], separator: str = ", ", most: int = 8) -> str:
    shown = separator.join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
