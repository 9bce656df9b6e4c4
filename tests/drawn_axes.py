"""What stands on the axes of a figure, for the tests that read figures back."""

import matplotlib
import numpy as np
from matplotlib.text import Text


def axes_of(figure) -> dict[str, object]:
    """Axes by title, or by the label of x where they have none."""
    return {ax.get_title(loc="left") or ax.get_xlabel(): ax for ax in figure.findobj(matplotlib.axes.Axes)}


def lines_of(ax) -> dict[str, object]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def names_beside(ax) -> set[str]:
    """What is written in the column at the right of axes."""
    return {text.get_text() for text in ax.texts if text.get_position()[0] > 1 and text.anncoords == "axes fraction"}


def bars_at(ax, x) -> list[tuple[float, float]]:
    """Ends of the vertical intervals at an x, in the order in which they were drawn."""
    bars = [segment for bars in ax.collections if hasattr(bars, "get_segments") for segment in bars.get_segments()]
    return [tuple(bar[:, 1]) for bar in bars if np.allclose(bar[:, 0], x)]


def crosses(ax) -> dict[str, tuple[float, float]]:
    """Places of the failures by what is written beside them."""
    marks = [line for line in ax.lines if line.get_label() == "_failed"]
    return {text.get_text(): tuple(text.xy) for text in ax.texts if text.xy in [(*m.get_xydata()[0],) for m in marks]}


def caption(figure) -> str:
    return " ".join(" ".join(part.get_supxlabel() for part in figure.subfigs).split())


def texts_of(figure) -> dict[Text, object]:
    """Every text that is seen, and its box without leaders."""
    hidden = {tick for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for tick in unseen(axis)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return {text: Text.get_window_extent(text) for text in texts if text not in hidden}


def unseen(axis) -> list[Text]:
    """Labels of ticks beyond the limits, which matplotlib keeps but does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [t for tick in ticks for t in (tick.label1, tick.label2) if not low <= tick.get_loc() <= high]


def inside(outer, box, slack=0.5) -> bool:
    return (
        outer.x0 - slack <= box.x0
        and box.x1 <= outer.x1 + slack
        and outer.y0 - slack <= box.y0
        and box.y1 <= outer.y1 + slack
    )
