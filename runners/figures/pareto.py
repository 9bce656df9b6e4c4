"""Pareto fronts: accuracy against each cost, and which points the repeats cannot tell from the front."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from pandas import DataFrame

from runners.figures import style
from runners.figures.frames import failures, labels, shown
from runners.measures import ACCURACY, LATENCY, MACS, MEMORY, TRAINING_STEP, Quantity
from runners.rows.stats import Interval, mean_interval, pareto_standing

COSTS = (MACS, LATENCY, MEMORY, TRAINING_STEP)
COLUMNS = (ACCURACY.column, *(cost.column for cost in COSTS))
SIZE = (10.5, 7.4)
ONE_COST_SIZE = (7.6, 5.4)

STANDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "front": ("on the front", {"fillstyle": "full", "markersize": 8, "mec": "black", "mew": 1.2}),
    "tied": ("tied: not significantly off it", {"fillstyle": "bottom", "markersize": 8, "mew": 1.2}),
    "off": ("off the front", {"fillstyle": "none", "markersize": 6.5, "mew": 1.2}),
    "untested": ("off it by one seed, not tested", {"fillstyle": "none", "markersize": 6.5, "mew": 0.6}),
}


def draw_pareto(figure: SubFigure, rows: DataFrame, unmeasured: Mapping[str, int]) -> None:
    """Draw accuracy against MACs, latency, memory and training time, a point for each mechanism and setting.

    Raises:
        ValueError: accuracies of several data sets or numbers of steps, fewer than two points, or no cost.
    """
    rows = rows[rows["acc1"].notna() | rows.index.isin(list(failures(rows, ACCURACY)))]
    for column in ("data", "steps"):
        values = rows[column].dropna().unique()
        if len(values) > 1:
            listed = ", ".join(map(str, sorted(values)))
            raise ValueError(f"accuracies with several values of {column} do not compare: {listed}; select one")
    rows = rows.assign(line=labels(rows))
    if rows.loc[rows["acc1"].notna(), "line"].nunique() < 2:
        raise ValueError("a front needs the accuracy of two mechanisms or settings; measure accuracy of more")
    styles, costs = style.looks(rows["line"]), shown(rows, COSTS)
    axes = style.panels(figure, len(costs), sharey=True)
    standings = set[str]()
    for ax, cost in zip(axes, costs, strict=True):
        standings |= pareto_front_plot(ax, rows, cost, styles)
    for ax in axes[::2]:
        ax.set_ylabel(ACCURACY.axis)
    if len(costs) > 1:
        _draw_legend(figure, styles, standings)
    else:
        _name_points(figure, axes[0], rows, standings)
    note = (
        "Mean and 95% t-interval over seeds on both axes. The line joins the front of the means. A point is off the "
        "front if another is significantly cheaper and more accurate (paired t-tests over seeds, Bonferroni); half "
        "filled ones are not."
    )
    style.caption(figure, rows, note, unmeasured)


def pareto_front_plot(ax: Axes, rows: DataFrame, cost: Quantity, styles: Mapping[str, style.Look]) -> set[str]:
    """Draw accuracy against one cost, a point for each value of `line`; returns the standings that occur."""
    both = rows[rows["acc1"].notna() & rows[cost.column].notna()]
    points: dict[str, tuple[Interval, Interval]] = {
        str(line): (mean_interval(own[cost.column]), mean_interval(own["acc1"])) for line, own in both.groupby("line")
    }
    standing: dict[Any, str] = pareto_standing(both, cost.column, "acc1", "line").to_dict() if points else {}
    front = sorted((points[line][0].mean, points[line][1].mean) for line in points if standing[line] == "front")
    if front:
        ax.step(*zip(*front, strict=True), where="post", color=style.GUIDE, linewidth=1, linestyle="--", zorder=1)
    for line, (x, y) in points.items():
        look = styles[line]
        bars: dict[str, Any] = {f"{axis}err": [[p.mean - p.low], [p.high - p.mean]]
                for axis, p in (("x", x), ("y", y)) if p.low is not None and p.high is not None}  # fmt: skip
        ax.errorbar(x.mean, y.mean, fmt="none", ecolor=look.colour, elinewidth=0.9, capsize=2, zorder=2, **bars)
        ax.plot(x.mean, y.mean, marker=look.marker, color=look.colour, linestyle="none", markerfacecoloralt="white",
                label=line, zorder=3, **STANDINGS[standing[line]][1])  # fmt: skip
    ax.set(xscale="log", xlabel=cost.axis)
    marks = _failed(rows, cost, styles)
    style.limit(ax, [*both[cost.column], *(at for at, *_ in marks if at is not None)], log=True, axis="x")
    style.plain_log(ax.xaxis)
    style.limit(ax, rows["acc1"].dropna(), log=False, room=0.06 * len(marks))
    style.mark_failures(ax, marks)
    return set(standing.values())


def _failed(rows: DataFrame, cost: Quantity, styles: Mapping[str, style.Look]) -> list[style.Mark]:
    """Cells whose accuracy failed, at their cost, and those whose cost failed, at no place of their own."""
    marks = dict[str, style.Mark]()
    lines, costs = rows["line"].to_dict(), rows[cost.column].dropna().to_dict()
    for quantity in (ACCURACY, cost):
        for index, status in failures(rows, quantity).items():
            line, at = lines[index], costs.get(index) if quantity is ACCURACY else None
            marks.setdefault(line, (at, line, f"{quantity.column} {status}", styles[line]))
    return list(marks.values())


def _name_points(figure: SubFigure, ax: Axes, rows: DataFrame, standings: set[str]) -> None:
    """Write the names beside the points of the only axes, which is quicker to read than a legend of all of them."""
    whole = figure.get_figure(root=True)
    if whole is not None and len(whole.subfigs) == 1:
        whole.set_size_inches(*ONE_COST_SIZE)
    for ceiling in rows["ceiling_percent"].dropna().unique() if "ceiling_percent" in rows else ():
        ax.axhline(ceiling, color=style.GUIDE, linewidth=1, linestyle=":", zorder=1, label="_ceiling")
        ax.annotate(f"{ceiling:.1f}: sees the objects, cannot relate them", (1, ceiling), ha="right", va="bottom",
                    xycoords=("axes fraction", "data"), color=style.GUIDE, fontsize=8)  # fmt: skip
    lines = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    points = {str(line.get_label()): np.asarray(line.get_xydata(), dtype=float)[0] for line in lines}
    low, high = ax.get_ylim()
    for name, (x, y) in points.items():
        is_under = any(x / 1.1 < other_x < x * 1.1 and 0 < other_y - y < (high - low) / 20
                       for other_x, other_y in points.values())  # fmt: skip
        ax.annotate(name, (x, y), xytext=(7, -7 if is_under else 7), textcoords="offset points", va="center",
                    fontsize=8, path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
    ax.legend(handles=_standing_marks(standings), loc="lower right", frameon=False)


def _standing_marks(standings: set[str]) -> list[Line2D]:
    return [
        Line2D([], [], color="black", marker="o", linestyle="none", markerfacecoloralt="white", label=words, **marks)
        for name, (words, marks) in STANDINGS.items()
        if name in standings
    ]


def _draw_legend(figure: SubFigure, styles: Mapping[str, style.Look], standings: set[str]) -> None:
    points = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", markersize=7, label=style.wrapped(line))
        for line, look in styles.items()
    ]
    figure.legend(
        handles=[*points, *_standing_marks(standings)], loc="outside right upper", frameon=False, labelspacing=0.9
    )
