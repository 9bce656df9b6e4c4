"""Fits, intervals, ties and fronts, each against a second road or a case worked out by hand."""

import math
import random

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from runners.figures.complexity import core_macs
from runners.figures.mechanisms import exponent as declared_exponent
from runners.rows.stats import (
    Logarithm,
    fit_exponent,
    mean_interval,
    median_interval,
    paired_p,
    pareto_front,
    pareto_standing,
    ratio_interval,
    tied_with_best,
)

SIDES = range(14, 127, 14)


def table(values: dict[str, list[float | None]], column: str = "acc1") -> pd.DataFrame:
    """A row for each group and seed."""
    rows = [(group, seed, value) for group, found in values.items() for seed, value in enumerate(found)]
    return pd.DataFrame(rows, columns=["line", "seed", column])


def both(costs: dict[str, list[float]], gains: dict[str, list[float]]) -> pd.DataFrame:
    return table(gains).merge(table(costs, "gmacs"), on=["line", "seed"], how="outer")


# --- intervals and fits


def test_the_interval_of_a_mean_is_students():
    values = [61.0, 64.5, 59.0, 70.0]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = mean_interval([*values, None, math.nan])
    assert (found.mean, found.n) == (pytest.approx(63.625), 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_repeat_has_no_interval_and_equal_ones_an_empty_one():
    assert mean_interval([5.0]) == type(mean_interval([5.0]))(5.0, None, None, 1)
    same = mean_interval(pd.array([2.5, 2.5, None], dtype="Float64"))
    assert (same.mean, same.low, same.high, same.n) == (2.5, 2.5, 2.5, 2)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([math.nan])


def test_an_exponent_and_its_interval_are_those_of_a_regression_by_hand():
    x = np.array([196, 784, 1764, 3136, 4900], dtype=float)
    y = 3 * x**1.5 * np.exp([0.05, -0.02, 0.03, -0.04, 0.01])
    line = stats.linregress(np.log(x), np.log(y))
    reach = stats.t.ppf(0.975, 3) * line.stderr
    fit = fit_exponent(x, y)
    assert (fit.exponent, fit.scale, fit.n) == (pytest.approx(line.slope), pytest.approx(np.exp(line.intercept)), 5)
    assert (fit.low, fit.high) == (pytest.approx(line.slope - reach), pytest.approx(line.slope + reach))


def test_two_points_give_an_exponent_without_an_interval():
    fit = fit_exponent([1, 4], [3, 24])
    assert (fit.exponent, fit.scale) == (pytest.approx(1.5), pytest.approx(3))
    assert (fit.low, fit.high) == (None, None)


@pytest.mark.parametrize(
    "x, y, reason",
    [
        ([4, 4], [1, 2], "two different x"),
        ([], [], "two different x"),
        ([1, 2], [1, 2, 3], "as many x as y"),
        ([1, 2], [1, 0], "positive"),
        ([1, 2, 3], [1, math.nan, 3], "positive"),
    ],
)
def test_what_has_no_exponent_is_refused(x, y, reason):
    with pytest.raises(ValueError, match=reason):
        fit_exponent(x, y)


@pytest.mark.parametrize(
    "name, config, exponent, margin",
    [
        ("vanilla", {}, 2.0, 0.02),
        ("dat", {"stride": 2, "map_size": 14}, 2.0, 0.02),
        ("swin", {"window": 7}, 1.0, 0.02),
        ("swin", {"window": 7, "shift": 3}, 1.0, 0.02),
        ("maxvit", {"window": 7, "kind": "block"}, 1.0, 0.02),
        ("maxvit", {"window": 7, "kind": "grid"}, 1.0, 0.02),
        ("crossformer", {"group": 7, "kind": "short"}, 1.0, 0.02),
        ("crossformer", {"group": 7, "interval": 2, "kind": "long"}, 1.0, 0.02),
        ("cswin", {"stripe": 1}, 1.5, 0.02),
        ("cswin", {"stripe": 7}, 1.5, 0.02),
        ("axial", {}, 1.5, 0.02),
        ("crisscross", {}, 1.5, 0.02),
        ("bra", {"region_size": "auto"}, 4 / 3, 0.05),
        ("bra", {"region_size": "auto", "topk": 1}, 4 / 3, 0.05),
        ("bra", {"region_size": "auto", "topk": 16}, 4 / 3, 0.05),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_the_attention_core_grows_as_theory_says(name, config, exponent, margin):
    macs = core_macs(name, SIDES, **config)
    assert [*macs] == [side * side for side in SIDES]
    assert abs(fit_exponent(macs, macs.values()).exponent - exponent) <= margin
    settings = {key: str(value) for key, value in config.items()}
    assert float(declared_exponent(name, settings)) == pytest.approx(exponent)


def test_the_core_of_bra_holds_its_routing():
    # N = 14 x 14 tokens in 7 x 7 regions of 4 tokens, top 4 of them: N k T 2 C + R^2 C
    assert core_macs("bra", [14], dim=96, regions=7, topk=4)[196] == 196 * 4 * 4 * 2 * 96 + 49**2 * 96


# --- fronts


def test_the_front_holds_what_nothing_betters():
    costs, gains = [1, 2, 2, 3, 3, 1], [5, 7, 6, 7, 9, 5]
    assert pareto_front(costs, gains) == [True, True, False, False, True, True]
    assert pareto_front([], []) == []


def test_a_paired_test_is_scipys():
    high, low = pd.Series([61.0, 70.0, 66.0]), pd.Series([60.0, 68.5, 65.5])
    assert paired_p(high, low) == pytest.approx(stats.ttest_rel(high, low, alternative="greater").pvalue)
    assert paired_p(low, high) == pytest.approx(1 - paired_p(high, low))


def test_a_paired_test_needs_two_pairs_and_a_spread():
    three, shifted = pd.Series([1.0, 2.0, 3.0]), pd.Series([0.5, 1.5, 2.5])
    assert paired_p(three, pd.Series([0.0], index=[2])) is None
    assert paired_p(three, shifted) == 1
    assert paired_p(three, shifted, exact=True) == 0
    assert paired_p(shifted, three, exact=True) == paired_p(three, three, exact=True) == 1


def test_ties_come_from_pairs_and_not_from_overlap():
    # seeds differ by far more than the groups, but in every seed b is about 2 below a
    frame = table({"a": [50, 60, 70, 80], "b": [48.1, 57.9, 68.0, 78.1], "c": [60, 49, 81, 68], "d": [51, 59, 71, 78]})
    assert tied_with_best(frame, "acc1", "line") == ("a", ["c", "d"])


def test_many_groups_need_more_evidence():
    lower = [50 - 4.0, 60 - 1.3, 70 - 2.5]
    alone = table({"a": [50, 60, 70], "b": lower})
    best, worse = (pd.Series(values) for values in ([50.0, 60, 70], lower))
    assert 0.025 < paired_p(best, worse) < 0.05
    assert tied_with_best(alone, "acc1", "line") == ("a", [])
    beside = table({"a": [50, 60, 70], "b": lower, "c": lower})
    assert tied_with_best(beside, "acc1", "line") == ("a", ["b", "c"])


def test_the_lowest_may_be_best_and_counts_are_exact():
    frame = table({"a": [3, 3], "b": [2, 2], "c": [2, 2]}, "gmacs")
    assert tied_with_best(frame, "gmacs", "line", higher_is_better=False, exact=True) == ("b", ["c"])
    assert tied_with_best(frame, "gmacs", "line", higher_is_better=False) == ("b", ["a", "c"])


def test_a_group_with_one_common_repeat_is_not_told_apart():
    frame = table({"a": [90, 91, 92], "b": [None, None, 10], "c": [10, 11, 12.5], "d": [None, None, None]})
    assert tied_with_best(frame, "acc1", "line") == ("a", ["b"])


@pytest.mark.parametrize(
    "frame, metric, reason",
    [
        (table({"a": [1, 2]}), "gmacs", "no column gmacs"),
        (table({"a": [None]}), "acc1", "no row has a value of acc1"),
        (pd.concat([table({"a": [1, 2]})] * 2), "acc1", "a has several rows of seed 0"),
    ],
)
def test_what_cannot_be_tied_is_refused(frame, metric, reason):
    with pytest.raises(ValueError, match=reason):
        tied_with_best(frame, metric, "line")


def test_standings():
    gains = {
        "cheap": [60.0, 61, 62],
        "good": [90.0, 91, 92.5],
        "worse": [70.0, 71.5, 71],  # dearer than good, and 20 below it
        "noisy": [95.0, 60, 91],  # dearer than good, below it in one seed
        "dear": [89.9, 91.0, 92.6],
    }
    costs = {"cheap": [1.0] * 3, "good": [2.0] * 3, "worse": [2.0] * 3, "noisy": [3.0] * 3, "dear": [2.5] * 3}
    found = pareto_standing(both(costs, gains), "gmacs", "acc1", "line").to_dict()
    assert found == {"cheap": "front", "good": "front", "worse": "off", "noisy": "tied", "dear": "tied"}


def test_being_off_the_front_takes_both_a_cost_and_a_gain_that_differ():
    gains = {"a": [90.0, 91, 92.5], "b": [70.0, 71.5, 71]}
    frame = both({"a": [10.0, 14, 9], "b": [11.0, 12.5, 13]}, gains)
    assert pareto_standing(frame, "gmacs", "acc1", "line").to_dict() == {"a": "front", "b": "tied"}
    frame = both({"a": [10.0, 14, 9], "b": [20.0, 24.5, 19.1]}, gains)
    assert pareto_standing(frame, "gmacs", "acc1", "line").to_dict() == {"a": "front", "b": "off"}


def test_one_seed_is_not_tested_and_a_missing_cost_left_out():
    frame = both({"a": [1.0], "b": [2.0]}, {"a": [90.0], "b": [80.0], "c": [99.0]})
    assert pareto_standing(frame, "gmacs", "acc1", "line").to_dict() == {"a": "front", "b": "untested"}


@pytest.mark.parametrize(("n", "k"), [(6, 1), (7, 1), (9, 2), (20, 6), (100, 40)])
def test_the_interval_ends_at_the_ranks_of_the_sign_test(n, k):
    assert median_interval(random.Random(1).sample(range(n), n)) == (k - 1, n - k)


@pytest.mark.parametrize("n", range(6))
def test_few_values_give_no_interval(n):
    assert median_interval([1.0] * n) == (None, None)


def test_the_interval_holds_the_median_as_often_as_it_says():
    draw = random.Random(2)
    intervals = [median_interval([draw.expovariate(1) for _ in range(15)]) for _ in range(2000)]
    held = sum(low <= 0.6931 <= high for low, high in intervals) / 2000
    assert 0.95 <= held < 0.985


def test_the_ratio_of_two_estimates_has_the_interval_of_welch():
    draw = np.random.default_rng(5)
    a, b = draw.lognormal(0.3, 0.02, 4), draw.lognormal(0.1, 0.05, 6)
    ratio, low, high = ratio_interval(Logarithm.of_values(a), Logarithm.of_values(b))
    welch = stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    assert ratio == pytest.approx(stats.gmean(a) / stats.gmean(b))
    assert np.log([low, high]) == pytest.approx(welch.confidence_interval(0.95))


def test_an_interval_over_processes_gives_its_error_back():
    values = np.array([1.02, 0.99, 1.05, 1.01])
    low, high = np.exp(stats.t.interval(0.95, 3, np.log(values).mean(), stats.sem(np.log(values))))
    found = Logarithm.of_interval(stats.gmean(values), low, high, 4)
    assert found.error == pytest.approx(stats.sem(np.log(values)))
    assert (found.mean, found.freedom) == (pytest.approx(np.log(values).mean()), 3)


def test_equal_values_without_spread_have_an_exact_ratio():
    assert ratio_interval(Logarithm(0.5, 0.0, 3), Logarithm(0.5, 0.0, 3)) == (1.0, 1.0, 1.0)
