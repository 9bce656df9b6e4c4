"""Sweep curves: accuracy and costs against top-k, or the size of a region; memory and speed against the batch."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from pandas import DataFrame, Series

from runners.figures.frames import disturbed, failures, intervals, labels, seeds_of, shown, within
from runners.figures.lines import line_panels, name_lines, shade_notes
from runners.figures.looks import Look, looks
from runners.figures.marks import (
    DISTURBED,
    GUIDE,
    Failed,
    draw_disturbed,
    draw_intervals,
    draw_means,
    draw_seeds,
    failed_rows,
    limit,
    mark_failures,
    plain_ticks,
)
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet, titled
from runners.measures import ACCURACY, LATENCY, MACS, MEMORY, QUALITIES, THROUGHPUT, TRAINING_MEMORY, Quantity
from runners.rows.selection import models
from runners.rows.stats import Interval, mean_interval

QUANTITIES = (*QUALITIES, MACS, LATENCY, MEMORY)
OF_BATCHES = (THROUGHPUT, MEMORY, TRAINING_MEMORY)
COLUMNS = (
    *("topk", "region_size", "chance_percent", "ceiling_percent"),
    *(quantity.column for quantity in dict.fromkeys((*QUANTITIES, *OF_BATCHES))),
)

AUTO = " auto"
"""End of the name of a line whose regions the closed form has chosen."""

LEVEL_NAMES = (0.7, 0.6, 0.5, 0.4, 0.3)
"""Where the name of a level may stand, as a share of the axis."""

LEVEL_AT = 0.96
"""Where the seeds of a level stand, as a share of the axis."""


@dataclass(frozen=True)
class Swept:
    """What is swept: its axis, its name in messages, the settings that lie along it, and what is drawn against it."""

    axis: str
    name: str
    settings: tuple[str, ...]
    quantities: tuple[Quantity, ...] = QUANTITIES


TOPK = Swept("top-k (regions)", "top-k", ("topk", "clip_topk"))
REGION_SIZE = Swept("side of a region, first stage (tokens)", "region size", ("regions", "region_size", "clip_topk"))

BATCH = Swept("batch (images)", "the batch", ("batch_size",), OF_BATCHES)


def draw_topk(sheet: Sheet, rows: DataFrame) -> None:
    """Draw accuracy and costs against top-k; vanilla under the same conditions is a level.

    Raises:
        ValueError: no mechanism has two values of top-k, or nothing was measured.
    """
    _draw(sheet, rows.assign(x=rows["topk"].astype("Float64")), TOPK)


def draw_region_size(sheet: Sheet, rows: DataFrame) -> None:
    """Draw accuracy and costs against the side of a region in the first stage; as `draw_topk`.

    What `region_size=auto` chose is a line of its own, or a point.

    Raises:
        ValueError: no mechanism has two sizes of regions, or nothing was measured.
    """
    _draw(sheet, rows.assign(x=rows["region_size"].map(region_side).astype("Float64")), REGION_SIZE)


def draw_batch(sheet: Sheet, rows: DataFrame) -> None:
    """Draw images per second and peak memory against the batch, a line for each mechanism with its settings.

    Raises:
        ValueError: no mechanism has two batches, or nothing was measured.
    """
    _draw(sheet, rows.assign(x=rows["batch_size"].astype("Float64")), BATCH)


def region_side(text: object) -> float | None:
    """Side of a region of the first stage, tokens: that of the square of its area; None where it has none."""
    sides = text.partition("-")[0].split("x") if isinstance(text, str) else [""]
    return float((int(sides[0]) * int(sides[-1])) ** 0.5) if all(side.isdigit() for side in sides) else None


def _draw(sheet: Sheet, rows: DataFrame, over: Swept) -> None:
    kept, levels = select(rows, over)
    styles = looks([*kept["line"], *levels["line"]], models(rows))
    quantities = shown(kept, over.quantities)
    axes = line_panels(sheet, len(quantities), styles)
    for ax, quantity in zip(axes, quantities, strict=True):
        sweep_curve(sheet, ax, kept, levels, quantity, styles)
        ax.set_xlabel(over.axis)
    high, seeds = seeds_of(kept.assign(x=kept["x"].fillna(0)), ("line", "x"))
    notes = ["One seed."]
    if high > 1:
        notes = [
            f"Mean over {seeds}; dots: each seed; thin lines: 95% t-intervals (an arrow where one leaves the axes)."
        ]
    beside = len(rows) - len(kept) - len(levels)
    if beside:
        notes.append(f"{beside} rows that no sweep joins are left out.")
    notes += shade_notes(sheet, styles)
    if any(disturbed(kept, quantity).any() for quantity in quantities):
        notes.append(DISTURBED)
    sheet.caption(kept, notes)


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
    level = comparable & (rows["subject"] == "vanilla") & ~in_sweep
    chosen = comparable & line.str.endswith(AUTO)
    # named again, since what tells lines apart may have been left out with the others
    found = rows[in_sweep | level | chosen]
    found = found.assign(line=_lines(found, over))
    return found[~level[found.index]], found[level[found.index]]


def _lines(rows: DataFrame, over: Swept) -> "Series[str]":
    line = labels(rows, apart=over.settings)
    if "region_size" not in over.settings:
        return line
    auto = rows["settings"].map(lambda settings: settings.get("region_size") == "auto").astype(bool)
    return line.where(~auto, line + AUTO)


def sweep_curve(
    sheet: Sheet, ax: Axes, rows: DataFrame, levels: DataFrame, quantity: Quantity, styles: Mapping[str, Look]
) -> None:
    """Draw one quantity against the column `x`, a line for each `line`; `levels` are rows that have no x."""
    column = quantity.column
    points = {str(line): _points(own, quantity) for line, own in rows.groupby("line")}
    flat = {
        str(line): within(mean_interval(own[column]), quantity)
        for line, own in levels.dropna(subset=[column]).groupby("line")
    }
    failed = _failed(rows, quantity)
    ax.set(xscale="log", ylabel=quantity.unit)
    ax.set_title(titled(quantity.title), loc="left")
    means = [*flat.values(), *(point for own in points.values() for point in own.values())]
    values = [*rows[column].dropna(), *levels[column].dropna()]
    limit(ax, values, [end for p in means for end in (p.low, p.high)], log=False, room=0.07 * failed_rows(failed))
    limit(ax, rows["x"].dropna(), log=True, axis="x")
    plain_ticks(ax, rows["x"].dropna())
    for line, found in points.items():
        if found:
            _draw_line(ax, rows[rows["line"] == line], quantity, line, styles[line])
    for line, level in flat.items():
        _draw_level(ax, levels.loc[levels["line"] == line, column].dropna(), level, line, styles[line])
    if quantity is ACCURACY:
        _draw_marks(sheet, ax, rows)
    ends = {line: ([*found][-1], [*found.values()][-1].mean) for line, found in points.items() if found}
    ends |= {line: (ax.get_xlim()[1], level.mean) for line, level in flat.items()}
    name_lines(sheet, ax, ends, styles)
    mark_failures(sheet, ax, failed, styles)


def _points(rows: DataFrame, quantity: Quantity) -> dict[float, Interval]:
    return {x: within(point, quantity) for x, point in intervals(rows, quantity.column, "x").items()}


def _draw_line(ax: Axes, rows: DataFrame, quantity: Quantity, line: str, look: Look) -> None:
    points = _points(rows, quantity)
    draw_means(ax, points, look, line)
    draw_seeds(ax, rows, "x", quantity.column, look)
    draw_intervals(ax, [(x, point.mean, point) for x, point in points.items()], look)
    hollow = set(rows.loc[disturbed(rows, quantity), "x"].dropna())
    draw_disturbed(ax, [(x, point.mean) for x, point in points.items() if x in hollow], look)


def _draw_level(ax: Axes, values: "Series[float]", level: Interval, line: str, look: Look) -> None:
    low, high = ax.get_xlim()
    edge = low * (high / low) ** LEVEL_AT
    ax.axhline(level.mean, color=look.colour, linewidth=0.9, linestyle=look.line, label=line, zorder=2)
    draw_intervals(ax, [(edge, level.mean, level)], look)
    draw_seeds(ax, DataFrame({"x": edge, "y": values}), "x", "y", look)


def _failed(rows: DataFrame, quantity: Quantity) -> list[Failed]:
    """A failure for each line and x that lost a row."""
    why = failures(rows, quantity)
    lost = rows[rows.index.isin(list(why)) & rows["x"].notna()].drop_duplicates(["line", "x"])
    return [Failed(float(x), line, why[i]) for i, x, line in zip(lost.index, lost["x"], lost["line"], strict=True)]


def _draw_marks(sheet: Sheet, ax: Axes, rows: DataFrame) -> None:
    """Draw the accuracy of guessing, and of a model that relates nothing, where the axis reaches them."""
    low, high = ax.get_ylim()
    for column, words in (("chance_percent", "guessing"), ("ceiling_percent", "objects seen, not related")):
        values = rows[column].dropna().unique()
        if len(values) == 1 and low < values[0] < high:
            ax.axhline(values[0], color=GUIDE, linewidth=0.7, linestyle=":", zorder=1.5, label="_level")
            along = [(share, float(values[0])) for share in LEVEL_NAMES]
            across = ax.get_yaxis_transform()
            sheet.tag(Tag(ax, (words,), along, GUIDE, rank=9, transform=across, is_on_line=True))
