"""Names beside what they name: near a point where nothing else lies, or in a column beside the ends of lines.

`adjustText` pushes labels apart but promises neither that none overlap nor that all stay in the axes; here a label has
a free place or is left out, and the caption says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox, Transform
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

FONT_PT = 6.5
REACHES_PT = (5.5, 8, 12, 18, 26, 36, 48)
"""Distances from a point at which its name may stand."""

LEADER_PT = 10
"""From this distance on, a thin line joins a name to its point."""

DIRECTIONS = [(float(np.cos(a)), float(np.sin(a))) for a in np.radians([0, 45, -45, 180, 135, -135, 90, -90, 22, -22])]
"""Best first: to the right, above the right, ..."""

SHORTER, SHORTER_ON_LINE = 12, 100
"""Cost of the next form of a name; on a line a longer one covers more of it, which is no reason."""

MARK_PT, STROKE_PT = 4.5, 1.0
"""What is kept free around the centre of a marker, and beside a line."""


@dataclass(frozen=True)
class Tag:
    """A name that wants a place near one of some points.

    Attributes:
        ax: where.
        texts: what it says, in several forms, the best first.
        at: points to stand near, the best first.
        ink: colour of the text.
        rank: the lowest is placed first.
        transform: coordinates of the points; those of the data if None.
        is_on_line: it stands on the points themselves, and interrupts the line that it names.
        is_math: it is written in matplotlib's mathematics; names are not, whatever they hold.
        farthest: largest distance from a point, points of print.
    """

    ax: Axes
    texts: tuple[str, ...]
    at: Sequence[tuple[float, float]]
    ink: str
    rank: int = 1
    transform: Transform | None = None
    is_on_line: bool = False
    is_math: bool = False
    farthest: float = REACHES_PT[-1]


def place(tags: Iterable[Tag]) -> list[Tag]:
    """Write each name where it covers nothing, in axes whose layout is final; returns those that found no place."""
    rooms: dict[Axes, Room] = {}
    left_out = []
    for tag in sorted(tags, key=lambda tag: tag.rank):
        if tag.ax not in rooms:
            rooms[tag.ax] = Room(tag.ax)
        if not rooms[tag.ax].write(tag):
            left_out.append(tag)
    return left_out


class Room:
    """The inside of axes, with what is drawn there, in pixels."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.scale = ax.figure.dpi / 72
        self.frame = ax.get_window_extent()
        self.taken = [text.get_window_extent() for text in ax.texts]
        self.marks, self.strokes = drawn(ax)

    def write(self, tag: Tag) -> bool:
        """Write a tag where that is cheapest; False if there is no place for it."""
        transform = tag.transform or self.ax.transData
        anchors = np.asarray(transform.transform(np.asarray(tag.at, dtype=float)))
        extents = [self._extent(text, tag.is_math) for text in tag.texts]
        found = [
            (cost + (SHORTER_ON_LINE if tag.is_on_line else SHORTER) * form + index, form, index, offset)
            for form, extent in enumerate(extents)
            for index, anchor in enumerate(anchors)
            for cost, offset in self._places(anchor, *extent, tag)
        ]
        if not found:
            return False
        _, form, index, offset = min(found)
        self._annotate(tag, tag.texts[form], index, offset, extents[form])
        self.taken.append(
            Bbox.from_bounds(anchors[index][0] + offset[0], anchors[index][1] + offset[1], *extents[form])
        )
        return True

    def _extent(self, text: str, is_math: bool) -> tuple[float, float]:
        label = self.ax.text(0, 0, text, fontsize=FONT_PT, linespacing=1.05, parse_math=is_math)
        box = label.get_window_extent()
        label.remove()
        return box.width, box.height

    def _places(
        self, anchor: NDArray[np.float64], width: float, height: float, tag: Tag
    ) -> list[tuple[float, tuple[float, float]]]:
        """Free places of a box beside a point: the cost of each, and its lower left corner from the point on."""
        found = []
        reaches, directions = ((0,), [(0.0, 0.0)]) if tag.is_on_line else (REACHES_PT, DIRECTIONS)
        for reach in (reach for reach in reaches if reach <= tag.farthest):
            for order, (across, up) in enumerate(directions):
                offset = (
                    across * reach * self.scale + (across - 1) / 2 * width,
                    up * reach * self.scale + (up - 1) / 2 * height,
                )
                box = Bbox.from_bounds(anchor[0] + offset[0], anchor[1] + offset[1], width, height)
                if self._is_free(box):
                    crossed = _inside(self.strokes, box.padded(STROKE_PT * self.scale))
                    found.append((reach + 0.6 * order + 1.5 * crossed, offset))
        return found

    def _is_free(self, box: Bbox) -> bool:
        frame = self.frame
        if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
            return False
        if any(box.overlaps(other) for other in self.taken):
            return False
        return not _inside(self.marks, box.padded(MARK_PT * self.scale))

    def _annotate(
        self, tag: Tag, text: str, index: int, offset: tuple[float, float], extent: tuple[float, float]
    ) -> None:
        gap = max(*offset, *(-start - length for start, length in zip(offset, extent, strict=True)))
        leader: dict[str, Any] = {"arrowstyle": "-", "color": tag.ink, "linewidth": 0.4, "shrinkA": 0.5, "shrinkB": 3}
        label = self.ax.annotate(
            text,
            tag.at[index],
            xycoords=tag.transform or "data",
            xytext=(offset[0] / self.scale, offset[1] / self.scale),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=FONT_PT,
            color=tag.ink,
            linespacing=1.05,
            parse_math=tag.is_math,
            zorder=5,
            arrowprops=leader if gap / self.scale > LEADER_PT else None,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.4},
        )
        # it lies inside, and must not move the axes that it was placed in
        label.set_in_layout(False)


