"""One colour and marker for each mechanism, in every figure and chart, and shades of the colour for its settings.

A model has the colour of the mechanism that its name begins with, and a marker that no mechanism has.
"""

import re
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = {
    # Okabe and Ito's palette without its yellow, which is lost on white; further ones are those of a grid over RGB that
    # lie farthest from all before, as trichromats, deuteranopes and protanopes see them
    "vanilla": ("#1B1B1B", "o"),
    "bra": ("#D55E00", "s"),
    "swin": ("#0072B2", "^"),
    "cswin": ("#56B4E9", "D"),
    "axial": ("#009E73", "v"),
    "maxvit": ("#CC79A7", "P"),
    "crossformer": ("#E69F00", "X"),
    "dat": ("#542AA8", "<"),
    "crisscross": ("#A80000", ">"),
    "sliding": ("#7E7EFC", "p"),
    "pvt": ("#2A5454", "h"),
    "sep": ("#540054", "*"),
    "axial_deeplab": ("#00D27E", "d"),
}
"""Mechanisms in the order of lists, each with a colour and a marker of its own."""

OTHERS = ("#002A7E", "#0000FC", "#A82A7E", "#2A54D2")
"""Colours of all other mechanisms, chosen by the name, so that rows around it change nothing."""

MARKERS = tuple(marker for _, marker in COLOURS.values())
MODEL_MARKERS: tuple[Any, ...] = ((4, 1, 0), (6, 1, 0), (8, 1, 0), (3, 1, 0))
"""Of models: stars of four, six, eight and three points."""
FAMILIES = {"biformer": "bra"}
"""First words of models' names that are not those of their mechanisms."""
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2, 2, 2, 2, 2)))

LIGHTEST, DARKEST = 0.5, 0.45
"""Share of white in the first of many settings, and of black in the last."""

READABLE = 0.175
"""Highest luminance of a text on white whose contrast is 4.5 to 1 (WCAG 2)."""


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of a line, and the colour in which its name can be read."""

    colour: str
    marker: Any
    line: Any
    ink: str

    def style(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "mec": "white", "mew": 0.4}


def colour_and_marker(mechanism: str, *, is_model: bool = False) -> tuple[str, Any]:
    """Colour and marker of a mechanism or a model, the same whatever else is drawn."""
    if mechanism in COLOURS:
        return COLOURS[mechanism]
    number = zlib.crc32(mechanism.encode())
    if is_model:
        family = mechanism.partition("_")[0]
        colour, _ = COLOURS.get(FAMILIES.get(family, family), (OTHERS[number % len(OTHERS)], ""))
        return colour, MODEL_MARKERS[0]
    return OTHERS[number % len(OTHERS)], MARKERS[number // len(OTHERS) % len(MARKERS)]


def looks(labels: Iterable[str], models: Container[str] = ()) -> dict[str, Look]:
    """Give each label a look: that of its mechanism, its first word, in a shade of its own. In the order of lists.

    `models` are the first words that name a model.
    """
    settings: dict[str, list[str]] = {}
    for label in in_order(labels):
        settings.setdefault(mechanism(label), []).append(label)
    found, taken = {}, set[tuple[str, Any]]()
    for name, lines in settings.items():
        colour, marker = colour_and_marker(name, is_model=name in models)
        markers = MODEL_MARKERS if name in models else MARKERS
        for _ in markers:
            if (colour, marker) not in taken:
                break
            # two strangers whose names fall on one look, or models of a family
            marker = markers[(markers.index(marker) + 1) % len(markers)]
        taken.add((colour, marker))
        for number, line in enumerate(lines):
            found[line] = Look(shade(colour, number, len(lines)), marker, LINES[number % len(LINES)], ink(colour))
    return found


def mechanism(label: str) -> str:
    """The mechanism that a label begins with."""
    return label.partition(" ")[0]


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels by mechanism, those of `COLOURS` first, and by the numbers in their settings: top-k 2 before 16."""
    places = {name: place for place, name in enumerate(COLOURS)}
    return sorted(set(labels), key=lambda label: (places.get(mechanism(label), len(places)), natural(label)))


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key by which numbers in a text come by size."""
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in re.split(r"(\d+)", text) if part]


def short_names(labels: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names of the settings by their values alone, and the fields that these are of, by mechanism.

    `bra topk=4 regions=2 batch 64` becomes `4·2 batch 64`, and `bra regions=2` beside it `-·2`. A mechanism without
    settings keeps its name.
    """
    settings: dict[str, dict[str, dict[str, str]]] = {}
    for label in in_order(labels):
        pairs = dict(word.split("=", 1) for word in label.split(" ")[1:] if "=" in word)
        settings.setdefault(mechanism(label), {})[label] = pairs
    names, fields = dict[str, str](), dict[str, list[str]]()
    for name, of_label in settings.items():
        own = sorted(
            {field for pairs in of_label.values() for field in pairs}, key=lambda field: (field != "topk", field)
        )
        if own and len(of_label) > 1:
            fields[name] = own
        for label, pairs in of_label.items():
            # what is not set at the end goes without saying
            values = "·".join(pairs.get(field, "-") for field in own).rstrip("·-") if name in fields else ""
            conditions = [word for word in label.split(" ")[1:] if "=" not in word]
            names[label] = " ".join((values or name, *conditions))
    return names, fields


def shade(colour: str, number: int, count: int) -> str:
    """The colour itself, or of several settings the one of this number, from light to dark."""
    if count == 1:
        return colour
    at = (number / (count - 1)) * (LIGHTEST + DARKEST) - LIGHTEST
    return _mixed(colour, "#FFFFFF", -at) if at < 0 else _mixed(colour, "#000000", at)


def ink(colour: str) -> str:
    """The colour, darkened until a small text in it can be read on white."""
    share = 0.0
    while luminance(_mixed(colour, "#000000", share)) > READABLE:
        share += 0.05
    return _mixed(colour, "#000000", share)


def luminance(colour: str) -> float:
    """Relative luminance of a colour, 0 to 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _mixed(colour: str, other: str, share: float) -> str:
    parts = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(255 * (one + share * (two - one))):02X}" for one, two in parts)


def _channels(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
