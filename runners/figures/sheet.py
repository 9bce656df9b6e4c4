"""The sheet that a figure is drawn on: its size, its panels, its names, and its caption."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation
from pandas import DataFrame

from runners.figures.choices import Crowded, Refused, Size
from runners.figures.looks import mechanism
from runners.figures.mechanisms import legend
from runners.figures.placing import Tag, name_end, place, spread
from runners.rows import selection

RC: Any = {
    # names come from strangers' tables
    "text.parse_math": False,
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
}

SAVED: Any = {
    # TrueType as it is: Type 3 fonts, matplotlib's default, are refused by publishers; and text in SVG stays text
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # the same rows give the same file
    "svg.hashsalt": "attention-zoo",
}

CAPTION_PT, LETTERS_PER_INCH = 6.0, 22
KEY_PT = 6.5
TITLE_LETTERS, NAME_LETTERS = 48, 19

MOST_PANELS = 100
"""Of a figure; the time that its layout takes grows faster than their number."""


@dataclass
class Sheet:
    """The part of a figure that rows of one device are drawn into.

    Attributes:
        figure: the part; what is drawn fills it.
        size: width and columns.
        names: mechanisms by the names that are shown.
        has_caption: whether to write one.
        unmeasured: rows that no device has measured, by status.
        inches: height that the part needs, as far as it is drawn.
    """

    figure: SubFigure
    size: Size
    names: Mapping[str, str]
    has_caption: bool = True
    unmeasured: Mapping[str, int] = field(default_factory=dict)
    inches: float = 0.0
    tags: list[Tag] = field(default_factory=list)
    ends: dict[Axes, list[Annotation]] = field(default_factory=dict)

    def panels(self, count: int, height: float, *, wide: bool = True) -> list[Axes]:
        """Axes in rows as wide as the sheet, `height` inches each; one alone fills its row unless not `wide`.

        Raises:
            Crowded: more than `MOST_PANELS`, with those of the sheets before.
        """
        panels = len(self.figure.figure.axes) + count
        if panels > MOST_PANELS:
            raise Crowded(f"{panels:,} panels are more than one figure holds ({MOST_PANELS}); draw fewer rows")
        columns = min(count, self.size.columns) if wide else self.size.columns
        rows = -(-count // columns)
        self.inches += rows * height
        grid = self.figure.add_gridspec(rows, columns)
        return [self.figure.add_subplot(grid[divmod(number, columns)]) for number in range(count)]

    def name(self, label: str) -> str:
        """The label of a line with its mechanism as it is shown."""
        own = mechanism(label)
        return self.names.get(own, own) + label[len(own) :]

    def tag(self, tag: Tag) -> None:
        """Ask for a name near a point; `finish` finds its place."""
        self.tags.append(tag)

    def name_line(self, ax: Axes, text: str, end: tuple[float, float], ink: str) -> None:
        """Name a line in the column beside its axes."""
        lines = [textwrap.wrap(part, NAME_LETTERS, break_long_words=False) for part in text.split("\n")]
        wrapped = "\n".join(line for part in lines for line in part)
        self.ends.setdefault(ax, []).append(name_end(ax, wrapped, end, ink))

    def key(self, handles: Sequence[Artist]) -> None:
        """Explain marks in rows above the panels, if there are any."""
        if not handles:
            return
        letters = max(len(str(handle.get_label())) for handle in handles) + 5
        columns = max(1, min(len(handles), int(self.size.width * 16 / letters)))
        self.inches += 0.08 + -(-len(handles) // columns) * KEY_PT * 1.5 / 72
        self.figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            fontsize=KEY_PT,
            handlelength=1.6,
            handletextpad=0.4,
            columnspacing=1.2,
            borderpad=0.1,
        )

    def caption(self, rows: DataFrame, notes: Iterable[str]) -> None:
        """Write under the panels what they show, on which device and with which versions."""
        if not self.has_caption:
            return
        width = int(self.size.width * LETTERS_PER_INCH)
        texts = (" ".join(filter(None, notes)), "; ".join(_origin(rows, self.unmeasured)))
        lines = [line for text in texts for line in textwrap.wrap(text, width, break_on_hyphens=False)]
        self.inches += 0.08 + len(lines) * CAPTION_PT * 1.4 / 72
        self.figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=CAPTION_PT, linespacing=1.3)


def draw_sheets(
    drawing: Callable[[Sheet, DataFrame], None],
    parts: Mapping[str, DataFrame],
    make: Callable[[SubFigure], Sheet],
) -> Figure:
    """Draw the rows of each device on a sheet of its own, one below another, each as high as it needs."""
    figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06))
    grid = figure.add_gridspec(len(parts), 1)
    sheets = []
    for number, (device, rows) in enumerate(parts.items()):
        sheet = make(figure.add_subfigure(grid[number]))
        drawing(sheet, rows)
        if len(parts) > 1:
            sheet.inches += 0.2
            sheet.figure.suptitle(device, x=0.01, ha="left", fontsize=7, fontweight="bold")
        sheets.append(sheet)
    grid.set_height_ratios([sheet.inches for sheet in sheets])
    figure.set_size_inches(sheets[0].size.width, sum(sheet.inches for sheet in sheets))
    figure.draw_without_rendering()
    for sheet in sheets:
        for names in sheet.ends.values():
            spread(names)
        place(sheet.tags)
    return figure


def shown_names(mechanisms: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """What each mechanism is called in a figure: as asked, else as its class says, else a class without its module.

    Raises:
        Refused: names of mechanisms that are not there, or one name for two of them.
    """
    found = {name: names.get(name) or legend(name) for name in mechanisms}
    unknown = sorted({*names} - {*found})
    if unknown:
        raise Refused(f"names {', '.join(unknown)}: no such mechanism here; known: {', '.join(sorted(found))}")
    short = {name: text.rpartition(":")[2] if text == name else text for name, text in found.items()}
    unique = {name: text if [*short.values()].count(text) == 1 else found[name] for name, text in short.items()}
    twice = sorted({text for text in unique.values() if [*unique.values()].count(text) > 1})
    if twice:
        raise Refused(f"names {', '.join(twice)}: two mechanisms would have this name; give each one of its own")
    return unique


def titled(text: str) -> str:
    """A title in lines that fit a panel."""
    return textwrap.fill(text, TITLE_LETTERS)


def _origin(rows: DataFrame, unmeasured: Mapping[str, int]) -> list[str]:
    """Where rows come from: their device, what all have in common, versions, and what has no record."""
    parts = [f"{'; '.join(_distinct(rows, 'device_name'))} ({', '.join(_distinct(rows, 'device_id'))})"]
    words = {"layout": "layout {}", "batch_size": "batch of {}", "precision": "{}", "data": "{}", "steps": "{} steps"}
    for column, text in words.items():
        values = _distinct(rows, column)
        if len(values) == 1:
            parts.append(text.format(values[0]))
    for column in selection.TRAINED:
        # an empty field is another training
        if column not in words and rows[column].notna().all() and rows[column].nunique() == 1:
            parts.append(selection.spell(column, rows[column].iloc[0]))
    for column in ("compile", "sdpa", "memory_format", "deterministic", "cudnn_benchmark"):
        if rows[column].nunique() == 1 and (said := selection.spell(column, rows[column].dropna().iloc[0])):
            parts.append(said)
    for name, own in rows.groupby("attention"):
        settings = _distinct(own, "settings")
        if len(settings) == 1 and settings[0] and own["settings"].notna().all():
            parts.append(f"{name} with {settings[0].replace(';', ', ')}")
    versions = sorted({part for text in _distinct(rows, "versions") for part in text.split(";")})
    parts.append(", ".join(versions).replace("=", " "))
    if unmeasured:
        parts.append("not drawn: " + ", ".join(f"{n} {what}" for what, n in unmeasured.items()))
    return [part for part in parts if part]


def _distinct(rows: DataFrame, column: str) -> list[str]:
    return sorted({str(value) for value in rows[column].dropna()})
