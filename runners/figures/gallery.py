"""Connectivity gallery: which keys one query sees, for each mechanism."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

import attention_zoo
from attention_zoo.base import Attention, Example
from attention_zoo.mechanisms.cswin import CSWin
from attention_zoo.mechanisms.dat import DAT
from attention_zoo.partitioned import PartitionAttention
from attention_zoo.pooled import PooledAttention, SpatialReduction
from attention_zoo.regions import coordinates
from runners.figures.choices import SIZES, Refused
from runners.figures.mechanisms import examples
from runners.figures.sheet import CAPTION_PT, LETTERS_PER_INCH, shown_names

HEIGHT, WIDTH = 12, 16
"""Map of the gallery, tokens."""

QUERY = (4, 5)
"""Row and column of its query: on the photographed tower, off the middle of the map."""

DIM, HEADS, SEED = 96, 2, 0

KEY_ENTRIES, KEY_ROW = 6, 0.15
"""What the key explains, and the height of a row of it, inches."""

PANEL, GAP = 1.12, 0.1
"""Width of a panel, about, and what lies between two; inches."""

CAPTION = (
    f"Keys that one query of a {HEIGHT}x{WIDTH} map reads; %: their share of the map, mean over the heads. "
    "(1) and (2): alternating blocks. First row: the patterns of figure 1 of arXiv:2303.08810. "
    "dat and bra have random weights, alike for q and k, and see colours alone. "
    "Photograph: danielbuechele, CC BY 2.0, from scikit-learn, cropped."
)

# blue and yellow, which colour-blind readers tell apart, and which differ in brightness too
READ, QUERY_COLOUR, UNREAD, BORDER = "#0072B2", "#FFD54A", "#E9E9E9", "#444444"
SHADES = LinearSegmentedColormap.from_list("reads", [UNREAD, READ])
QUERY_MARK: Any = {
    "label": "query",
    "marker": "s",
    "color": QUERY_COLOUR,
    "markersize": 4.5,
    "mec": "black",
    "ls": "none",
}
POINT_MARK: Any = {"marker": "o", "color": "white", "mec": BORDER, "ls": "none"}


@dataclass(frozen=True)
class Panel:
    """One setting of a mechanism in the gallery."""

    name: str
    example: Example

    def title(self, name: str) -> str:
        """What the mechanism is called, and which of the blocks that alternate."""
        return f"{name} ({self.example.turn})" if self.example.turn else name


ORDER = (
    # that of figure 1 of the BiFormer paper: global, window, axial, dilated, deformable, bi-level
    *(("vanilla", None), ("swin", 1), ("axial", None), ("maxvit", 2), ("dat", None), ("bra", None)),
    # each beside its sibling or its like
    *(("swin", 2), ("maxvit", 1), ("crossformer", 1), ("crossformer", 2), ("cswin", None), ("crisscross", None)),
    *(("sliding", None), ("pvt", None), ("sep", 1), ("sep", 2)),
)
"""Mechanisms and blocks as the gallery shows them; others come after, by name."""


def gallery_panels(attn: Sequence[str] | None = None) -> list[Panel]:
    """Panels of the gallery: the examples of every registered mechanism, or of some.

    Raises:
        Refused: one of them has no panel.
    """
    panels = [Panel(name, example) for name in attention_zoo.names() for example in examples(name)]
    if attn is not None:
        drawable = dict.fromkeys(panel.name for panel in panels)
        unknown = [name for name in attn if name not in drawable]
        if unknown:
            raise Refused(f"attn {', '.join(unknown)}: no such mechanism is drawn; known: {', '.join(drawable)}")
        panels = [panel for panel in panels if panel.name in attn]
    order = {block: place for place, block in enumerate(ORDER)}
    return sorted(panels, key=lambda panel: order.get((panel.name, panel.example.turn), len(order)))


def photograph() -> Tensor:
    """Colours of scikit-learn's bundled photograph of a tower, cropped to the shape of the map: (h, w, 3) in 0..1."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image("china.jpg"), dtype=torch.float64) / 255
    height, width, _ = image.shape
    left = (width - height * WIDTH // HEIGHT) // 2
    return image[:, left : width - left]


def features(image: Tensor) -> Tensor:
    """Tokens of the map that are alike where their colours are: (h, w, 3) -> (1, HEIGHT, WIDTH, DIM).

    Random cosines of the mean colour, so that a product of two tokens falls with the distance of their colours.
    """
    generator = torch.Generator().manual_seed(SEED)
    colours = F.adaptive_avg_pool2d(image.permute(2, 0, 1), (HEIGHT, WIDTH)).permute(1, 2, 0)
    colours = (colours - colours.mean((0, 1))) / colours.std((0, 1))
    waves = torch.randn(3, DIM, generator=generator, dtype=image.dtype)
    phases = 2 * torch.pi * torch.rand(DIM, generator=generator, dtype=image.dtype)
    return torch.cos(colours @ waves + phases)[None]


def untrained(panel: Panel) -> Attention:
    """Build the mechanism of a panel in float64, from seeded weights, q and k from the same ones.

    What is chosen by content is then chosen by likeness, as a trained mechanism might, and not at random.
    """
    with torch.random.fork_rng(devices=[]):
        attention = attention_zoo.create(panel.name, dim=DIM, num_heads=HEADS, **panel.example.config).double().eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in attention.parameters():
            # initial weights leave offsets at 0 and route by all but equal affinities
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.4
            parameter.normal_(0, spread, generator=generator)
        for parameter in attention.qkv.parameters():
            parameter[attention.qk_dim : 2 * attention.qk_dim] = parameter[: attention.qk_dim]
    return attention


def keys_read(attention: Attention, x: Tensor, query: tuple[int, int]) -> Tensor:
    """Share of the heads by which the query at (row, column) reads each token: (1, H, W, C) -> (H, W) in 0..1."""
    _, height, width, _ = x.shape
    with torch.no_grad():
        reads = attention.connectivity(x, torch.tensor([query[0] * width + query[1]]))
    return reads.expand(1, attention.num_heads, 1, height * width)[0, :, 0].double().mean(0).reshape(height, width)


def blocks(attention: Attention, height: int, width: int) -> list[Tensor]:
    """Which block of the map each token lies in, for each cut that the mechanism makes: (H, W) integers each.

    A block is a region, or for dilated ones all those that interleave.
    """
    if isinstance(attention, PooledAttention) and isinstance(attention.pool, SpatialReduction):
        cuts = [attention.pool.cut(height, width)]
    elif isinstance(attention, CSWin):
        cuts = [branch.stripes for branch in attention.branches(height, width)]
    elif isinstance(attention, PartitionAttention):
        cuts = [attention.partition(height, width)]
    else:
        cuts = []
    places = coordinates(height, width, attention.qkv.weight.device)
    solid = [replace(cut, rows=cut.rows * cut.step_y, cols=cut.cols * cut.step_x, step_y=1, step_x=1) for cut in cuts]
    return [cut.locate(*places).reshape(height, width) for cut in solid]


def sampled_points(attention: Attention, x: Tensor) -> Tensor | None:
    """Where deformable attention samples the first image, in tokens: (points, 2) as (row, column); None elsewhere."""
    if not isinstance(attention, DAT) or attention.offset is None:
        return None
    with torch.no_grad():
        points = attention.points(attention.qkv(x)[..., : attention.dim])[0].reshape(-1, 2)
    return (points + 1) / 2 * (torch.tensor(x.shape[1:3]) - 1)


def connectivity_gallery(
    query: tuple[int, int] = QUERY,
    *,
    attn: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    width: float = SIZES["page"].width,
    has_caption: bool = True,
) -> Figure:
    """Draw which keys one query reads, a panel for each mechanism and block, and the photograph they are shown.

    Each panel is an image of `keys_read`, labelled with the panel's title; the query is the line "query". `width` is in
    inches, the others are those of `draw`.

    Raises:
        ValueError: a registered mechanism does not fit the map; a choice does not go with the mechanisms.
    """
    panels = gallery_panels(attn)
    shown = shown_names(dict.fromkeys(panel.name for panel in panels), names or {})
    columns = round(width / PANEL)
    rows, key = -(-(len(panels) + 1) // columns), KEY_ROW * -(-KEY_ENTRIES // columns)
    caption = textwrap.wrap(CAPTION, int(width * LETTERS_PER_INCH)) if has_caption else []
    inside = width / columns - GAP
    head, foot = 0.3, 0.06 + len(caption) * CAPTION_PT * 1.45 / 72
    height = rows * (head + inside * HEIGHT / WIDTH) + (rows - 1) * GAP + key + foot + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.subplots_adjust(
        left=GAP / 2 / width,
        right=1 - GAP / 2 / width,
        bottom=(foot + key + 0.1) / height,
        top=1 - head / height,
        wspace=GAP / inside,
        hspace=(head + GAP) / (inside * HEIGHT / WIDTH),
    )
    figure.text(GAP / 2 / width, 0.05 / height, "\n".join(caption), fontsize=CAPTION_PT, va="bottom", linespacing=1.3)
    image = photograph()
    x = features(image)
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel, panel.title(shown[panel.name]), x, query)
    photo, *empty = axes[len(panels) :]
    photo.imshow(image.numpy(), extent=(-0.5, WIDTH - 0.5, HEIGHT - 0.5, -0.5))
    _describe(photo, "photograph", "", "what dat and bra see")
    _mark(photo, query)
    draw_legend(figure, columns, (0, foot / height))
    for ax in empty:
        ax.set_axis_off()
    return figure


def draw_panel(ax: Axes, panel: Panel, title: str, x: Tensor, query: tuple[int, int]) -> None:
    """Draw one panel for the map x, (1, H, W, C)."""
    attention = untrained(panel)
    reads = keys_read(attention, x, query)
    height, width = reads.shape
    ax.imshow(reads.numpy(), cmap=SHADES, vmin=0, vmax=1, interpolation="none")
    # points may lie beyond the map
    ax.autoscale(False)
    for i in range(1, height):
        ax.axhline(i - 0.5, color="white", linewidth=0.4)
    for j in range(1, width):
        ax.axvline(j - 0.5, color="white", linewidth=0.4)
    for labels in blocks(attention, height, width):
        _draw_borders(ax, labels)
    points = sampled_points(attention, x)
    if points is not None:
        ax.plot(points[:, 1], points[:, 0], markersize=2.2, mew=0.4, label="points", zorder=2.3, **POINT_MARK)
    _mark(ax, query)
    _describe(ax, title, f"{reads.mean():.0%}", panel.example.reads)


def _draw_borders(ax: Axes, labels: Tensor) -> None:
    right = (labels[:, 1:] != labels[:, :-1]).nonzero().tolist()
    down = (labels[1:] != labels[:-1]).nonzero().tolist()
    borders = [((j + 0.5, i - 0.5), (j + 0.5, i + 0.5)) for i, j in right]
    borders += [((j - 0.5, i + 0.5), (j + 0.5, i + 0.5)) for i, j in down]
    # a white casing, since the line alone is lost on keys that are read
    for colour, linewidth, zorder in (("white", 1.8, 2.1), (BORDER, 0.8, 2.2)):
        lines = LineCollection(borders, colors=colour, linewidths=linewidth, capstyle="projecting", zorder=zorder)
        ax.add_collection(lines)


def _mark(ax: Axes, query: tuple[int, int]) -> None:
    ax.plot(query[1], query[0], zorder=3, **QUERY_MARK)


def _describe(ax: Axes, title: str, share: str, line: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color=BORDER, linewidth=0.7, visible=True)
    ax.set_title(title, loc="left", fontsize=6.5, fontweight="bold", pad=9.5)
    ax.set_title(share, loc="right", fontsize=6.5, pad=9.5)
    ax.text(0, 1.03, line, transform=ax.transAxes, fontsize=5.8, va="bottom")


def draw_legend(figure: Figure, columns: int, corner: tuple[float, float]) -> None:
    """Explain the marks and shades of the gallery in rows below it, from a corner on."""
    edge: dict[str, Any] = {"edgecolor": BORDER, "linewidth": 0.5}
    figure.legend(
        handles=[
            Line2D([], [], **QUERY_MARK),
            Patch(facecolor=READ, label="key it reads", **edge),
            Patch(facecolor=SHADES(0.5), label="by half of the heads", **edge),
            Patch(facecolor=UNREAD, label="not read", **edge),
            Line2D([], [], color=BORDER, linewidth=0.8, label="region or patch"),
            Line2D([], [], markersize=3, label="sampled point", **POINT_MARK),
        ],
        loc="lower left",
        bbox_to_anchor=corner,
        ncols=columns,
        fontsize=6,
        frameon=False,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        borderpad=0.3,
    )
