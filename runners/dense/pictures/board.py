"""Panels of photographs in rows of their own heights, and names beside boxes that never cover each other."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from runners.dense.pictures.colours import Floats
from runners.figures.looks import luminance
from runners.figures.sheet import CAPTION_PT, KEY_PT

WIDTH_IN = 6.9
"""Of a figure: SIZES["page"] of the other figures."""
GAP_IN, HEAD_IN, NOTE_IN, LINE_IN, EDGE_IN = 0.08, 0.2, 0.17, 0.125, 0.06
"""Between panels; above and below a row of them; a line of the key or the caption; around everything."""
NAME_LETTERS_PER_INCH = 19
"""Of a caption, fewer than of a sentence: names of cells have few narrow letters."""
MOST_IN = 4.0
"""Height of a panel at most."""
LABEL_PT, NOTE_PT = 5.5, 6.0
NOTE_LETTERS = 22
"""Of a note, to the inch."""
KEY_LETTERS = 22


@dataclass(frozen=True)
class KeyEntry:
    """A class in the key of a figure."""

    name: str
    colour: str
    hatch: str = ""


@dataclass(frozen=True)
class Name:
    """What is written at a box (x1, y1, x2, y2) of an image."""

    text: str
    box: tuple[float, float, float, float]
    colour: str


def board(
    shapes: Sequence[tuple[int, int]],
    titles: Sequence[str],
    key: Sequence[KeyEntry],
    caption: str,
) -> tuple[Figure, list[list[Axes]]]:
    """Make a panel for each title in a row for each image (height, width), with a key and a caption below."""
    columns = len(titles)
    fair = (WIDTH_IN - 2 * EDGE_IN - (columns - 1) * GAP_IN) / columns
    sizes = [(min(fair, MOST_IN * width / height), height, width) for height, width in shapes]
    heights = [across * height / width for across, height, width in sizes]
    per_line = max(1, int(WIDTH_IN * 16 / (max((len(entry.name) for entry in key), default=1) + 5)))
    key_lines = -(-len(key) // per_line)
    lines = textwrap.wrap(caption, int(WIDTH_IN * NAME_LETTERS_PER_INCH), break_on_hyphens=False)
    foot = 2 * EDGE_IN + LINE_IN * (key_lines + len(lines)) + (0.06 if key else 0)
    total = EDGE_IN + HEAD_IN + sum(heights) + NOTE_IN * len(heights) + GAP_IN * (len(heights) - 1) + foot
    figure = Figure(figsize=(WIDTH_IN, total))
    rows, top = list[list[Axes]](), total - EDGE_IN - HEAD_IN
    for number, ((across, _, _), down) in enumerate(zip(sizes, heights, strict=True)):
        left = (EDGE_IN + at * (fair + GAP_IN) for at in range(columns))
        rows.append([_panel(figure, (x, top - down, across, down), total) for x in left])
        if not number:
            for ax, title in zip(rows[0], titles, strict=True):
                ax.set_title(title, loc="left", pad=3)
        top -= down + NOTE_IN + GAP_IN
    if key:
        draw_key(figure, key, per_line, (EDGE_IN + LINE_IN * len(lines) + 0.06) / total)
    figure.text(
        EDGE_IN / WIDTH_IN, EDGE_IN / total, "\n".join(lines), fontsize=CAPTION_PT, va="bottom", linespacing=1.3
    )
    return figure, rows


def _panel(figure: Figure, place: tuple[float, float, float, float], total: float) -> Axes:
    left, bottom, across, down = place
    ax = figure.add_axes((left / WIDTH_IN, bottom / total, across / WIDTH_IN, down / total))
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color="#444444", linewidth=0.5)
    return ax


def show(ax: Axes, pixels: Floats) -> None:
    """Show an image (H, W, 3) in 0 .. 1."""
    ax.imshow(pixels.clip(0, 1), interpolation="nearest", aspect="auto")
    ax.autoscale(False)


def write_note(ax: Axes, text: str) -> None:
    """Write a line below a panel, cut where the panel ends."""
    panel = ax.get_window_extent()
    most = max(8, int(panel.width / ax.figure.dpi * NOTE_LETTERS))
    down = 2.5 * ax.figure.dpi / 72 / panel.height
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    ax.text(0, -down, cut, transform=ax.transAxes, va="top", fontsize=NOTE_PT)


def draw_key(figure: Figure, key: Sequence[KeyEntry], per_line: int, bottom: float) -> None:
    """Explain colours in rows, from `bottom` up."""
    handles = [
        Rectangle(
            (0, 0),
            1,
            1,
            facecolor=entry.colour,
            edgecolor="#444444",
            linewidth=0.4,
            hatch=entry.hatch,
            label=shortened(entry.name),
        )
        for entry in key
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, bottom),
        ncols=per_line,
        frameon=False,
        fontsize=KEY_PT,
        handlelength=1.3,
        handleheight=0.9,
        handletextpad=0.4,
        columnspacing=1.2,
        labelspacing=0.25,
        borderpad=0.2,
        borderaxespad=0.2,
    )


def shortened(name: str) -> str:
    """A name of a class, cut where it would be wider than its place."""
    return name if len(name) <= KEY_LETTERS else name[: KEY_LETTERS - 3] + "..."


def write_names(ax: Axes, names: Sequence[Name]) -> int:
    """Write names at their boxes where they cover no other name and stay in the panel; returns how many had no room.

    The first ones are placed first.
    """
    frame, taken = ax.get_window_extent(), list[Bbox]()
    gap = 0.6 * ax.figure.dpi / 72
    left_out = 0
    for name in names:
        label = ax.text(
            0, 0, shortened(name.text), fontsize=LABEL_PT, va="bottom", ha="left", color=ink_on(name.colour), zorder=4
        )
        label.set_bbox({"facecolor": name.colour, "edgecolor": "none", "pad": 0.8})
        extent = label.get_window_extent()
        pad = 0.8 * ax.figure.dpi / 72 + gap
        width, height = extent.width + 2 * pad, extent.height + 2 * pad
        for x, y in _places(ax, name.box, width, height):
            place = Bbox.from_bounds(x, y, width, height)
            inside = frame.x0 <= place.x0 and place.x1 <= frame.x1 and frame.y0 <= place.y0 and place.y1 <= frame.y1
            if inside and not any(place.overlaps(other) for other in taken):
                taken.append(place)
                label.set_position(tuple(ax.transData.inverted().transform((x + pad, y + pad))))
                break
        else:
            label.remove()
            left_out += 1
    return left_out


def _places(ax: Axes, box: tuple[float, float, float, float], width: float, height: float) -> list[tuple[float, float]]:
    """Lower left corners of a label at a box, in pixels of print, the best first: above, inside, below, beside."""
    (x1, y1), (x2, y2) = ax.transData.transform([(box[0], box[3]), (box[2], box[1])])
    above, within, low, below = y2, y2 - height, y1, y1 - height
    lefts, frame = (x1, x2 - width, (x1 + x2 - width) / 2), ax.get_window_extent()
    inner = [(min(max(x, frame.x0), frame.x1 - width), y) for y in (above, within, low, below) for x in lefts]
    steps = [y2 - height * (1 + step) for step in range(int((y2 - y1) / height))]
    beside = [(x, y) for y in (y2 - height, y1) for x in (x2, x1 - width)]
    return inner + beside + [(x, y) for y in steps for x in lefts]


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    return "#000000" if luminance(colour) > 0.18 else "#FFFFFF"
