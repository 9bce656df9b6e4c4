"""The front of published accuracies: what papers report, against the costs that were measured on one's own device."""

from collections.abc import Iterable
from functools import partial

from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from runners.figures.frames import conditions, disturbed, failures, labels, seeds_of
from runners.figures.lines import crowd_note
from runners.figures.pareto import COSTS, draw_fronts
from runners.figures.sheet import Sheet
from runners.measures import LATENCY, Quantity
from runners.rows.published import with_published

COLUMNS = tuple(cost.column for cost in COSTS)
PUBLISHED = Quantity(
    *("published", "published", "published top-1", "published ImageNet top-1", "%"),
    higher_is_better=True,
    is_exact=True,
)


def drawing(published: DataFrame) -> "partial[None]":
    """Return the function that draws rows with these accuracies; `published` is what `read_published` returns."""
    return partial(draw_published, published=published)


def draw_published(sheet: Sheet, rows: DataFrame, published: DataFrame) -> None:
    """Draw published top-1 accuracy against each measured cost, a point for each mechanism and model that has one.

    The caption names the sources, and the rows that have no published accuracy.

    Raises:
        ValueError: fewer than two rows with a published accuracy, or no cost.
    """
    joined = _with_costs(with_published(rows, published))
    drawn = joined[joined["published"].notna()]
    mechanisms = labels(drawn[_models(drawn).isna()], has_conditions=False)
    lines = _models(drawn).fillna(mechanisms).astype("str")
    if (count := lines.nunique()) < 2:
        raise ValueError(f"a front needs two published accuracies, and the rows have {count}; others: {gaps(joined)}")
    # layouts are compared with models, and no training was measured
    under = conditions(drawn, ("layout", "baseline", "data", "steps", "target_acc"))
    drawn = drawn.assign(line=lines, under=under, data=None, steps=None)
    more = [_hollow_entry()] if drawn["doubt"].ne("").any() else []
    _, is_crowded = draw_fronts(sheet, drawn, PUBLISHED, lambda part, cost: part["doubt"].ne(""), more)
    names = drawn["line"].map(sheet.name)
    high, seeds = seeds_of(drawn, ("under", "line"))
    notes = [
        "Accuracies are published, none was measured here: " + "; ".join(_grouped(drawn["published_in"], names)) + ".",
        f"Costs were measured, {'means with 95% t-intervals over ' * (high > 1)}{seeds}.",
        "Dashed: the front. An accuracy is one number without an interval: small gaps may be chance.",
        *(f"Hollow: {text}." for text in _grouped(drawn["doubt"], names)),
    ]
    if len(drawn) < len(joined):
        notes.append(f"Not drawn: {gaps(joined)}.")
    if (unsteady := disturbed(drawn, LATENCY)).any():
        notes.append(f"Other work on the machine disturbed the timing of {_listed(names[unsteady])}.")
    if is_crowded:
        notes.append(crowd_note(sheet, drawn["line"]))
    sheet.caption(drawn, notes)


def _with_costs(joined: DataFrame) -> DataFrame:
    """Take the published accuracy from rows whose costs nobody has measured yet; a cost that failed is drawn."""
    failed = {index for cost in COSTS for index in failures(joined, cost)}
    is_unknown = joined[[*COLUMNS]].isna().all(axis=1) & ~joined.index.isin(list(failed)) & joined["published"].notna()
    return joined.assign(
        published=joined["published"].mask(is_unknown), gap=joined["gap"].mask(is_unknown, "no cost measured")
    )


def gaps(joined: DataFrame) -> str:
    """Say which rows that `with_published` returns are not drawn, and why; empty if all are."""
    absent = joined[joined["published"].isna()]
    return "; ".join(_grouped(absent["gap"], _models(absent).fillna(absent["configuration"])))


def _hollow_entry() -> Line2D:
    grey = "#8A8A8A"
    return Line2D([], [], color=grey, marker="o", linestyle="none", mfc="white", mew=1.0, label="not confirmed")


def _models(rows: DataFrame) -> "Series[str]":
    return rows["model"].astype("object") if "model" in rows else Series(None, rows.index, dtype="object")


def _grouped(reasons: "Series[str]", names: "Series[str]") -> list[str]:
    """Each reason that is not empty, with the names that it holds for."""
    return [f"{reason} ({_listed(names[reasons == reason])})" for reason in dict.fromkeys(reasons) if reason]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({*names}))
