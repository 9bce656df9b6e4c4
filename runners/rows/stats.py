"""Intervals, fits, ties and fronts: what the figures and the report say of repeats.

Plain numbers and tidy frames in, plain numbers out. Repeats are seeds; a paired test compares what two settings
reached with the same seed, so that what a seed does to both drops out.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean of n repeats with the t-interval that holds their expectation; a single repeat has no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Fit:
    """A power law y = scale * x**exponent with the interval of its exponent; two points have no interval."""

    exponent: float
    low: float | None
    high: float | None
    scale: float
    n: int


def mean_interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean and t-interval of independent repeats; missing values are left out.

    Raises:
        ValueError: no value is left.
    """
    known = _finite(values)
    if not known.size:
        raise ValueError("no values to take the mean of")
    spread = known.std(ddof=1) if known.size > 1 else np.nan
    return _intervals([known.mean()], [spread], [known.size], confidence)[0]


def mean_intervals(rows: pd.DataFrame, column: str, by: str | list[str]) -> dict[Any, Interval]:
    """`mean_interval` of each group with a value, of all at once, since a table has thousands of them."""
    groups = rows.groupby(by)[column].agg(["mean", "std", "count"]).query("count > 0")
    means, spreads, counts = (groups[name].to_numpy(float, na_value=np.nan) for name in ("mean", "std", "count"))
    return dict(zip(groups.index, _intervals(means, spreads, counts), strict=True))


def _intervals(
    means: ArrayLike, spreads: ArrayLike, counts: ArrayLike, confidence: float = CONFIDENCE
) -> list[Interval]:
    from scipy import stats

    m, s, n = (np.asarray(values, dtype=float) for values in (means, spreads, counts))
    # a single repeat has no degree of freedom, and NaN for its reach
    reach = stats.t.ppf((1 + confidence) / 2, n - 1) * s / n**0.5
    rows = zip(m.tolist(), (m - reach).tolist(), (m + reach).tolist(), n.astype(int).tolist(), strict=True)
    return [Interval(mean, low, high, n) if n > 1 else Interval(mean, None, None, n) for mean, low, high, n in rows]


@dataclass(frozen=True)
class Logarithm:
    """Logarithm of a positive estimate, its standard error, and the degrees of freedom that this is known with."""

    mean: float
    error: float
    freedom: float

    @classmethod
    def of_interval(cls, value: float, low: float, high: float, n: int) -> "Logarithm":
        """Take back a t-interval of the logarithms of n independent values."""
        from scipy import stats

        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
        return cls(float(np.log(value)), float(np.log(high / low)) / 2 / reach, n - 1)

    @classmethod
    def of_values(cls, values: ArrayLike) -> "Logarithm":
        """Geometric mean of independent positive values, of two at least."""
        logs = np.log(np.asarray(values, dtype=float))
        return cls(float(logs.mean()), float(logs.std(ddof=1) / logs.size**0.5), logs.size - 1)


