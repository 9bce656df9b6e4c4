"""Pareto fronts: accuracy against each cost, and which points the repeats cannot tell from the front."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas import DataFrame, Series

from runners.figures.frames import (
    QUALITY,
    conditions,
    disturbed,
    failures,
    labels,
    quality_in,
    seeds_of,
    shown,
    with_quality,
    within,
)
from runners.figures.lines import CROWD, colour_key, crowd_note, kind_key, point_names, reach_of
from runners.figures.looks import Look, looks
from runners.figures.marks import (
    DISTURBED,
    GUIDE,
    Failed,
    draw_disturbed,
    draw_intervals,
    failed_rows,
    limit,
    mark_failures,
    plain_log,
)
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet, titled
from runners.measures import LATENCY, MACS, MEMORY, QUALITIES, TRAINING_STEP, Quantity
from runners.rows.selection import models
from runners.rows.stats import Interval, mean_interval, pareto_front, pareto_standing

COSTS = (MACS, LATENCY, MEMORY, TRAINING_STEP)
COLUMNS = (*(quality.column for quality in QUALITIES), *(cost.column for cost in COSTS))
HEIGHT, HEIGHT_ALONE = 2.15, 2.9

STANDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "front": ("on the front", {"markersize": 6.5, "mec": "black", "mew": 0.9}),
    "tied": ("tied with it", {"markersize": 6.5, "mec": "white", "mew": 0.4}),
    "off": ("off the front", {"markersize": 4.0, "mec": "white", "mew": 0.3}),
    "untested": ("off it by the means, not tested", {"markersize": 4.0, "mec": "black", "mew": 0.4}),
}


def draw_pareto(sheet: Sheet, rows: DataFrame) -> None:
    """Draw accuracy against MACs, latency, memory and training time, a point for each mechanism and setting.

    Accuracy is acc1, or what a dense task has in its place. Rows under different conditions, such as two resolutions or
    tasks, have panels of their own.

    Raises:
        ValueError: accuracies of several data sets or numbers of steps, fewer than two points, or no cost.
    """
    failed = {index for quality in QUALITIES for index in failures(rows, quality)}
    rows = with_quality(rows)
    rows = rows[rows[QUALITY].notna() | rows.index.isin(list(failed))]
    for _, own in rows.groupby("task", dropna=False):
        for column in ("data", "steps"):
            values = own[column].dropna().unique()
            if len(values) > 1:
                listed = ", ".join(map(str, sorted(values)))
                raise ValueError(f"accuracies with several values of {column} do not compare: {listed}; select one")
    rows = rows.assign(line=labels(rows, has_conditions=False), under=conditions(rows))
    standings, is_crowded = draw_fronts(sheet, rows, None, disturbed)
    _write_caption(sheet, rows, standings, is_crowded)


Hollow = Callable[[DataFrame, Quantity], "Series[bool]"]
"""Which rows are drawn hollow in a panel of this cost."""


def draw_fronts(
    sheet: Sheet, rows: DataFrame, gain: Quantity | None, hollow: Hollow, more: Sequence[Line2D] = ()
) -> tuple[set[str], bool]:
    """Draw a gain against each cost in panels, one for each value of `under`, with a point for each of `line`.

    Without a gain it is the column `QUALITY`, that of the task of each panel.
    Returns the standings that occur, and whether points have no room for whole names. `more` are entries of the key.

    Raises:
        ValueError: fewer than two points, or no cost.
    """
    column = gain.column if gain else QUALITY
    points = rows[rows[column].notna()].groupby("under")["line"].nunique()
    if points.empty or points.max() < 2:
        raise ValueError("a front needs the accuracy of two mechanisms or settings; measure accuracy of more")
    panels = [(str(under), own, cost) for under, own in rows.groupby("under", sort=False) for cost in shown(own, COSTS)]
    is_crowded = bool(points.max() > CROWD)
    styles, names = looks(rows["line"], models(rows)), point_names(sheet, rows["line"], is_crowded)
    axes = sheet.panels(len(panels), HEIGHT if len(panels) > 1 else HEIGHT_ALONE)
    standings = set[str]()
    for ax, (under, own, cost) in zip(axes, panels, strict=True):
        ax.set_title(titled(under), loc="left")
        standings |= pareto_front_plot(sheet, ax, own, cost, styles, names, gain or quality_in(own), hollow)
    _draw_key(sheet, styles if is_crowded else {}, standings, more, has_models=bool(models(rows)))
    return standings, is_crowded


def pareto_front_plot(
    sheet: Sheet,
    ax: Axes,
    rows: DataFrame,
    cost: Quantity,
    styles: Mapping[str, Look],
    names: Mapping[str, tuple[str, ...]],
    gain: Quantity,
    hollow: Hollow,
) -> set[str]:
    """Draw a gain against one cost, a point for each value of `line`; returns the standings that occur."""
    both = rows[rows[gain.column].notna() & rows[cost.column].notna()]
    points: dict[str, tuple[Interval, Interval]] = {
        str(line): (mean_interval(own[cost.column]), within(mean_interval(own[gain.column]), gain))
        for line, own in both.groupby("line")
    }
    standings = _standings(both, cost, gain, points) if points else {}
    failed = _failed(rows, cost, gain)
    _set_axes(ax, rows, cost, gain, points, failed)
    front = sorted((points[line][0].mean, points[line][1].mean) for line in points if standings[line] == "front")
    if front:
        ax.step(*zip(*front, strict=True), where="post", color=GUIDE, lw=0.8, ls="--", zorder=1, label="_front")
    doubtful = set(both.loc[hollow(both, cost), "line"])
    for line, (x, y) in points.items():
        look, style = styles[line], STANDINGS[standings[line]][1]
        draw_intervals(ax, [(x.mean, y.mean, y)], look)
        draw_intervals(ax, [(x.mean, y.mean, x)], look, axis="x")
        ax.plot(x.mean, y.mean, color=look.colour, marker=look.marker, linestyle="none", label=line, zorder=3, **style)
        if line in doubtful:
            draw_disturbed(ax, [(x.mean, y.mean)], look, style["markersize"])
        rank = 1 + list(STANDINGS).index(standings[line])
        sheet.tag(Tag(ax, names[line], [(x.mean, y.mean)], look.ink, rank, farthest=reach_of(names)))
    _draw_ceiling(sheet, ax, rows)
    mark_failures(sheet, ax, failed, styles)
    return set(standings.values())


def _standings(
    both: DataFrame, cost: Quantity, gain: Quantity, points: Mapping[str, tuple[Interval, Interval]]
) -> dict[str, str]:
    if gain.is_exact:
        # one number each, whatever the repeats of the cost: nothing to test
        is_on_front = pareto_front(*zip(*((x.mean, y.mean) for x, y in points.values()), strict=True))
        return {line: "front" if on else "off" for line, on in zip(points, is_on_front, strict=True)}
    found: dict[Any, str] = pareto_standing(both, cost.column, gain.column, "line").to_dict()
    if both.groupby("line")["seed"].nunique().max() > 1:
        return found
    # nothing can be tested, and nothing need be said of tests
    return {line: "off" if standing == "untested" else standing for line, standing in found.items()}


def _set_axes(
    ax: Axes,
    rows: DataFrame,
    cost: Quantity,
    gain: Quantity,
    points: Mapping[str, tuple[Interval, Interval]],
    failed: list[Failed],
) -> None:
    ax.set(xscale="log", xlabel=cost.axis, ylabel=gain.axis)
    at = [*rows.loc[rows[gain.column].notna(), cost.column], *(cell.x for cell in failed)]
    limit(ax, at, [end for x, _ in points.values() for end in (x.low, x.high)], log=True, axis="x")
    ends = [end for _, y in points.values() for end in (y.low, y.high)]
    limit(ax, rows[gain.column], ends, log=False, room=0.07 * failed_rows(failed))
    plain_log(ax.xaxis)


def _draw_ceiling(sheet: Sheet, ax: Axes, rows: DataFrame) -> None:
    """Draw what a model gets that cannot relate objects, where the axis reaches it."""
    low, high = ax.get_ylim()
    for ceiling in rows["ceiling_percent"].dropna().unique() if "ceiling_percent" in rows else ():
        if low < ceiling < high:
            ax.axhline(ceiling, color=GUIDE, linewidth=0.7, linestyle=":", zorder=1, label="_ceiling")
            texts = (f"{ceiling:.1f}: objects seen, not related", "not related")
            along, across = [(step / 20, float(ceiling)) for step in range(16, 2, -1)], ax.get_yaxis_transform()
            sheet.tag(Tag(ax, texts, along, GUIDE, rank=9, transform=across, is_on_line=True))


def _failed(rows: DataFrame, cost: Quantity, gain: Quantity) -> list[Failed]:
    """Cells whose gain failed, at their cost, and those whose cost failed, at no place of their own."""
    found = dict[str, Failed]()
    lines, costs = rows["line"].to_dict(), rows[cost.column].dropna().to_dict()
    for quantity in (gain, cost):
        for index, status in failures(rows, quantity).items():
            at = costs.get(index) if quantity is gain else None
            found.setdefault(lines[index], Failed(at, lines[index], f"{quantity.name} {status}"))
    return list(found.values())


def _draw_key(
    sheet: Sheet, styles: Mapping[str, Look], standings: set[str], more: Sequence[Line2D], *, has_models: bool
) -> None:
    """Explain the marks, and the colours where points have no room for the names of their mechanisms."""
    kinds = kind_key() if has_models else []
    marks = [
        Line2D([], [], color="#8A8A8A", marker="o", linestyle="none", label=words, **style)
        for name, (words, style) in STANDINGS.items()
        if name in standings
    ]
    sheet.key([*colour_key(sheet, styles), *kinds, *(marks if len(marks) > 1 else []), *more])


def _write_caption(sheet: Sheet, rows: DataFrame, standings: set[str], is_crowded: bool) -> None:
    high, seeds = seeds_of(rows, ("under", "line"))
    notes = [
        f"Mean over {seeds}, with 95% t-intervals (an arrow where one leaves the axes)." if high > 1 else "One seed."
    ]
    notes.append(f"Dashed: the front{' of the means' * (high > 1)}.")
    if {"tied", "off"} & standings and high > 1:
        notes.append(
            "A point is off the front if another is significantly cheaper and more accurate (paired t-tests over "
            "seeds, Bonferroni), else tied."
        )
    if is_crowded:
        notes.append(crowd_note(sheet, rows["line"]))
    if any(disturbed(rows, cost).any() for cost in COSTS):
        notes.append(DISTURBED)
    sheet.caption(rows, notes)
