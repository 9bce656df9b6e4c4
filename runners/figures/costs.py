"""Costs of one size of images as rankings: a row for each mechanism, with and without the head of a dense task."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas import DataFrame, concat

from runners.figures.frames import disturbed, failures, labels
from runners.figures.lines import CROWD, colour_key, crowd_note, point_names
from runners.figures.looks import Look, in_order, looks, natural, shade
from runners.figures.marks import DISTURBED, GUIDE, draw_disturbed, draw_intervals, limit, plain_log
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet
from runners.measures import LATENCY, MACS, MEMORY, ONE_IMAGE_LATENCY, TRAINING_MEMORY, Quantity
from runners.rows.selection import CONDITIONS, TRAINED, models
from runners.rows.stats import Interval, mean_interval

QUANTITIES = (MACS, ONE_IMAGE_LATENCY, LATENCY, MEMORY, TRAINING_MEMORY)
COLUMNS = ("height_px", "width_px", "backbone_gmacs", *(quantity.column for quantity in QUANTITIES))

MOST_SIZES = 2
"""Sizes of images that are drawn, the largest: how costs grow is what the figure `complexity` shows."""

LINE_HEIGHT, FRAME_HEIGHT = 0.135, 0.55
"""Of a mechanism, and of title and axis; inches."""

HEAD_MARKERS = ("o", "D", "v", "s", "^", "<", ">", "P")
HEAD_PT = 3.6
"""Size of a mark of a head, which is paler than that of a mechanism."""

ALONG = ("task", "head", "baseline", *TRAINED)
"""Conditions that tell no lines apart: the head is a mark on them, and a cost does not depend on a training."""
ALONG_OF = {
    MACS: (*ALONG, *sorted({*CONDITIONS} - {*ALONG, "layout", "head_settings"})),
    ONE_IMAGE_LATENCY: (*ALONG, "batch_size"),
}
"""Further ones, of quantities that do not depend on them."""


@dataclass(frozen=True)
class Panel:
    """One quantity of one size of images; `rows` have the columns `line` and `head`, "" where there is none."""

    quantity: Quantity
    resolution: str
    rows: DataFrame


def draw_costs(sheet: Sheet, rows: DataFrame) -> None:
    """Draw each cost of the largest images in a panel, the cheapest mechanism at the top.

    MACs of a dense task are drawn with the head and without; every other cost is that of the whole model.

    Raises:
        ValueError: no panel would have two mechanisms or settings.
    """
    panels = [panel for quantity in QUANTITIES for panel in _panels(rows, quantity)]
    if not panels:
        raise ValueError("no row has a cost beside that of another: measure two mechanisms or settings at one size")
    heads = sorted({head for panel in panels for head in panel.rows["head"]} - {""})
    markers = dict(zip(heads, HEAD_MARKERS * len(heads), strict=False))
    most = max(panel.rows["line"].nunique() for panel in panels)
    drawn = concat([panel.rows for panel in panels])
    names = {line: forms[0] for line, forms in point_names(sheet, drawn["line"], most > CROWD).items()}
    axes = sheet.panels(len(panels), FRAME_HEIGHT + LINE_HEIGHT * most)
    for ax, panel in zip(axes, panels, strict=True):
        draw_panel(sheet, ax, panel, looks(panel.rows["line"], models(rows)), names, markers)
    colours = colour_key(sheet, looks(drawn["line"], models(rows))) if most > CROWD else []
    sheet.key([*(_key(markers) if heads else []), *colours])
    seeds = int(drawn.groupby(["line", "resolution"])["seed"].nunique().max())
    notes = ["Mean over seeds, with 95% intervals where they differ." if seeds > 1 else "One seed."]
    if heads:
        notes.append("With a head, time and memory are those of the whole model.")
    if left_out := sorted({*rows["resolution"].dropna()} - {*drawn["resolution"]}, key=natural):
        notes.append(f"Not drawn: images of {', '.join(left_out)} px.")
    if most > CROWD:
        notes.append(crowd_note(sheet, drawn["line"]))
    if any(disturbed(panel.rows, panel.quantity).any() for panel in panels):
        notes.append(DISTURBED)
    # a cost is that of no training: rows of costs alone tell the defaults of one
    sheet.caption(drawn.assign(**dict.fromkeys(TRAINED)), notes)


def _panels(rows: DataFrame, quantity: Quantity) -> list[Panel]:
    """Panels of the largest images of which two lines have a value or a failure."""
    if rows[quantity.column].isna().all():  # what was never measured has not failed either
        return []
    known = rows[rows[quantity.column].notna() | rows.index.isin(list(failures(rows, quantity)))]
    areas = (known["height_px"] * known["width_px"]).groupby(known["resolution"]).first().sort_values()
    panels = [_panel(quantity, str(size), known[known["resolution"] == size]) for size in areas.index]
    return [panel for panel in panels if panel.rows["line"].nunique() > 1][-MOST_SIZES:]


def _panel(quantity: Quantity, resolution: str, rows: DataFrame) -> Panel:
    along = ALONG_OF.get(quantity, ALONG)
    rows = rows.assign(line=labels(rows, apart=along), head=rows["head"].astype("string").fillna(""))
    if quantity is MACS:
        dense = rows[rows["backbone_gmacs"].notna()]
        # a classifier is its backbone and next to nothing, so where that is known it is drawn once
        others = rows[(rows["head"] != "") | ~rows["line"].isin(dense["line"])]
        backbones = dense.drop_duplicates(["line", "seed"])
        backbones = backbones.assign(gmacs=backbones["backbone_gmacs"], head="")
        rows = concat([others, backbones], ignore_index=True)
    return Panel(quantity, resolution, rows)


def draw_panel(
    sheet: Sheet,
    ax: Axes,
    panel: Panel,
    styles: Mapping[str, Look],
    names: Mapping[str, str],
    markers: Mapping[str, str],
) -> None:
    """Draw a row for each line of a panel: its marker for the model without a head, and one for each head."""
    rows, column = panel.rows, panel.quantity.column
    points = {
        (str(line), str(head)): mean_interval(own[column].dropna())
        for (line, head), own in rows.groupby(["line", "head"])
        if own[column].notna().any()
    }
    places = {line: float(place) for place, line in enumerate(_ranked(rows["line"], points))}
    ax.set(xscale="log", ylim=(len(places) - 0.4, -0.6), xlabel=panel.quantity.axis)
    ax.set_title(f"{panel.resolution} px", loc="left")
    limit(ax, [point.mean for point in points.values()], _ends(points.values()), log=True, axis="x")
    plain_log(ax.xaxis)
    ax.set_yticks([*places.values()], [names[line] for line in places])
    for text, line in zip(ax.get_yticklabels(), places, strict=True):
        text.set_color(styles[line].ink)
    ax.tick_params(axis="y", length=0)
    noisy = rows[disturbed(rows, panel.quantity)]
    for line, place in places.items():
        own = {head: point for (of, head), point in points.items() if of == line}
        hollow = {*noisy.loc[noisy["line"] == line, "head"]}
        _draw_line(ax, place, own, styles[line], {"": styles[line].marker, **markers}, hollow)
    _mark_failures(sheet, ax, panel, places, styles)


def _ranked(lines: Iterable[str], points: Mapping[tuple[str, str], Interval]) -> list[str]:
    """Lines by their lowest value, those without one last."""
    lowest = dict.fromkeys(in_order(lines), float("inf"))
    for (line, _), point in points.items():
        lowest[line] = min(lowest[line], point.mean)
    return sorted(lowest, key=lambda line: lowest[line])


def _ends(points: Iterable[Interval]) -> list[float | None]:
    return [end for point in points for end in (point.low, point.high)]


def _draw_line(
    ax: Axes,
    place: float,
    points: Mapping[str, Interval],
    look: Look,
    markers: Mapping[str, str],
    hollow: Container[str],
) -> None:
    means = [point.mean for point in points.values()]
    if len(means) > 1:
        ax.plot([min(means), max(means)], [place] * 2, color=look.colour, linewidth=0.6, label="_joined", zorder=2)
    for head, point in points.items():
        mark = replace(look, marker=markers[head])
        style: dict[str, Any] = mark.style() | {"linestyle": "none"}
        if head:
            style |= {"mfc": shade(look.colour, 0, 2), "mec": look.colour, "mew": 0.8, "markersize": HEAD_PT}
        ax.plot([point.mean], [place], label=f"_{head}", zorder=3, **style)
        if head in hollow:
            draw_disturbed(ax, [(point.mean, place)], mark, HEAD_PT if head else None)
    draw_intervals(ax, [(point.mean, place, point) for point in points.values()], look, axis="x")


def _mark_failures(
    sheet: Sheet, ax: Axes, panel: Panel, places: Mapping[str, float], styles: Mapping[str, Look]
) -> None:
    """Draw a cross at the left edge of each line that lost a row, and ask for its name."""
    across = ax.get_yaxis_transform()
    why = failures(panel.rows, panel.quantity)
    lost = panel.rows[panel.rows.index.isin(list(why))].drop_duplicates(["line", "head"])
    for index, line, head in zip(lost.index, lost["line"], lost["head"], strict=True):
        at = (0.03, places[line])
        ax.plot(*([value] for value in at), "x", color=styles[line].colour, mew=1.4, ms=4.5, transform=across,
                label="_failed")  # fmt: skip
        words = f"{head} {why[index]}".strip()
        sheet.tag(Tag(ax, (words,), [at], styles[line].ink, rank=0, transform=across))


def _key(markers: Mapping[str, str]) -> list[Line2D]:
    """Entries that tell a backbone from heads around it."""
    filled: dict[str, Any] = {"color": GUIDE, "linestyle": "none", "markersize": 4}
    backbone = Line2D([], [], marker="o", label="backbone, or classifier", **filled)
    pale = shade(GUIDE, 0, 2)
    return [backbone] + [
        Line2D([], [], marker=marker, mfc=pale, label=f"with {head}", **filled) for head, marker in markers.items()
    ]
