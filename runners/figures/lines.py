"""How lines and points are named: each by itself, or by its colour and a short name where they are many."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from runners.figures.looks import MARKERS, MODEL_MARKERS, Look, mechanism, short_names
from runners.figures.placing import REACHES_PT, Tag
from runners.figures.sheet import Sheet

GREY = "#8A8A8A"
MOST_NAMES = 14
"""Lines that are named one by one."""

CROWD = 14
"""Points of a panel beyond which there is no room for whole names."""

HEIGHT, HEIGHT_OF_NAME, TALLEST = 1.95, 0.2, 3.4
"""Of a panel, and of a name of two lines beside it; inches."""


def line_panels(sheet: Sheet, count: int, styles: Iterable[str], least: float = HEIGHT) -> list[Axes]:
    """Axes high enough for the names of their lines."""
    needed = 0.5 + HEIGHT_OF_NAME * len(together(styles))
    return sheet.panels(count, min(max(least, needed), TALLEST))


def together(lines: Iterable[str]) -> dict[str, list[str]]:
    """Lines by the name under which they are written: their own, or their mechanism where there are too many."""
    lines = [*lines]
    if len(lines) <= MOST_NAMES:
        return {line: [line] for line in lines}
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(mechanism(line), []).append(line)
    return {own[0] if len(own) == 1 else name: own for name, own in found.items()}


def name_lines(
    sheet: Sheet,
    ax: Axes,
    ends: Mapping[str, tuple[float, float]],
    styles: Mapping[str, Look],
    more: Callable[[list[str]], str] = lambda lines: "",
) -> None:
    """Name lines beside their ends; `more` says what stands below the name of some lines."""
    for name, lines in together(styles).items():
        drawn = [line for line in lines if line in ends]
        if not drawn:
            continue
        # of several, beside the middle one of those that go farthest
        farthest = [line for line in drawn if ends[line][0] == max(ends[other][0] for other in drawn)]
        middle = sorted(farthest, key=lambda line: ends[line][1])[len(farthest) // 2]
        text = sheet.name(drawn[0] if len(lines) > 1 else name)
        if len(drawn) > 1:
            text = f"{sheet.name(name)}, {len(drawn)} settings"
        # a leader from the left half would cross the lines of others
        if _share(ax, ends[middle][0]) < 0.5:
            sheet.tag(Tag(ax, (text,), [ends[middle]], styles[lines[0]].ink))
        else:
            sheet.name_line(ax, "\n".join(filter(None, (text, more(drawn)))), ends[middle], styles[lines[0]].ink)


def _share(ax: Axes, x: float) -> float:
    """Where an x lies between the ends of an axis, 0 to 1."""
    low, high = ax.get_xlim()
    if ax.get_xscale() == "linear":
        return (x - low) / (high - low)
    return math.log(x / low) / math.log(high / low)


def shade_notes(sheet: Sheet, lines: Iterable[str]) -> list[str]:
    """Sentences for the caption: which settings the shades of lines stand for that are named together."""
    return [
        f"{sheet.name(name)}: light is {own[0].removeprefix(name).strip()}, dark {own[-1].removeprefix(name).strip()}."
        for name, own in together(lines).items()
        if len(own) > 1
    ]


NEAR_PT = 12
"""How far from its point a name may stand in a crowd, where longer leaders would be a thicket."""


def point_names(sheet: Sheet, lines: Iterable[str], is_crowded: bool) -> dict[str, tuple[str, ...]]:
    """Forms of the name of each point, the best first: in one line and in several, or its settings alone."""
    lines = [*lines]
    if is_crowded:
        return {line: (sheet.name(text),) for line, text in short_names(lines)[0].items()}
    names = {line: sheet.name(line) for line in lines}
    return {line: tuple(dict.fromkeys((name, _wrapped(name, 20), _wrapped(name, 12)))) for line, name in names.items()}


def reach_of(names: Mapping[str, tuple[str, ...]]) -> float:
    """How far from its point each of these names may stand."""
    return NEAR_PT if len(names) > CROWD else REACHES_PT[-1]


def _wrapped(name: str, width: int) -> str:
    return textwrap.fill(name, width, break_long_words=False, break_on_hyphens=False)


def colour_key(sheet: Sheet, styles: Mapping[str, Look]) -> list[Line2D]:
    """Entries of a key that name the colour and marker of each mechanism."""
    found = {mechanism(line): look for line, look in styles.items()}
    return [
        Line2D([], [], color=look.ink, marker=look.marker, linestyle="none", mew=0, label=sheet.name(name))
        for name, look in found.items()
    ]


def kind_key() -> list[Line2D]:
    """Entries of a key that tell models from mechanisms."""
    kinds: dict[str, Any] = {"mechanisms in a host": MARKERS[0], "models": MODEL_MARKERS[0]}
    return [
        Line2D([], [], color=GREY, marker=marker, linestyle="none", mew=0, label=label)
        for label, marker in kinds.items()
    ]


def crowd_note(sheet: Sheet, lines: Iterable[str]) -> str:
    """Sentence for the caption that explains the names of points in a crowd."""
    fields = short_names([*lines])[1]
    if not fields:
        return "Points are named where there is room."
    listed = "; ".join(f"{sheet.name(name)}: {', '.join(own)}" for name, own in fields.items())
    return f"Points are labelled by their settings ({listed}), whose order the shades follow, where there is room."
