"""Pictures of what one query of a model reads: figure 4 of arXiv:2303.08810, for any mechanism.

Each panel is the image in grey, the attention of one head over it, and outlines: of the routed regions of BRA, of the
keys that the query may read of the others. Deformable attention shows its points instead, by weight. Functions make a
`Figure` and write nothing.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from runners.pictures.panels import MEAN, Floats, Panel, Scene, make_panels

HEAT = "inferno"
"""Perceptually uniform, and as bright in grey as in colour."""
OUTLINE, QUERY, CASING = "#56D0FF", "#FFFFFF", "#000000"
OPACITY = (0.5, 0.85)
"""Of the heat, where there is no attention and where there is most."""
GREY = 0.7
"""Brightness of the image under it, so that no white of a photograph passes for attention."""
DOT, DOTS = 18, 2000
"""Area of the heaviest sampling point, and of all in a panel together at most, lest they hide it: square points."""
# inches: longer side of a panel, at least and at most, and gap between; width of a figure, at least
PANEL_IN, MOST_IN, GAP_IN, WIDTH_IN = 1.75, 3.0, 0.08, 6.5
# inches: room for the labels of rows and columns and for the scale, and a line of the caption
LEFT_IN, HEAD_IN, RIGHT_IN, LINE_IN = 0.35, 0.3, 0.55, 0.13


def stage_figure(scene: Scene, stage: int, blocks: Sequence[int], heads: Sequence[int]) -> Figure:
    """Draw a grid of blocks and heads of one stage; a head may be `MEAN`."""
    panels = [make_panels(scene, stage, block, heads) for block in blocks]
    mixers, (height, width) = scene.model.mixers()[stage - 1], scene.inputs[stage - 1][0].shape[1:3]
    single = [head for head in heads if head != MEAN]
    kinds = "; ".join(dict.fromkeys(scene.describe(stage, block) for block in blocks))
    px = scene.token_px(stage)
    what = (
        f"Stage {stage} of {scene.label}: {_some('block', blocks)} of {len(mixers)}, {_some('head', single)} of "
        f"{mixers[0].num_heads}. {kinds}. Map of {height}x{width} tokens of {px}x{px} px."
    )
    figure, axes = _grid(scene, len(blocks), len(heads), what, [panel for row in panels for panel in row])
    for row, shown, block in zip(axes, panels, blocks, strict=True):
        for ax, panel in zip(row, shown, strict=True):
            draw_panel(ax, scene, panel)
        row[0].set_ylabel(f"block {block}", fontsize=8)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title("mean of heads" if head == MEAN else f"head {head}", fontsize=8, pad=4)
    return figure


def overview(scene: Scene, shown: Sequence[tuple[int, int]]) -> Figure:
    """Draw the image, and for each (stage, block) the mean of the heads."""
    panels = [make_panels(scene, stage, block, [MEAN])[0] for stage, block in shown]
    kinds = "; ".join(f"stage {stage} {scene.describe(stage, block)}" for stage, block in shown)
    figure, axes = _grid(scene, 1, 1 + len(shown), f"{scene.label}, mean of the heads: {kinds}.", panels)
    photo, *others = axes[0]
    photo.imshow(scene.image.pixels)
    photo.set_title("image", fontsize=8, pad=4)
    _clean(photo)
    _mark_query(photo, scene)
    for ax, panel, (stage, block) in zip(others, panels, shown, strict=True):
        draw_panel(ax, scene, panel)
        ax.set_title(f"stage {stage}, block {block}", fontsize=8, pad=4)
    return figure


def draw_panel(ax: Axes, scene: Scene, panel: Panel) -> None:
    """Draw a panel: the image, the response over it, outlines or points, and the query."""
    px = panel.token_px
    ax.imshow(overlay(scene.image.pixels, panel.response, px))
    ax.set_gid(panel.title)
    _clean(ax)
    if panel.points is None or panel.weights is None:
        _draw_lines(ax, borders(panel.labels), px, OUTLINE)
    else:
        y, x = np.moveaxis((panel.points + 0.5) * px - 0.5, -1, 0)  # (groups, Ns) each
        most = min(DOT, DOTS / x.size)
        area = np.broadcast_to(0.5 + most * panel.weights / panel.weights.max(), x.shape)
        ax.scatter(x, y, s=area, facecolor=OUTLINE, edgecolor=CASING, linewidth=0.3, label="points", zorder=3)
    own = np.full(panel.response.shape, -1)
    own[panel.token] = 0
    _draw_lines(ax, borders(own), px, QUERY, zorder=3.5)
    _mark_query(ax, scene)
    text = ax.text(0.03, 0.03, f"max {panel.response.max():.2g}", transform=ax.transAxes, fontsize=6.5, color="white")
    text.set_path_effects([withStroke(linewidth=1.6, foreground="black")])


def overlay(pixels: Floats, response: Floats, token_px: int) -> Floats:
    """Lay a response, (rows, cols) of tokens, over an image turned grey: (H, W, 3) in 0..1 -> same.

    Colour and opacity grow with the response from 0 to its largest value.
    """
    height, width, _ = pixels.shape
    share = response / max(float(response.max()), np.finfo(np.float64).tiny)
    heat = share.repeat(token_px, 0).repeat(token_px, 1)
    # a map that rounds down ends before the image does
    heat = np.pad(heat, [(0, max(0, side - had)) for side, had in zip((height, width), heat.shape, strict=True)])
    heat = heat[:height, :width]
    grey = pixels @ (0.299, 0.587, 0.114)
    opacity = np.interp(heat, (0, 1), OPACITY)[..., None]
    mixed: Floats = (1 - opacity) * grey[..., None] * GREY + opacity * colormaps[HEAT](heat)[..., :3]
    return mixed


def borders(labels: NDArray[Any]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Edges between tokens of different labels, (x, y) to (x, y) in tokens; beyond the map lies -1."""
    around = np.pad(labels, 1, constant_values=-1)
    right = np.argwhere(around[1:-1, 1:] != around[1:-1, :-1])
    down = np.argwhere(around[1:, 1:-1] != around[:-1, 1:-1])
    upright = [((int(j), int(i)), (int(j), int(i) + 1)) for i, j in right]
    return upright + [((int(j), int(i)), (int(j) + 1, int(i))) for i, j in down]


