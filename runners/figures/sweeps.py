"""Sweep curves: accuracy and costs against top-k, or against the size of a region."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from pandas import DataFrame, Series

from runners.figures import style
from runners.figures.frames import failures, intervals, labels, shown
from runners.measures import ACCURACY, LATENCY, MACS, MEMORY, Quantity
from runners.rows.stats import mean_interval

QUANTITIES = (ACCURACY, MACS, LATENCY, MEMORY)
COLUMNS = ("topk", "region_size", "chance_percent", "ceiling_percent", *(q.column for q in QUANTITIES))
SIZE = (9.5, 7.0)

AUTO = " auto"
"""End of the name of a line whose regions the closed form has chosen."""


@dataclass(frozen=True)
class Swept:
    """What is swept: its axis, its name in messages, and the settings that lie along it."""

    axis: str
    name: str
    settings: tuple[str, ...]


TOPK = Swept("top-k (regions)", "top-k", ("topk", "clip_topk"))
REGION_SIZE = Swept("side of a region, first stage (tokens)", "region size", ("regions", "region_size", "clip_topk"))


def draw_topk(figure: SubFigure, rows: DataFrame, unmeasured: Mapping[str, int]) -> None:
    """Draw accuracy and costs against top-k; vanilla under the same conditions is a level.

    Raises:
        ValueError: no mechanism has two values of top-k, or nothing was measured.
    """
    _draw(figure, rows.assign(x=rows["topk"].astype("Float64")), TOPK, unmeasured)


def draw_region_size(figure: SubFigure, rows: DataFrame, unmeasured: Mapping[str, int]) -> None:
    """Draw accuracy and costs against the side of a region in the first stage; as `draw_topk`.

    What `region_size=auto` chose is a line of its own, or a point.

    Raises:
        ValueError: no mechanism has two sizes of regions, or nothing was measured.
    """
    _draw(figure, rows.assign(x=rows["region_size"].map(region_side).astype("Float64")), REGION_SIZE, unmeasured)


def region_side(text: object) -> float | None:
    """Side of a region of the first stage, tokens: that of the square of its area; None where it has none."""
    sides = text.partition("-")[0].split("x") if isinstance(text, str) else [""]
    return float((int(sides[0]) * int(sides[-1])) ** 0.5) if all(side.isdigit() for side in sides) else None


def _draw(figure: SubFigure, rows: DataFrame, over: Swept, unmeasured: Mapping[str, int]) -> None:
    kept, levels = select(rows, over)
    styles = style.looks([*kept["line"], *levels["line"]])
    quantities = shown(kept, QUANTITIES)
    entries: dict[str, Artist] = {}
    for ax, quantity in zip(style.panels(figure, len(quantities)), quantities, strict=True):
        sweep_curve(ax, kept, levels, quantity, styles)
        ax.set_xlabel(over.axis)
        for handle, line in zip(*ax.get_legend_handles_labels(), strict=True):
            own = kept[kept["line"] == line] if line in set(kept["line"]) else levels[levels["line"] == line]
            entries.setdefault(style.wrapped(f"{line} ({_repeats(own)})", 40), handle)
    figure.legend([*entries.values()], [*entries], loc="outside upper left", ncols=4, frameon=False, handlelength=3.2)
    note = "Mean and 95% t-interval (band) over seeds, n of them; dots: each seed."
    beside = len(rows) - len(kept) - len(levels)
    style.caption(figure, kept, note + f" {beside} rows that no sweep joins are left out." * bool(beside), unmeasured)


def select(rows: DataFrame, over: Swept) -> tuple[DataFrame, DataFrame]:
    """Rows of lines with two values of the column `x`, and those of vanilla under the same conditions, named `line`.

    Raises:
        ValueError: there is no such line.
    """
    line = _lines(rows, over)
    values = rows["x"].groupby(line).nunique()
    in_sweep = line.isin(values[values > 1].index)
    if not in_sweep.any():
        raise ValueError(
            f"no mechanism has two values of {over.name} under the same conditions: there is no sweep to draw"
        )
    comparable = rows["conditions"].isin(set(rows.loc[in_sweep, "conditions"]))
    level = comparable & (rows["attention"] == "vanilla")
    chosen = comparable & line.str.endswith(AUTO)
    # named again, since what tells lines apart may have been left out with the others
    drawn = rows[in_sweep | level | chosen]
    drawn = drawn.assign(line=_lines(drawn, over))
    return drawn[~level[drawn.index]], drawn[level[drawn.index]]


def _lines(rows: DataFrame, over: Swept) -> "Series[str]":
    line = labels(rows, apart=over.settings)
    if "region_size" not in over.settings:
        return line
    auto = rows["settings"].map(lambda settings: settings.get("region_size") == "auto").astype(bool)
    return line.where(~auto, line + AUTO)


def _repeats(rows: DataFrame) -> str:
    counts = rows.assign(x=rows["x"].fillna(0)).groupby("x")["seed"].nunique()
    low, high = counts.min(), counts.max()
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def sweep_curve(
    ax: Axes, rows: DataFrame, levels: DataFrame, quantity: Quantity, styles: Mapping[str, style.Look]
) -> None:
    """Draw one quantity against the column `x`, a line for each `line`; `levels` are rows that have no x."""
    failed = failures(rows, quantity)
    marks = []
    for line in dict.fromkeys(label for label in styles if label in set(rows["line"])):
        own, look = rows[rows["line"] == line], styles[line]
        points = intervals(own, quantity.column, "x")
        if points:
            style.plot_repeats(ax, points, look, line)
            repeats = own[["x", quantity.column]].dropna().astype(float)
            ax.plot(repeats["x"], repeats[quantity.column], ".", color=look.colour, ms=3)
        own_failed = own[own.index.isin(list(failed))].drop_duplicates("x")
        marks += [(float(x), line, failed[i], look) for i, x in own_failed["x"].dropna().items()]
    for line in dict.fromkeys(levels["line"]):
        _draw_level(ax, levels.loc[levels["line"] == line, quantity.column].dropna(), line, styles[line])
    every = [*rows[quantity.column].dropna(), *levels[quantity.column].dropna()]
    ax.set(xscale="log", ylabel=quantity.unit)
    ax.set_title(quantity.title, loc="left")
    style.limit(ax, every, log=False, room=0.15 * bool(marks))
    style.limit(ax, rows["x"].dropna(), log=True, axis="x")
    style.plain_ticks(ax, rows["x"].dropna())
    if quantity is ACCURACY:
        _draw_marks(ax, rows)
    style.mark_failures(ax, marks)


def _draw_level(ax: Axes, values: "Series[float]", line: str, look: style.Look) -> None:
    if values.empty:
        return
    level = mean_interval(values)
    ax.axhline(level.mean, color=look.colour, linestyle=look.line, label=line, zorder=2)
    if level.low is not None and level.high is not None:
        ax.axhspan(level.low, level.high, color=look.colour, alpha=0.12, linewidth=0, zorder=1)


def _draw_marks(ax: Axes, rows: DataFrame) -> None:
    """Draw the accuracy of guessing, and of a model that relates nothing, where the axis reaches them."""
    low, high = ax.get_ylim()
    for column, words in (("chance_percent", "guessing"), ("ceiling_percent", "sees objects, relates none")):
        values = rows[column].dropna().unique()
        if len(values) == 1 and low < values[0] < high:
            ax.axhline(values[0], color=style.GUIDE, linewidth=0.9, linestyle=":", zorder=1.5)
            ax.annotate(words, (0.5, values[0]), xycoords=ax.get_yaxis_transform(), xytext=(0, 2), fontsize=7,
                        textcoords="offset points", ha="center", va="bottom", color=style.GUIDE)  # fmt: skip
