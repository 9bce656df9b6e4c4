"""Costs of one size of images as rankings: a row for each mechanism, with and without the head of a dense task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas import DataFrame, concat

from runners.figures.frames import disturbed, failures, labels
from runners.figures.lines import CROWD, colour_key, crowd_note, point_names
from runners.figures.looks import Look, in_order, looks, natural
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

ALONG = {"task", "head", "baseline", *TRAINED}
"""Conditions that tell no lines apart: the head is a mark on them, and a cost does not depend on a training."""


@dataclass(frozen=True)
class Panel:
    """One quantity of one size of images; `rows` have the columns `line` and `under`, the head or ""."""

    quantity: Quantity
    resolution: str
    rows: DataFrame


def draw_costs(sheet: Sheet, rows: DataFrame) -> None:
    """Draw each cost of the largest images in a panel, the cheapest mechanism at the top.

    MACs of a dense task are drawn with the head and without; every other cost is that of the whole model.

    Raises:
        ValueError: no panel would have two mechanisms or settings.
    """
    panels = [_panel(*part) for part in _parts(rows)]
    panels = [panel for panel in panels if panel.rows["line"].nunique() > 1]
    if not panels:
        raise ValueError("no row has a cost beside that of another: measure two mechanisms or settings at one size")
    heads = sorted({head for panel in panels for head in panel.rows["under"]} - {""})
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
        notes.append(f"Smaller images are left out: {', '.join(left_out)} px.")
    if most > CROWD:
        notes.append(crowd_note(sheet, drawn["line"]))
    if any(disturbed(panel.rows, panel.quantity).any() for panel in panels):
        notes.append(DISTURBED)
    sheet.caption(drawn, notes)


def _parts(rows: DataFrame) -> list[tuple[Quantity, str, DataFrame]]:
    """Rows with a value or a failure of each quantity, by resolution."""
    areas = (rows["height_px"] * rows["width_px"]).groupby(rows["resolution"]).first()
    sizes = areas.sort_values().index[-MOST_SIZES:]
    found = []
    for quantity in QUANTITIES:
        lost = rows.index.isin(list(failures(rows, quantity)))
        known = rows[rows[quantity.column].notna() | lost]
        # a quantity that was never measured fails nowhere either
        if known[quantity.column].notna().any():
            found += [(quantity, str(size), known[known["resolution"] == size]) for size in sizes]
    return found


def _panel(quantity: Quantity, resolution: str, rows: DataFrame) -> Panel:
    apart = {*CONDITIONS} - {"layout", "head_settings"} if quantity is MACS else ALONG
    rows = rows.assign(line=labels(rows, apart=[*apart]), under=rows["head"].astype("string").fillna(""))
    if quantity is MACS:
        backbones = rows[rows["backbone_gmacs"].notna()]
        rows = concat([rows, backbones.assign(gmacs=backbones["backbone_gmacs"], under="")], ignore_index=True)
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
        (str(line), str(under)): mean_interval(own[column].dropna())
        for (line, under), own in rows.groupby(["line", "under"])
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
    hollow = {*rows.loc[disturbed(rows, panel.quantity), "line"]}
    for line, place in places.items():
        own = {under: point for (of, under), point in points.items() if of == line}
        _draw_line(ax, place, own, styles[line], markers, is_hollow=line in hollow)
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
    ax: Axes, place: float, points: Mapping[str, Interval], look: Look, markers: Mapping[str, str], *, is_hollow: bool
) -> None:
    means = [point.mean for point in points.values()]
    if len(means) > 1:
        ax.plot([min(means), max(means)], [place] * 2, color=look.colour, linewidth=0.6, label="_joined", zorder=2)
    for under, point in points.items():
        style: dict[str, Any] = look.style() | {"linestyle": "none"}
        if under:
            style |= {"marker": markers[under], "mfc": "white", "mec": look.colour, "mew": 0.8, "markersize": 3.6}
        ax.plot([point.mean], [place], label=f"_{under}", zorder=3, **style)
        if is_hollow and not under:
            draw_disturbed(ax, [(point.mean, place)], look)
    draw_intervals(ax, [(point.mean, place, point) for point in points.values()], look, axis="x")


def _mark_failures(
    sheet: Sheet, ax: Axes, panel: Panel, places: Mapping[str, float], styles: Mapping[str, Look]
) -> None:
    """Draw a cross at the left edge of each line that lost a row, and ask for its name."""
    across = ax.get_yaxis_transform()
    why = failures(panel.rows, panel.quantity)
    lost = panel.rows[panel.rows.index.isin(list(why))].drop_duplicates(["line", "under"])
    for index, line, under in zip(lost.index, lost["line"], lost["under"], strict=True):
        at = (0.03, places[line])
        ax.plot(*([value] for value in at), "x", color=styles[line].colour, mew=1.4, ms=4.5, transform=across,
                label="_failed")  # fmt: skip
        words = f"{under} {why[index]}".strip()
        sheet.tag(Tag(ax, (words,), [at], styles[line].ink, rank=0, transform=across))


def _key(markers: Mapping[str, str]) -> list[Line2D]:
    """Entries that tell a backbone from heads around it."""
    filled: dict[str, Any] = {"color": GUIDE, "linestyle": "none", "markersize": 4}
    backbone = Line2D([], [], marker="o", label="backbone, or classifier", **filled)
    return [backbone] + [
        Line2D([], [], marker=marker, mfc="white", label=f"with {head}", **filled) for head, marker in markers.items()
    ]
