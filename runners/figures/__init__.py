"""Figures: `draw(kind, frame)` makes a matplotlib `Figure` of the rows of `runners.table.load`, and writes nothing.

`save(figure, path)` writes one, and `python -m runners.figures KIND --results DIR --out FILE` does both from the
command line. Each kind is a pure function of its rows; the notebook and the report call these and compute nothing
themselves.
"""

import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runners.figures.choices import FORMATS, SIZES, Format, Refused, SizeName

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

DPI = 200


class Kind(NamedTuple):
    """A kind of figure: its module, the function in it, and a line of help. `COLUMNS` are the module's."""

    module: str
    function: str
    help: str


KINDS = {
    "complexity": Kind("complexity", "draw_complexity", "MACs, latency and memory against tokens, with exponents"),
    "topk": Kind("sweeps", "draw_topk", "accuracy and costs against top-k"),
    "region_size": Kind("sweeps", "draw_region_size", "accuracy and costs against the size of a region"),
    "batch": Kind("sweeps", "draw_batch", "images per second and peak memory against the batch"),
    "pareto": Kind("pareto", "draw_pareto", "accuracy against each cost, with the front and its ties"),
    "costs": Kind("costs", "draw_costs", "each cost as a ranking, with and without the head of a dense task"),
    "roofline": Kind("roofline", "draw_roofline", "achieved GFLOP/s under the measured ceilings"),
}
"""Kinds that are drawn from a table."""

CURVES = {"learning": Kind("learning", "draw_learning", "learning curves: training loss and accuracy against the step")}
"""Kinds that are drawn from rows with their curves, as `runners.rows.curves.with_curves` attaches them."""

OF_ROWS = KINDS | CURVES

FIGURES = {name: kind.help for name, kind in OF_ROWS.items()} | {
    "connectivity": "which keys one query reads, for each mechanism; needs no results"
}
"""Every kind with a line of help."""

PUBLISHED = "accuracy that papers published, none measured here, against each measured cost"
"""Help of `pareto` with published accuracies."""


def show(kind: str, frame: "DataFrame | None" = None, **choices: Any) -> "Figure | None":
    """Draw a figure for a notebook, devices apart; what cannot be drawn of these rows is said in one line.

    `choices` are arguments of `draw`.
    """
    try:
        return draw(kind, frame, by_device=True, **choices)
    except ValueError as error:
        print(f"{kind} is not drawn: {error}")
        return None


def draw(
    kind: str,
    frame: "DataFrame | None" = None,
    *,
    by_device: bool = False,
    attn: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    size: SizeName = "page",
    caption: bool = True,
    published: "DataFrame | None" = None,
) -> "Figure":
    """Draw a figure of the rows of a table, as `runners.table.load` returns them; `connectivity` needs none.

    `learning` needs rows with their curves: `runners.rows.curves.with_curves(rows, folder)`.

    Args:
        kind: one of `FIGURES`.
        frame: the table; select rows before, what is left out is not drawn.
        by_device: draw the rows of each device apart, below one another.
        attn: draw these mechanisms alone.
        names: what to call mechanisms, by their names in the rows.
        size: `column` is 3.3 inches wide, as a column of a paper, and `page` 6.9.
        caption: write below what is drawn, on which device and with which versions.
        published: accuracies that `pareto` draws in place of measured ones, as `runners.rows.published.read_published`
            returns them.

    Raises:
        ValueError: an unknown kind or size; published accuracies of another kind than `pareto`; a mechanism that is not
            there, or one name for two; a column is missing; no row, or one alone; several devices without `by_device`;
            nothing that this kind shows; more panels than a figure holds.
    """
    if kind not in FIGURES:
        raise ValueError(f"unknown figure {kind!r}; known: {', '.join(FIGURES)}")
    if kind in OF_ROWS and frame is None:
        raise ValueError(f"the figure {kind} is drawn from a table: pass what runners.table.load returns")

    from matplotlib import rc_context

    from runners.figures.sheet import RC, Sheet, draw_sheets, shown_names

    if published is not None and kind != "pareto":
        raise Refused(f"accuracy published: the figure pareto shows it, not {kind}")
    if size not in SIZES:
        raise Refused(f"size {size!r} is not one of {', '.join(SIZES)}")
    with rc_context(RC):
        if frame is None or kind not in OF_ROWS:
            from runners.figures.gallery import connectivity_gallery

            return connectivity_gallery(attn=attn, names=names, width=SIZES[size].width, has_caption=caption)

        from runners.figures.frames import check, of_mechanisms

        module: Any = import_module(f"runners.figures.{OF_ROWS[kind].module if published is None else 'published'}")
        chosen = frame if attn is None else of_mechanisms(frame, attn)
        rows = check(chosen, module.COLUMNS, by_device)
        shown = shown_names(rows["subject"].unique(), names or {})
        pending = chosen.loc[chosen["device_id"].isna(), "status"].value_counts()
        return draw_sheets(
            getattr(module, OF_ROWS[kind].function) if published is None else module.drawing(published),
            {str(device): part for device, part in rows.groupby("device_id")},
            lambda part: Sheet(part, SIZES[size], shown, caption, {str(what): int(n) for what, n in pending.items()}),
        )


def save(figure: "Figure", path: Path, formats: Sequence[Format] = ()) -> list[Path]:
    """Write a figure to `path`, and beside it, under the same name, in other formats; returns the files.

    Text stays text: PDF embeds TrueType fonts, and SVG names them. The same figure gives the same bytes.

    Raises:
        ValueError: an ending or a format that is not one of `FORMATS`; neither is given.
        OSError: a file cannot be written.
    """
    wanted = [*([path.suffix.removeprefix(".")] if path.suffix else []), *formats]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise ValueError(f"cannot write {path} as {unknown[0] if unknown else 'nothing'}: one of {', '.join(FORMATS)}")
    files = [path.with_suffix(f".{name}") for name in dict.fromkeys(wanted)]
    for file in files:
        file.write_bytes(render(figure, file.suffix[1:]))  # type: ignore[arg-type]
    return files


def render(figure: "Figure", format: Format, dpi: float = DPI) -> bytes:
    """Return a figure as a file of that format; see `save`. `dpi` is that of pixels."""
    from matplotlib import rc_context

    from runners.figures.sheet import SAVED

    image = io.BytesIO()
    dates: dict[Format, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with rc_context(SAVED):
        figure.savefig(image, format=format, dpi=dpi, metadata=dates[format])
    return image.getvalue()
