"""Complexity curves: cost against the size of the map, the fitted exponents, and what theory says."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from pandas import DataFrame

import attention_zoo
from runners.figures import style
from runners.figures.frames import failures, labels, shown
from runners.figures.mechanisms import exponent
from runners.measures import FIRST_CORE_MACS, LATENCY, MACS, MEMORY, Quantity
from runners.rows.stats import Fit, Interval, fit_exponent, mean_interval

QUANTITIES = (FIRST_CORE_MACS, MACS, LATENCY, MEMORY)
COLUMNS = ("height_px", "width_px", *(quantity.column for quantity in QUANTITIES))
SIZE = (11.0, 7.6)

STEM_PX = 4
"""Pixels along the side of a token of the first stage, in every layout."""


def draw_complexity(figure: SubFigure, rows: DataFrame, unmeasured: Mapping[str, int]) -> None:
    """Draw MACs, latency and peak memory against tokens, a line for each mechanism and setting.

    Raises:
        ValueError: no line has two sizes, or nothing was measured.
    """
    rows = rows.assign(tokens=(rows["height_px"] * rows["width_px"] / STEM_PX**2).astype(float))
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    sizes = rows.groupby("line")["tokens"].nunique()
    rows = rows[rows["line"].isin(sizes[sizes > 1].index)]
    if rows.empty:
        raise ValueError("no mechanism was measured at two resolutions: a curve needs --resolution with two values")
    # named again, since what tells lines apart may have been left out with the others
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    styles = style.looks(rows["line"])
    quantities = shown(rows, QUANTITIES)
    for ax, quantity in zip(style.panels(figure, len(quantities)), quantities, strict=True):
        complexity_curve(ax, rows, quantity, styles)
    seeds = rows.groupby(["line", "tokens"])["seed"].nunique()
    n = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    note = (
        f"Geometric mean and 95% interval (band) over {n} seeds; the exponents are fitted to the means (ordinary least "
        "squares on logarithms), with their 95% interval. Dashed: slopes of the attention core's closed form; the "
        "network around it is linear in tokens."
    )
    style.caption(figure, rows, note, unmeasured)


def complexity_curve(ax: Axes, rows: DataFrame, quantity: Quantity, styles: Mapping[str, style.Look]) -> None:
    """Draw one quantity against tokens, both logarithmic; `rows` has the columns `tokens` and `line` too."""
    failed = failures(rows, quantity)
    marks, slopes, means = [], set[Fraction](), list[float]()
    for line, look in styles.items():
        own = rows[rows["line"] == line]
        points = geometric_intervals(own, quantity.column)
        means += [point.mean for point in points.values()]
        if points:
            style.plot_repeats(ax, points, look, legend_entry(line, fit_points(points)))
        slopes |= {slope for name, settings in zip(own["attention"], own["settings"], strict=True)
                   if (slope := exponent(name, settings))}  # fmt: skip
        own_failed = own[own.index.isin(list(failed))].drop_duplicates("tokens")
        marks += [(float(t), line, failed[i], look) for i, t in own_failed["tokens"].items()]
    ax.set(xscale="log", yscale="log", xlabel="tokens of the first stage", ylabel=quantity.unit)
    ax.set_title(quantity.title, loc="left", pad=24)
    style.limit(ax, means, log=True, room=0.15 * bool(marks))
    style.limit(ax, rows["tokens"], log=True, axis="x")
    style.plain_ticks(ax, rows["tokens"])
    style.plain_log(ax.yaxis)
    style.mark_failures(ax, marks)
    if not means:
        return
    draw_guides(ax, float(rows["tokens"].min()), min(means), sorted(slopes))
    ax.legend(
        title="exponent (95% interval)",
        loc="upper left",
        bbox_to_anchor=(1.07, 1.05),
        frameon=False,
        handlelength=3.2,
        labelspacing=0.7,
    )


def geometric_intervals(rows: DataFrame, column: str) -> dict[float, Interval]:
    """Geometric mean of the repeats at each number of tokens, and its t-interval on the logarithms."""
    intervals = {}
    for tokens, values in rows.loc[rows[column] > 0, ["tokens", column]].groupby("tokens")[column]:
        logs = mean_interval(np.log(values.astype(float)))
        low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
        intervals[float(tokens)] = Interval(float(np.exp(logs.mean)), low, high, logs.n)  # type: ignore[arg-type]
    return intervals


def fit_points(points: Mapping[float, Interval]) -> Fit | None:
    """Fit the exponent of a line to its means, since repeats of one size say nothing of growth; None for one size."""
    return fit_exponent(points, [point.mean for point in points.values()]) if len(points) > 1 else None


def legend_entry(line: str, fit: Fit | None) -> str:
    """Name of a line with its exponent, and the interval where more than two sizes give one."""
    if fit is None:
        return style.wrapped(line)
    interval = "" if fit.low is None else f" ({fit.low:.2f} to {fit.high:.2f})"
    return f"{style.wrapped(line)}\n{fit.exponent:.2f}{interval}"


def draw_guides(ax: Axes, x: float, y: float, slopes: Sequence[Fraction]) -> None:
    """Draw dashed lines of these slopes on logarithmic axes from (x, y), each with its power at the end."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for i, slope in enumerate(slopes):
        # where the line leaves the axes, on the right or on top
        end = min(right, x * (top / y) ** (1 / float(slope)))
        xs = np.array([x, end])
        ys = y * (xs / x) ** float(slope)
        ax.plot(xs, ys, color=style.GUIDE, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1.5, scalex=False, scaley=False)
        # outside of the axes, where nothing else is drawn; those on top stand close, so on two heights
        above = {"xytext": (0, 3 + 8 * (i % 2)), "ha": "center"}
        place: dict[str, Any] = above if end < right else {"xytext": (3, 0), "va": "center"}
        ax.annotate(power(slope), (xs[1], ys[1]), textcoords="offset points", color=style.GUIDE, fontsize=8, **place)
    ax.set(xlim=(left, right), ylim=(bottom, top))


def power(slope: Fraction) -> str:
    """N to that power, in matplotlib's mathematics."""
    return "$N$" if slope == 1 else f"$N^{{{slope}}}$"


def core_macs(name: str, sides: Iterable[int], dim: int = 96, heads: int = 3, **config: object) -> dict[float, float]:
    """MACs of one attention core, routing included, against tokens, for square maps of these sides.

    The projections and position terms, which every mechanism has and which are linear in tokens, are left out.
    """
    with torch.device("meta"):
        attention = attention_zoo.create(name, dim=dim, num_heads=heads, **config)
    parts = {side * side: attention.macs(side, side) for side in sides}
    return {float(tokens): float(macs.core + macs.routing) for tokens, macs in parts.items()}
