"""Multi-axis attention (MaxViT): block and grid.

Tu et al., "MaxViT: Multi-Axis Vision Transformer", ECCV 2022, arXiv:2204.01697, section 3.2. Block attention stays
inside windows of P x P tokens; grid attention joins the G x G tokens that lie H / G and W / G apart, so it is sparse
and global. The two alternate, block first; both add a relative position bias.
Paper -> here:  P and G -> window,  block / grid -> kind.
Departures: MaxViT puts a convolution block before each pair; here the host is the same for all. On a map that does not
divide, padded tokens are masked (`padding="official"`: zeros before the projection, at the bottom and right, read like
any token).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal, Self

from torch import Tensor

from attention_zoo.base import Example
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.padding import WindowConfig
from attention_zoo.partitioned import PartitionAttention, bias_table, softmax_in_regions, table_bias
from attention_zoo.regions import Partition
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class MaxViTConfig(WindowConfig):
    """Windows and grids of 7 x 7 tokens, as published; inside a pyramid, of the layout's window."""

    kind: Literal["block", "grid"] | None = field(
        default=None, metadata={"help": "windows or dilated grids; default: in turns, block first"}
    )

    period: ClassVar[int] = 2

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window unless one is set, and every second block a grid unless a kind is set."""
        return self.replace(window=self.window or layout.window, kind=self.kind or ("grid" if block % 2 else "block"))


@register("maxvit")
class MaxViT(PartitionAttention):
    """Block-SA and Grid-SA: softmax(q k^T / sqrt(D) + B) v inside a window or grid. Cost: 4 N C^2 + 2 P^2 N C MACs."""

    Config: ClassVar[type[AttentionConfig]] = MaxViTConfig

    paper: ClassVar[str] = "2204.01697"
    reads: ClassVar[str] = "a window of M x M tokens; in every other block a dilated grid of M x M"
    cost: ClassVar[str] = "4NC² + 2M²NC"
    exponent: ClassVar[Fraction | None] = Fraction(1)
    examples: ClassVar[tuple[Example, ...]] = (
        Example(reads="windows of 4x4", config={"window": 4, "kind": "block"}, turn=1),
        Example(reads="dilated grids of 4x4", config={"window": 4, "kind": "grid"}, turn=2),
    )

    def __init__(self, dim: int, num_heads: int, config: MaxViTConfig) -> None:
        """Add the table of relative position biases, ((2P - 1)^2, heads)."""
        super().__init__(dim, num_heads, config)
        self.bias_table = bias_table(*config.sides, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Block-SA, or Grid-SA: (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        x, regions = self.enter(x)  # windows, or grids of tokens that lie apart
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        # relative attention: softmax(q k^T / sqrt(D) + B) v in each window or grid (section 3.1, eq. 3)
        bias = self.region_bias(regions, x.device)  # (heads, P^2, P^2)
        y = softmax_in_regions(qkv, regions, self.num_heads, self.scale, bias, self.pad_rule)  # (B, H, W, C)
        y = self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))
        return self.leave(y, height, width)

    def cut(self, height: int, width: int) -> Partition:
        """Windows, or the grids of tokens ceil(H / G) and ceil(W / G) apart; no more places than the map has.

        Raises:
            ValueError: the published code's padding does not suit a rectangular grid.
        """
        rows, cols = self.config.sides_on(height, width)
        step = (1, 1)
        if self.config.kind == "grid":
            # the published code pads both sides to a multiple of the grid's height
            wide = -(-width // rows) * rows if self.config.pad_rule == "input" else -(-width // cols) * cols
            if wide % cols:
                raise ValueError(
                    f"window={rows}x{cols}: a {height}x{width} map is padded to a multiple of {rows}, {wide} columns, "
                    f"which {cols} does not divide; use a square window, or padding=mask"
                )
            step = -(-height // rows), wide // cols
        return Partition.of_size(height, width, rows, cols, step=step, centred=self.config.is_centred)

    def offset_bias(self, cut: Partition, dy: Tensor, dx: Tensor) -> Tensor:
        """Relative position bias; in a grid, neighbours are one place apart however far they lie on the map."""
        return table_bias(self.bias_table, self.config.sides, dy, dx)
