"""Figures: `draw(kind, frame)` makes a matplotlib `Figure` of the rows of `runners.table.load`, and writes nothing.

`python -m runners.figures KIND --results DIR --out FILE` draws one from the command line. Each kind is a pure
function of its rows; the notebook and the report call these and compute nothing themselves.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from pandas import DataFrame

Drawing = Callable[["SubFigure", "DataFrame", Mapping[str, int]], None]


class Kind(NamedTuple):
    """A kind of figure: its module, the function in it, and a line of help. `COLUMNS` and `SIZE` are the module's."""

    module: str
    function: str
    help: str


KINDS = {
    "complexity": Kind("complexity", "draw_complexity", "MACs, latency and memory against tokens, with exponents"),
    "topk": Kind("sweeps", "draw_topk", "accuracy and costs against top-k"),
    "region_size": Kind("sweeps", "draw_region_size", "accuracy and costs against the size of a region"),
    "pareto": Kind("pareto", "draw_pareto", "accuracy against each cost, with the front and its ties"),
    "roofline": Kind("roofline", "draw_roofline", "achieved GFLOP/s under the measured ceilings"),
}
"""Kinds that are drawn from a table."""

FIGURES = {name: kind.help for name, kind in KINDS.items()} | {
    "connectivity": "which keys one query reads, for each mechanism; needs no results"
}
"""Every kind with a line of help."""


def show(kind: str, frame: "DataFrame | None" = None) -> "Figure | None":
    """Draw a figure for a notebook, devices apart; what cannot be drawn of these rows is said in one line."""
    try:
        return draw(kind, frame, by_device=True)
    except ValueError as error:
        print(f"{kind} is not drawn: {error}")
        return None


def draw(kind: str, frame: "DataFrame | None" = None, *, by_device: bool = False) -> "Figure":
    """Draw a figure of the rows of a table, as `runners.table.load` returns them; `connectivity` needs none.

    Args:
        kind: one of `FIGURES`.
        frame: the table; select rows before, what is left out is not drawn.
        by_device: draw the rows of each device apart, below one another.

    Raises:
        ValueError: an unknown kind; a column is missing; no row, or one alone; several devices without `by_device`;
            nothing that this kind shows.
    """
    if kind == "connectivity":
        from runners.figures.gallery import connectivity_gallery

        return connectivity_gallery()
    if kind not in KINDS:
        raise ValueError(f"unknown figure {kind!r}; known: {', '.join(FIGURES)}")
    if frame is None:
        raise ValueError(f"the figure {kind} is drawn from a table: pass what runners.table.load returns")

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from runners.figures.frames import check
    from runners.figures.style import RC

    module: Any = import_module(f"runners.figures.{KINDS[kind].module}")
    rows = check(frame, module.COLUMNS, by_device)
    unmeasured = frame.loc[frame["device_id"].isna(), "status"].value_counts().to_dict()
    devices = sorted(rows["device_id"].unique())
    width, height = module.SIZE
    with rc_context(RC):
        figure = Figure(figsize=(width, height * len(devices)), layout="constrained")
        parts = figure.subfigures(len(devices), 1, squeeze=False)[:, 0]
        for part, device in zip(parts, devices, strict=True):
            getattr(module, KINDS[kind].function)(part, rows[rows["device_id"] == device], unmeasured)
            if len(devices) > 1:
                part.suptitle(device, x=0.01, ha="left", fontweight="bold")
    return figure
