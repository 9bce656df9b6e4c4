"""Learning curves: training loss, and accuracy where it was looked for, against the step; of running trainings too."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from pandas import DataFrame

from runners.figures.frames import conditions, failures, labels, seeds_of
from runners.figures.lines import line_panels, name_lines, shade_notes
from runners.figures.looks import Look, looks
from runners.figures.marks import Failed, failed_rows, limit, mark_failures
from runners.figures.sheet import Sheet, titled
from runners.measures import QUALITIES, quality_of
from runners.rows.selection import LEARNING

COLUMNS = (*(quality.column for quality in QUALITIES), "accuracy_status")

SUMS = ("detect", "instance")
"""Tasks whose loss adds what is said of classes to distances of boxes."""

POINTS = 40
"""Of a line of losses; each is a mean, so that the noise of single batches does not hide the curve."""

Curves = Mapping[Hashable, DataFrame]
"""Curves by the index of their row."""


@dataclass(frozen=True)
class Panel:
    """Axes of one quantity: its title and unit, and by line its values, a row for each step and a column for each seed.

    `at_points` is whether they were measured at the steps, and not between them.
    """

    title: str
    unit: str
    lines: Mapping[str, DataFrame]
    failed: list[Failed]
    at_points: bool = False


def draw_learning(sheet: Sheet, rows: DataFrame) -> None:
    """Draw the loss of training steps, and the accuracy of trainings that were evaluated on the way, for each setting.

    Raises:
        ValueError: the rows have no curves, as those of a CSV, or no training has begun.
    """
    if LEARNING not in rows:
        raise ValueError("a table holds no learning curves; they are drawn from a results folder")
    curves = {index: source.curve for index, source in rows[LEARNING].items() if source and source.curve is not None}
    asked = {*rows.index[rows["accuracy_status"].notna()]}
    lost = {index: why for quality in QUALITIES for index, why in failures(rows, quality).items()}
    failed = {index: why for index, why in lost.items() if index in asked}
    kept = rows.loc[[index for index in rows.index if index in curves or index in failed]]
    if not curves:
        raise ValueError("no row has a learning curve: no training has written one yet")
    kept = kept.assign(line=labels(kept, has_conditions=False), facet=conditions(kept))
    styles = looks(kept["line"])
    widths = {facet: _width(curves, own) for facet, own in kept.groupby("facet")}
    panels = [panel for facet, own in kept.groupby("facet") for panel in _panels(own, curves, failed, widths[facet])]
    axes = line_panels(sheet, len(panels), styles)
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(sheet, ax, panel, styles)
    sheet.caption(kept, [*_notes(kept.loc[[*curves]], {*widths.values()}), *shade_notes(sheet, styles)])


def _width(curves: Curves, rows: DataFrame) -> int:
    """Steps of a point of these rows."""
    longest = max((len(curves[index]) for index in rows.index if index in curves), default=1)
    return -(-longest // POINTS)


def _panels(rows: DataFrame, curves: Curves, failed: Mapping[Hashable, str], width: int) -> Iterator[Panel]:
    """The losses of rows under equal conditions, and their accuracies if any training was evaluated on the way."""
    drawn = [index for index in rows.index if index in curves]
    crosses = [Failed(_end(curves.get(i)), rows["line"][i], failed[i]) for i in rows.index if i in failed]
    facet, task = rows["facet"].iloc[0], rows["task"].iloc[0]
    quality, unit = quality_of(task), "sum of the losses" if str(task) in SUMS else "nats"
    losses = {index: smoothed(curves[index], width) for index in drawn}
    yield Panel(_title("training loss", facet), unit, _by_line(rows, losses), crosses)
    # the column of a file has this name whatever the task
    accuracies = {index: curves[index].set_index("step")["acc1"].dropna() for index in drawn}
    if any(len(found) > 1 for found in accuracies.values()):
        yield Panel(_title(quality.title, facet), quality.unit, _by_line(rows, accuracies), [], at_points=True)


def smoothed(curve: DataFrame, width: int) -> "pd.Series[float]":
    """Mean losses of `width` steps each, by the middle of these steps.

    A rest of less than half of them is left out, but for a training that has no more.
    """
    groups = curve["loss"].groupby((curve["step"].astype(int) - 1) // width)
    means, counts = groups.mean(), groups.count()
    means.index = means.index * width + (width + 1) / 2
    is_full = (counts >= width / 2).to_numpy()
    return means[is_full] if is_full.any() else means


def _end(curve: DataFrame | None) -> float | None:
    return None if curve is None else float(curve["step"].iloc[-1])


def _title(quantity: str, facet: object) -> str:
    return titled(f"{quantity}: {facet}" if facet else quantity)


def _by_line(rows: DataFrame, values: "Mapping[Hashable, pd.Series[float]]") -> dict[str, DataFrame]:
    """Values of each line, by step and row."""
    found = {}
    for line, own in rows.groupby("line"):
        parts = [values[i] for i in own.index if i in values and len(values[i])]
        if parts:
            found[str(line)] = pd.concat(parts, axis=1, keys=range(len(parts))).sort_index()
    return found


def _draw_panel(sheet: Sheet, ax: Axes, panel: Panel, styles: Mapping[str, Look]) -> None:
    ax.set(xlabel="training step", ylabel=panel.unit)
    ax.set_title(panel.title, loc="left")
    values = [value for table in panel.lines.values() for value in table.to_numpy().ravel()]
    limit(ax, values, log=False, room=0.07 * failed_rows(panel.failed))
    ends = [cell.x for cell in panel.failed if cell.x is not None]
    last = max([*(float(table.index[-1]) for table in panel.lines.values()), *ends], default=1.0)
    ax.set_xlim(0, last * 1.02)
    for line, table in panel.lines.items():
        look, mean = styles[line], table.mean(axis=1)
        style = look.style() | ({} if panel.at_points or len(mean) == 1 else {"marker": "none"})
        ax.plot(mean.index, mean, label=line, zorder=3, **style)
        if table.shape[1] > 1:
            low, high = table.min(axis=1), table.max(axis=1)
            ax.fill_between(mean.index, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
    found = {line: table.mean(axis=1) for line, table in panel.lines.items()}
    name_lines(sheet, ax, {line: (float(mean.index[-1]), float(mean.iloc[-1])) for line, mean in found.items()}, styles)
    mark_failures(sheet, ax, panel.failed, styles)


def _notes(rows: DataFrame, widths: set[int]) -> list[str]:
    """What the lines and bands are of the rows that have a curve."""
    notes = []
    smooth = " or ".join(f"{width}" for width in sorted(widths))
    notes.append("Loss: that of each step." if widths == {1} else f"Loss: each point is the mean of {smooth} steps.")
    high, seeds = seeds_of(rows, ("facet", "line"))
    if high > 1:
        notes.append(f"Lines: mean over {seeds}, fewer where some have not come as far; band: lowest to highest seed.")
    else:
        notes.append("One seed.")
    running = int((rows["status"] == "running").sum())
    if running:
        notes.append(f"Still running: {running} of {len(rows)} trainings.")
    return notes
