"""What figures draw of repeats: means, the seeds behind them, intervals that stay in the axes, and failures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from pandas import DataFrame, isna

from runners.figures.looks import Look
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet
from runners.rows.stats import Interval

GUIDE = "#555555"
DISTURBED = "Hollow: other work on the machine disturbed the measurement."
ASIDE_PT = 4.5
FAILED_ROWS = 4
"""Failures of one place that are drawn; the last of more counts the others."""

REACH = 0.3
"""How far beyond the seeds an axis goes for the ends of intervals, as a share of what the seeds span."""


def draw_means(ax: Axes, points: Mapping[float, Interval], look: Look, label: str) -> None:
    """Draw means against x as a line with markers."""
    ax.plot([*points], [point.mean for point in points.values()], label=label, zorder=3, **look.style())


def draw_seeds(ax: Axes, rows: DataFrame, x: str, y: str, look: Look) -> None:
    """Draw each repeat as a small dot to the right of the mean; nothing where all are the mean."""
    found = rows[[x, y]].dropna()
    found = found[found.groupby(x)[y].transform("nunique") > 1].astype(float)
    aside = ScaledTranslation(ASIDE_PT / 72, 0, ax.figure.dpi_scale_trans)
    ax.plot(found[x], found[y], "o", color=look.colour, ms=1.8, mew=0, alpha=0.7, label="_seeds", zorder=2.5,
            transform=ax.transData + aside)  # fmt: skip


def draw_disturbed(ax: Axes, points: Iterable[tuple[float, float]], look: Look, size: float | None = None) -> None:
    """Draw points hollow, over what has been drawn of them."""
    found = [*points]
    if found:
        style = look.style() | {"linestyle": "none", "mfc": "white", "mec": look.colour, "mew": 1.0, "ms": size}
        ax.plot(*zip(*found, strict=True), label="_disturbed", zorder=3.5, **style)


def draw_intervals(ax: Axes, points: Iterable[tuple[float, float, Interval]], look: Look, axis: str = "y") -> None:
    """Draw intervals along an axis whose limits are set: thin lines, and an arrow where one leaves the axes."""
    lowest, highest = sorted(ax.get_ylim() if axis == "y" else ax.get_xlim())
    arrows = {"y": (7, 6), "x": (4, 5)}[axis]
    segments = []
    for x, y, interval in points:
        if interval.low is None or interval.high is None:
            continue
        ends = [min(max(end, lowest), highest) for end in (interval.low, interval.high)]
        segments.append([(x, end) if axis == "y" else (end, y) for end in ends])
        for end, (place, marker) in zip((interval.low, interval.high), zip(ends, arrows, strict=True), strict=True):
            if end != place:
                at = (x, place) if axis == "y" else (place, y)
                ax.plot(*at, marker=marker, color=look.colour, ms=3.5, mew=0, label="_arrow", zorder=2)
    ax.add_collection(LineCollection(segments, colors=look.colour, linewidths=0.6, alpha=0.8, zorder=2), autolim=False)


@dataclass(frozen=True)
class Failed:
    """A cell that failed: its line, why, and where on x; None if its cost is what failed."""

    x: float | None
    line: str
    why: str


def failed_rows(failed: Sequence[Failed]) -> int:
    """Rows of crosses that `mark_failures` will draw."""
    counts = [sum(other.x == one.x for other in failed) for one in failed]
    return min(FAILED_ROWS, max(counts, default=0))


def mark_failures(sheet: Sheet, ax: Axes, failed: Sequence[Failed], looks: Mapping[str, Look]) -> None:
    """Draw failed cells as crosses along the top, those without an x at the left edge, and ask for their names."""
    across = ax.get_xaxis_transform()
    places: dict[float | None, list[Failed]] = {}
    for cell in failed:
        places.setdefault(cell.x, []).append(cell)
    for x, cells in places.items():
        transform, at = (across, x) if x is not None else (ax.transAxes, 0.03)
        for row, cell in enumerate(cells[:FAILED_ROWS]):
            height, look = 0.96 - 0.07 * row, looks[cell.line]
            ax.plot([at], [height], "x", color=look.colour, mew=1.4, ms=4.5, transform=transform, label="_failed")
            texts: tuple[str, ...] = (f"{sheet.name(cell.line)}: {cell.why}", cell.why)
            if row == FAILED_ROWS - 1 and len(cells) > FAILED_ROWS:
                texts = (f"{len(cells) - row} more failed",)
            sheet.tag(Tag(ax, texts, [(at, height)], look.ink, rank=0, transform=transform))


def limit(
    ax: Axes,
    values: Iterable[float],
    ends: Iterable[float | None] = (),
    *,
    log: bool,
    axis: str = "y",
    room: float = 0.0,
) -> None:
    """Set an axis to show these values, and the ends of intervals where they do not flatten all else.

    `room` is the share of the axis that is kept free on top, for failures.
    """

    def scaled(numbers: Iterable[Any]) -> Any:
        known = np.array([float(value) for value in numbers if not isna(value)], dtype=float)
        known = known[np.isfinite(known) & ((known > 0) | (not log))]
        return np.log(known) if log else known

    found, beyond = scaled(values), scaled(ends)
    if not found.size:
        return
    low, high = float(found.min()), float(found.max())
    span = (high - low) or (0.5 if log else abs(high) * 0.1 or 1.0)
    reached = np.clip(beyond, low - REACH * span, high + REACH * span)
    low, high = min([low, *reached]), max([high, *reached])
    lowest = low - 0.1 * span
    if not log and low >= 0:
        # no cost is negative, and no tick below 0 says so
        lowest = max(lowest, -0.02 * span)
    low, high = lowest, high + (0.1 + room) * span
    limits = (np.exp(low), np.exp(high)) if log else (low, high)
    getattr(ax, f"set_{axis}lim")(*limits)


def plain_log(axis: Axis) -> None:
    """Tick a logarithmic axis, whose limits are set, at a few round values, written out."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if high / low > 3000 else (1.0, 3.0) if high / low > 100 else (1.0, 2.0, 5.0)
    axis.set_major_locator(MaxNLocator(4) if high / low < 8 else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plain_ticks(ax: Axes, values: Iterable[float]) -> None:
    """Tick the x axis, whose limits are set and whose scale is logarithmic, at these values, where labels have room."""
    low, high = np.log(ax.get_xlim())
    ticks: list[float] = []
    for value in sorted(set(values)):
        # a label is about a twelfth of a panel
        if not ticks or np.log(value / ticks[-1]) > (high - low) / 12:
            ticks.append(value)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
