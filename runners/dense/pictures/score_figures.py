"""Figures of what a model confuses and of how precisely it finds objects: pure functions of counts and curves."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from runners.dense.pictures.board import NAME_LETTERS_PER_INCH, ink_on, shortened
from runners.dense.pictures.colours import class_colours
from runners.figures.looks import LINES, ink
from runners.figures.sheet import CAPTION_PT, RC

MOST_CLASSES = 30
"""Rows of a confusion matrix; all other classes become one."""
MOST_NUMBERS = 16
"""Classes up to which the cells have room for their numbers."""
HEAT, NOTHING = "Blues", "#D9D9D9"
"""Of shares, and of a class that truth does not have."""
CELL_IN, SMALL_CELL_IN, NUMBER_PT = 0.3, 0.155, 5.5
LEAST_IN = 1.8
"""Side of the matrix, however few its classes: its title needs the room."""
OTHERS = "all others"

MOST_CURVES = 12
"""Classes whose curves have a colour and a name; of more, those of the best and the worst have."""
RECALLS = np.linspace(0, 1, 101)


def draw_confusion(confusion: NDArray[Any], class_names: Sequence[str], caption: str = "") -> Figure:
    """Draw pixels by (truth, prediction), (C, C), as shares of each true class.

    Raises:
        ValueError: other names than classes, or no pixel at all.
    """
    counts = np.asarray(confusion, np.float64)
    if counts.shape != (len(class_names), len(class_names)):
        raise ValueError(f"confusion must be of {len(class_names)} x {len(class_names)} classes, got {counts.shape}")
    if not counts.sum():
        raise ValueError("confusion has no pixel: there is nothing to draw")
    counts, names = _most_frequent(counts, list(class_names))
    size = len(names)
    has_numbers = size <= MOST_NUMBERS
    side = max(LEAST_IN, size * (CELL_IN if has_numbers else SMALL_CELL_IN))
    longest = max(len(shortened(name)) for name in names) * 0.058
    with rc_context(RC):
        figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        width = max(3.3, side + longest + 1.0)
        lines = _wrapped(caption, width)
        figure.set_size_inches(width, side + longest + 0.7 + 0.12 * len(lines))
        ax = figure.add_subplot()
        with np.errstate(invalid="ignore"):
            shares = counts / counts.sum(1, keepdims=True)
        heat = colormaps[HEAT].with_extremes(bad=NOTHING)
        ax.imshow(np.ma.masked_invalid(shares), cmap=heat, vmin=0, vmax=1)
        ax.grid(False)
        shown = [shortened(name) for name in names]
        ax.set_xticks(range(size), shown, rotation=90)
        ax.set_yticks(range(size), shown)
        ax.tick_params(length=0)
        ax.set(xlabel="prediction", ylabel="truth")
        if has_numbers:
            _write_shares(ax, shares)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 100), HEAT), ax=ax, fraction=0.05, pad=0.02, shrink=0.7)
        ax.set_title("share of the true class (%)", loc="left")
        bar.outline.set_linewidth(0.5)
        _caption(figure, lines)
    return figure


def _most_frequent(counts: NDArray[np.float64], names: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    """The classes with most true pixels, in their order, and the sum of all others."""
    if len(names) <= MOST_CLASSES:
        return counts, names
    order = np.argsort(-counts.sum(1), kind="stable")
    kept, rest = np.sort(order[: MOST_CLASSES - 1]), order[MOST_CLASSES - 1 :]
    groups: list[NDArray[Any]] = [*np.split(kept, len(kept)), rest]
    down = np.stack([counts[group].sum(0) for group in groups])
    return np.stack([down[:, group].sum(1) for group in groups], 1), [*(names[number] for number in kept), OTHERS]


def _write_shares(ax: Axes, shares: NDArray[np.float64]) -> None:
    for (row, col), share in np.ndenumerate(shares):
        # small ones are many and would hide the others
        if share >= 0.005:
            red, green, blue, _ = (round(255 * channel) for channel in colormaps[HEAT](share))
            colour = ink_on(f"#{red:02X}{green:02X}{blue:02X}")
            ax.text(col, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=NUMBER_PT, color=colour)
        elif np.isnan(share) and col == row:
            ax.text(col, row, "-", ha="center", va="center", fontsize=NUMBER_PT)


def draw_curves(curves: NDArray[np.float64], class_names: Sequence[str], caption: str = "") -> Figure:
    """Draw precision over recall at IoU 0.5 of each class and their mean: (C, 101), NaN where truth has no object.

    Raises:
        ValueError: other names than classes, or no class that truth has.
    """
    curves = np.asarray(curves, np.float64)
    if curves.shape != (len(class_names), len(RECALLS)):
        raise ValueError(f"curves must be {len(class_names)} classes x {len(RECALLS)} recalls, got {curves.shape}")
    kept = [number for number, curve in enumerate(curves) if not np.isnan(curve).any()]
    if not kept:
        raise ValueError("curves have no class that truth has: there is nothing to draw")
    ranked = sorted(kept, key=lambda number: (-curves[number].mean(), number))
    half = MOST_CURVES // 2
    named = ranked if len(ranked) <= MOST_CURVES else ranked[:half] + ranked[-half:]
    with rc_context(RC):
        lines = _wrapped(caption, 6.9)
        figure = Figure(figsize=(6.9, 3.3 + 0.12 * len(lines)), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        ax = figure.add_subplot()
        ax.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision at IoU 0.5")
        for number in sorted({*ranked} - {*named}):
            ax.plot(RECALLS, curves[number], color="#C4C4C4", linewidth=0.6, zorder=1.5)
        palette = class_colours(len(named))
        for place, number in enumerate(named):
            label = f"{100 * curves[number].mean():5.1f}  {shortened(class_names[number])}"
            style = {"color": ink(palette[place]), "linestyle": LINES[place % len(LINES)]}
            ax.plot(RECALLS, curves[number], label=label, zorder=2, **style)
        mean = curves[kept].mean(0)
        ax.plot(RECALLS, mean, color="#000000", linewidth=2.2, label=f"{100 * mean.mean():5.1f}  mean", zorder=3)
        title = "AP50 (%)" if len(named) == len(ranked) else f"AP50 (%): best and worst {half} of {len(ranked)}"
        handles, labels = ax.get_legend_handles_labels()
        key = figure.legend(
            handles[-1:] + handles[:-1],
            labels[-1:] + labels[:-1],
            loc="outside right upper",
            frameon=False,
            title=title,
            handlelength=2.6,
        )
        key.get_title().set_fontsize(6.5)
        _caption(figure, lines)
    return figure


def _wrapped(caption: str, width: float) -> list[str]:
    return textwrap.wrap(caption, int(width * NAME_LETTERS_PER_INCH), break_on_hyphens=False)


def _caption(figure: Figure, lines: Sequence[str]) -> None:
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=CAPTION_PT, linespacing=1.3)
