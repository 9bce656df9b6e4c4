"""How every figure looks: marks that colour-blind readers and grey prints tell apart, failures, caption."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from runners.figures.mechanisms import legend
from runners.rows.stats import Interval

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
}

ORDER = (
    *("vanilla", "bra", "swin", "cswin", "axial", "maxvit", "crossformer", "dat"),
    *("crisscross", "sliding", "pvt", "sep"),
)
"""Mechanisms by the look that they keep in all figures; others take what is free."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2, 2, 2, 2, 2)))
GUIDE = "#555555"
CAPTION_PT = 7
LETTERS_PER_INCH = 18
"""Of a line of the caption."""


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of a line."""

    colour: Any
    marker: str
    line: Any

    def style(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` and `Axes.errorbar`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "mec": "black", "mew": 0.4}


Mark = tuple[float | None, str, str, Look]
"""A failed cell: its x, None where that is what failed, its label, its status and how its line looks."""


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Give each label a look of its own, in the order in which a legend lists them."""
    # the yellow is lost on white
    colours = [colour for i, colour in enumerate(seaborn.color_palette("colorblind")) if i != 8]

    mechanisms = {label: label.partition(" ")[0] for label in labels}
    places = {label: ORDER.index(name) if name in ORDER else len(ORDER) for label, name in mechanisms.items()}
    ordered = sorted(mechanisms, key=lambda label: (places[label], natural(label)))
    taken: dict[str, int] = {}
    for label in ordered:
        if places[label] < len(ORDER) and places[label] not in taken.values():
            taken[label] = places[label]
    # further settings of a mechanism, and mechanisms without a place, take what no other of the figure has
    free = iter([i for i in range(len(ORDER) + len(ordered)) if i not in taken.values()])
    taken |= {label: next(free) for label in ordered if label not in taken}
    # 9 colours, 12 markers and 5 dashes repeat as a whole after 180
    return {
        label: Look(colours[i % len(colours)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for label, i in ((label, taken[label]) for label in ordered)
    }


def natural(label: str) -> list[tuple[int, str]]:
    """Sort key under which numbers in a label go by their value: top-k 4 comes before 16."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", label)]


def panels(figure: SubFigure, count: int, **options: Any) -> list[Axes]:
    """Make that many axes, two beside each other."""
    axes = figure.subplots(-(-count // 2), min(2, count), squeeze=False, **options).flatten()
    for ax in axes[count:]:
        ax.set_axis_off()
    return list(axes[:count])


def plot_repeats(ax: Axes, points: Mapping[float, Interval], look: Look, label: str, *, bars: bool = False) -> None:
    """Draw means against x as a line, with the interval of the repeats as a band, or as bars, where there is one."""
    ax.plot([*points], [point.mean for point in points.values()], label=label, zorder=3, **look.style())
    known = [(x, p.mean, p.low, p.high) for x, p in points.items() if p.low is not None and p.high is not None]
    if not known:
        return
    xs, means, lows, highs = (list(values) for values in zip(*known, strict=True))
    if bars:
        reach = [[m - low for m, low in zip(means, lows, strict=True)],
                 [high - m for m, high in zip(means, highs, strict=True)]]  # fmt: skip
        ax.errorbar(xs, means, reach, fmt="none", ecolor=look.colour, elinewidth=0.9, capsize=2, zorder=2.5)
    else:
        ax.fill_between(xs, lows, highs, color=look.colour, alpha=0.15, linewidth=0, zorder=2)


def mark_failures(ax: Axes, failed: Sequence[Mark]) -> None:
    """Draw failed cells as crosses along the top; those without an x stand at the left edge."""
    transform = ax.get_xaxis_transform()
    rows: dict[float | None, int] = {}
    for x, label, status, look in failed:
        row = rows[x] = rows.get(x, -1) + 1
        height = 0.96 - 0.06 * row
        place, at = (transform, x) if x is not None else (ax.transAxes, 0.03)
        ax.plot([at], [height], "x", color=look.colour, mew=2, ms=6, transform=place, label="_failed", clip_on=False)
        across, _ = ax.transAxes.inverted().transform(place.transform((at, height)))
        side: Any = {"xytext": (-6, 0), "ha": "right"} if across > 0.6 else {"xytext": (6, 0), "ha": "left"}
        words: Any = {"textcoords": "offset points", "va": "center", "fontsize": 7}
        text = ax.annotate(f"{label}: {status}", (at, height), xycoords=place, **side, **words)
        # a long message must not squeeze the axes
        text.set_in_layout(False)


def limit(ax: Axes, values: Iterable[float], *, log: bool, axis: str = "y", room: float = 0.0) -> None:
    """Set an axis to show these values: intervals of two repeats are wide, and would make all else flat.

    `room` is the share of the axis that is kept free on top, for failures.
    """
    finite = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=float)
    if not finite.size:
        return
    scaled = np.log(finite) if log else finite
    low, high = float(scaled.min()), float(scaled.max())
    span = (high - low) or (0.5 if log else abs(high) * 0.1 or 1.0)
    low, high = low - 0.12 * span, high + (0.12 + room) * span
    limits = (np.exp(low), np.exp(high)) if log else (low, high)
    getattr(ax, f"set_{axis}lim")(*limits)


def plain_log(axis: Axis) -> None:
    """Tick a logarithmic axis, whose limits are set, at a few round values, written out."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if high / low > 3000 else (1.0, 2.0, 5.0)
    axis.set_major_locator(MaxNLocator(4) if high / low < 8 else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plain_ticks(ax: Axes, values: Iterable[float]) -> None:
    """Tick the x axis at these values alone, written out."""
    ticks = sorted(set(values))
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def wrapped(label: str, width: int = 30) -> str:
    """The label of a line for a legend: its mechanism by its name in figures, in lines that leave room for the axes."""
    name, *rest = label.split(" ")
    label = " ".join((legend(name), *rest))
    return textwrap.fill(label, width, subsequent_indent="  ", break_long_words=False)


def caption(figure: SubFigure, rows: DataFrame, note: str, unmeasured: Mapping[str, int]) -> None:
    """Write under a figure what it shows, on which device and with which versions."""
    devices = "; ".join(_distinct(rows, "device_name"))
    parts = [f"{devices} ({', '.join(_distinct(rows, 'device_id'))})"]
    names = {"layout": "layout {}", "batch_size": "batch of {}", "precision": "{}", "data": "{}", "steps": "{} steps"}
    for column, words in names.items():
        values = _distinct(rows, column)
        if len(values) == 1:
            parts.append(words.format(values[0]))
    for name, own in rows.groupby("attention"):
        settings = _distinct(own, "settings")
        if len(settings) == 1 and settings[0] and own["settings"].notna().all():
            parts.append(f"{name} with {settings[0].replace(';', ', ')}")
    versions = sorted({part for text in _distinct(rows, "versions") for part in text.split(";")})
    parts.append(", ".join(versions).replace("=", " "))
    if unmeasured:
        parts.append("not drawn: " + ", ".join(f"{n} {what}" for what, n in unmeasured.items()))
    width = int(figure.figure.get_figwidth() * LETTERS_PER_INCH)
    lines = [line for text in (note, "; ".join(parts)) for line in textwrap.wrap(text, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=CAPTION_PT, linespacing=1.35)


def _distinct(rows: DataFrame, column: str) -> list[str]:
    return sorted({str(value) for value in rows[column].dropna()})