def ratio_interval(over: Logarithm, under: Logarithm, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Ratio of two independent estimates with its interval (Welch's t on the logarithms), as (ratio, low, high)."""
    from scipy import stats

    difference, variances = over.mean - under.mean, np.array([over.error**2, under.error**2])
    total = float(variances.sum())
    if total == 0:
        return (float(np.exp(difference)),) * 3
    freedom = total**2 / float((variances**2 / np.array([over.freedom, under.freedom])).sum())
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * total**0.5
    low, middle, high = (float(np.exp(difference + shift)) for shift in (-reach, 0.0, reach))
    return middle, low, high


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Interval that holds the median of the values' distribution with at least this confidence, by the sign test.

    Its ends are the k-th smallest and the k-th largest value: the median lies below the k-th smallest of n values
    with the probability that fewer than k of n fair coins show heads. (None, None) if n is too small for any k.
    """
    ordered, tail, k = sorted(values), 0, 0
    for heads in range(len(ordered) // 2):
        tail += comb(len(ordered), heads)
        if 2 * tail > (1 - confidence) * 2 ** len(ordered):
            break
        k = heads + 1
    return (ordered[k - 1], ordered[-k]) if k else (None, None)


def fit_exponent(x: Iterable[float], y: Iterable[float], confidence: float = CONFIDENCE) -> Fit:
    """Fit y = scale * x**exponent by least squares on the logarithms (statsmodels' OLS), with a t-interval.

    Raises:
        ValueError: fewer than two different x, a value that is missing or not positive, or unequal lengths.
    """
    import statsmodels.api as sm

    xs, ys = (np.asarray(list(values), dtype=float) for values in (x, y))
    if xs.shape != ys.shape:
        raise ValueError(f"a fit needs as many x as y, got {xs.size} and {ys.size}")
    if np.unique(xs).size < 2:
        raise ValueError(f"an exponent needs at least two different x, got {np.unique(xs).size}")
    if not (np.isfinite(xs).all() and np.isfinite(ys).all() and (xs > 0).all() and (ys > 0).all()):
        raise ValueError("an exponent needs positive finite x and y")
    fitted = sm.OLS(np.log(ys), sm.add_constant(np.log(xs))).fit()
    intercept, exponent = (float(value) for value in fitted.params)
    low = high = None
    if xs.size > 2:
        low, high = (float(end) for end in fitted.conf_int(1 - confidence)[1])
    return Fit(exponent, low, high, float(np.exp(intercept)), int(xs.size))


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Whether each point is on the front: no other costs at most as much, gains at least as much and betters one."""
    points = list(zip(costs, gains, strict=True))
    return [not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points) for cost, gain in points]


def paired_p(higher: "pd.Series[float]", lower: "pd.Series[float]", *, exact: bool = False) -> float | None:
    """One-sided p of a paired t-test that one is above the other, both indexed by repeat; None under two pairs.

    Differences without any spread are no evidence among few noisy repeats, and give 1. With `exact` the values are
    counts, which do not vary: the sign alone decides, 0 or 1.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    difference = _finite((higher - lower).dropna())
    if difference.size < 2:
        return None
    if np.ptp(difference) == 0:
        return float(not (exact and difference[0] > 0))
    return float(DescrStatsW(difference).ttest_mean(0, alternative="larger")[1])


def tied_with_best(
    frame: pd.DataFrame,
    metric: str,
    by: str,
    *,
    repeat: str = "seed",
    higher_is_better: bool = True,
    exact: bool = False,
    confidence: float = CONFIDENCE,
) -> tuple[Hashable, list[Hashable]]:
    """Return the best group by the mean of `metric`, and the other groups that are not significantly worse.

    Worse is a one-sided paired t-test over the repeats that both have, Holm's correction over all groups; a group
    that shares fewer than two repeats with the best cannot be told from it, and is tied. Rows without a value are
    left out. `exact`: see `paired_p`; for MACs and other counts.

    Raises:
        ValueError: a column is missing, no row has a value, or a group has two rows of one repeat.
    """
    from statsmodels.stats.multitest import multipletests

    values = by_repeat(frame, metric, by, repeat) * (1 if higher_is_better else -1)
    best = values.mean().idxmax()
    others = [group for group in values.columns if group != best]
    tests = [paired_p(values[best], values[group], exact=exact) for group in others]
    p_values = [1.0 if p is None else p for p in tests]
    worse = multipletests(p_values, 1 - confidence, method="holm")[0] if p_values else []
    return best, [group for group, is_worse in zip(others, worse, strict=True) if not is_worse]


def pareto_standing(
    frame: pd.DataFrame, cost: str, gain: str, by: str, *, repeat: str = "seed", confidence: float = CONFIDENCE
) -> "pd.Series[str]":
    """Standing of each group on (cost, gain): `front`, `off`, `tied` or `untested`, indexed by group.

    `front` is the front of the means. Off it is a group that another betters significantly in both: a lower cost
    and a higher gain, each by a one-sided paired t-test over repeats, so the larger p of the two counts
    (intersection-union test), times the number of groups that better its means (Bonferroni). A cost that does not
    vary, or was measured once, is taken as it is. What is not on the front and not significantly off it is `tied`;
    `untested` if it shares fewer than two gains with every group that betters it. Groups that lack a cost or a gain
    are left out.

    Raises:
        ValueError: as `tied_with_best`.
    """
    costs, gains = (by_repeat(frame, column, by, repeat) for column in (cost, gain))
    groups = [group for group in gains.columns if group in costs.columns]
    means = [(float(costs[group].mean()), float(gains[group].mean())) for group in groups]
    on_front = pareto_front(*zip(*means, strict=True)) if means else []
    standing = {}
    for group, is_front, (c, g) in zip(groups, on_front, means, strict=True):
        rivals = [r for r, (rc, rg) in zip(groups, means, strict=True) if rc <= c and rg >= g and (rc, rg) != (c, g)]
        tests = [_dominance_p(costs, gains, rival, group) for rival in rivals]
        known = [p for p in tests if p is not None]
        if is_front:
            standing[group] = "front"
        elif not known:
            standing[group] = "untested"
        else:
            standing[group] = "off" if min(known) * len(rivals) < 1 - confidence else "tied"
    return pd.Series(standing, dtype="str")


def by_repeat(frame: pd.DataFrame, metric: str, by: str, repeat: str = "seed") -> pd.DataFrame:
    """Values of a column with a row per repeat and a column per group; rows without a value are left out.

    Raises:
        ValueError: a column is missing, no row has a value, or a group has two rows of one repeat.
    """
    missing = [name for name in (metric, by, repeat) if name not in frame.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}")
    rows = frame[[by, repeat, metric]].dropna()
    if rows.empty:
        raise ValueError(f"no row has a value of {metric}")
    doubled = rows[rows.duplicated([by, repeat])]
    if len(doubled):
        group, seed = doubled.iloc[0][[by, repeat]]
        raise ValueError(f"{group} has several rows of {repeat} {seed}, which a paired test cannot tell apart")
    return rows.pivot(index=repeat, columns=by, values=metric).astype(float)


def _dominance_p(costs: pd.DataFrame, gains: pd.DataFrame, rival: Hashable, group: Hashable) -> float | None:
    """Probability of what was seen if `rival` did not better `group` in both; None without two common gains."""
    gain = paired_p(gains[rival], gains[group])
    cost = paired_p(costs[group], costs[rival], exact=True)
    # equal counts are no worse; and the means have already decided for a cost that was measured once
    if cost is None or (costs[group] - costs[rival]).dropna().eq(0).all():
        cost = 0.0
    return None if gain is None else max(gain, cost)


def _finite(values: Iterable[float]) -> NDArray[np.float64]:
    numbers = np.array([np.nan if pd.isna(value) else float(value) for value in values], dtype=np.float64)
    return numbers[np.isfinite(numbers)]