def _draw_lines(
    ax: Axes, lines: Sequence[tuple[tuple[int, int], tuple[int, int]]], px: int, colour: str, zorder: float = 2
) -> None:
    segments = [[(x * px - 0.5, y * px - 0.5) for x, y in line] for line in lines]
    # a dark casing, since the line alone is lost on bright attention
    for shade, width in ((CASING, 2.2), (colour, 1.1)):
        ax.add_collection(
            LineCollection(segments, colors=shade, linewidths=width, capstyle="projecting", zorder=zorder)
        )


def _mark_query(ax: Axes, scene: Scene) -> None:
    y, x = scene.query
    for colour, size, width in ((CASING, 6, 2.4), (QUERY, 5, 1.1)):
        ax.plot(x, y, "x", color=colour, markersize=size, mew=width, label="query", zorder=4)


def _clean(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    # points may lie beyond the image
    ax.autoscale(False)
    ax.spines[:].set(color="#444444", linewidth=0.6)


def _grid(scene: Scene, rows: int, cols: int, what: str, panels: Sequence[Panel]) -> tuple[Figure, NDArray[Any]]:
    """Make panels of the shape of the image, with room for labels, a scale and a caption."""
    height, width, _ = scene.image.pixels.shape
    # few panels are larger, and the lines of a caption of some length, however few the panels
    fair = (WIDTH_IN - LEFT_IN - RIGHT_IN) / cols - GAP_IN
    across = min(width / max(height, width) * MOST_IN, max(fair, width / max(height, width) * PANEL_IN))
    down = across * height / width
    inner = cols * across + (cols - 1) * GAP_IN
    total = max(LEFT_IN + inner + RIGHT_IN, WIDTH_IN)
    caption = _caption(scene, what, panels, letters=int(20 * total))
    foot = LINE_IN * (len(caption) + 1.5)
    tall = HEAD_IN + rows * down + (rows - 1) * GAP_IN + foot
    figure = Figure(figsize=(total, tall))
    axes = figure.subplots(rows, cols, squeeze=False)
    figure.subplots_adjust(
        left=LEFT_IN / total,
        right=(LEFT_IN + inner) / total,
        top=1 - HEAD_IN / tall,
        bottom=foot / tall,
        wspace=GAP_IN / across,
        hspace=GAP_IN / down,
    )
    figure.text(0.08 / total, 0.08 / tall, "\n".join(caption), fontsize=6.5, va="bottom", linespacing=1.35)
    scale = figure.add_axes(((LEFT_IN + inner + 0.1) / total, 1 - (HEAD_IN + down) / tall, 0.1 / total, down / tall))
    bar = figure.colorbar(ScalarMappable(cmap=colormaps[HEAT]), cax=scale, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "max"], fontsize=7)
    bar.set_label("attention weight", fontsize=7, labelpad=-8)
    return figure, axes


def _caption(scene: Scene, what: str, panels: Sequence[Panel], letters: int) -> list[str]:
    """Say what is shown, how to read it, and with what it was made, in lines."""
    height, width, _ = scene.image.pixels.shape
    marks = ["x: query, its token in white. Brightness: weight of a token, from 0 to the largest of each panel (max)."]
    sizes = dict.fromkeys(panel.points.shape[:2] for panel in panels if panel.points is not None)
    if sizes:
        each = {groups: "" if groups == 1 else f" in each of {groups} groups of channels" for groups, _ in sizes}
        counts = ", ".join(f"{count}{each[groups]}" for groups, count in sizes)
        marks.append(f"Points: where it samples ({counts}), areas by weight.")
    outlines = {panel.outlines for panel in panels if panel.points is None and panel.labels.max() >= 0}
    marks += [f"Outlined: {' or '.join(sorted(outlines))}."] if outlines else []
    source = f"Image: {scene.image.name}, at {height}x{width} px; query (y, x) = {scene.query}. {scene.versions}."
    return [line for text in (what, " ".join(marks), source) for line in textwrap.wrap(text, letters)]


def _some(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