def drawn(ax: Axes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of the markers in axes, and points along their lines, in pixels: (n, 2) each."""
    marks, paths = [np.empty((0, 2))], []
    for line in ax.lines:
        places = line.get_transform().transform(line.get_path().vertices)
        if line.get_marker() not in ("None", "none", "", " ", None):
            marks.append(places)
        if line.get_linestyle() not in ("None", "none", "", " "):
            paths.append(places)
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            paths += [ax.transData.transform(segment) for segment in collection.get_segments()]
    return np.concatenate(marks), np.concatenate([np.empty((0, 2)), *map(_along, paths)])


def _along(path: NDArray[np.float64], step: float = 4.0) -> NDArray[np.float64]:
    """Points at equal steps along a path of straight pieces."""
    path = path[np.isfinite(path).all(1)]
    if len(path) < 2:
        return path
    lengths = np.concatenate([[0.0], np.hypot(*np.diff(path, axis=0).T).cumsum()])
    at = np.arange(0, lengths[-1] + step, step)
    return np.stack([np.interp(at, lengths, path[:, axis]) for axis in (0, 1)], 1)


def _inside(points: NDArray[np.float64], box: Bbox) -> int:
    is_in = (points > (box.x0, box.y0)) & (points < (box.x1, box.y1))
    return int(is_in.all(1).sum())


def name_end(ax: Axes, text: str, end: tuple[float, float], ink: str) -> Annotation:
    """Name a line in the column at the right of its axes, joined to its end; `spread` then keeps names apart."""
    leader = {"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
    return ax.annotate(
        text,
        end,
        xytext=(1.06, 0.5),
        textcoords="axes fraction",
        ha="left",
        va="center",
        fontsize=FONT_PT,
        color=ink,
        linespacing=1.05,
        arrowprops=leader,
        annotation_clip=False,
    )


def spread(names: Sequence[Annotation]) -> None:
    """Move the names of one column as little as keeps them from each other and within the height of the axes."""
    if not names:
        return
    ax = names[0].axes
    assert ax is not None
    frame = ax.get_window_extent()
    names = sorted(names, key=lambda name: ax.transData.transform(name.xy)[1])
    wanted = np.array([ax.transData.transform(name.xy)[1] for name in names])
    heights = np.array([Text.get_window_extent(name).height for name in names])
    # places that names would have if each stood on the one below; what is left over must not decrease
    stacked = np.cumsum(heights) - heights / 2
    free = isotonic_regression(wanted - stacked).x.clip(frame.y0, max(frame.y0, frame.y1 - heights.sum()))
    for name, place in zip(names, free + stacked, strict=True):
        name.set_position((1.06, (place - frame.y0) / frame.height))
