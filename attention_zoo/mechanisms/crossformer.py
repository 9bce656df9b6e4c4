"""Long- and short-distance attention (CrossFormer).

Wang et al., "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention", ICLR 2022,
arXiv:2108.00154, section 3.2. Short-distance attention (SDA) joins the G x G neighbours of a group; long-distance
attention (LDA) joins G x G tokens that lie I apart. The two alternate, short first. A small network makes the position
bias from the offset (DPB, eq. 3 and figure 3b), so a group may have any size.
Paper -> here:  G -> group,  I -> interval,  SDA / LDA -> kind.
Conventions of the code: LDA cuts blocks of (G I)^2 tokens, so on a larger map it is not global; a side no longer than a
group is one group without intervals; the network is C / 16 wide, and offsets count places of a group.
Padding is masked in the published code too; `pad_side` is its pad_type.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from attention_zoo.base import Example
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.padding import PartitionConfig
from attention_zoo.partitioned import PartitionAttention, softmax_in_regions, table_bias
from attention_zoo.regions import Partition
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class CrossFormerConfig(PartitionConfig):
    """Groups of 7 x 7 tokens, as published; inside a pyramid, of the layout's window."""

    group: int | None = field(
        default=None, metadata={"help": "tokens per side of a group; default: the layout's window, else 7"}
    )
    interval: int | None = field(
        default=None,
        metadata={"help": "tokens between members of a long-distance group; default: all of the layout's map, else 1"},
    )
    kind: Literal["short", "long"] | None = field(
        default=None, metadata={"help": "neighbours or intervals; default: in turns, short first"}
    )

    period: ClassVar[int] = 2
    official_moment: ClassVar[str] = "mask"

    def __post_init__(self) -> None:
        """Reject sizes that no map could make right.

        Raises:
            ValueError: a group or an interval below 1.
        """
        super().__post_init__()
        for name in ("group", "interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take groups of the layout's window, intervals that span its map (8-4-2-1 as published), and the turns."""
        group = self.group or layout.window
        side = layout.own_maps[stage][0]
        interval = self.interval or -(-side // group)
        return self.replace(group=group, interval=interval, kind=self.kind or ("long" if block % 2 else "short"))


class DynamicPositionBias(nn.Module):
    """Bias of each head from an offset in places: (..., 2) -> (..., heads), three LayerNorm-ReLU-Linear layers."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """Make the layers, dim / 16 wide."""
        super().__init__()
        width = max(1, dim // 16)
        self.pos_proj = nn.Linear(2, width)
        self.pos1 = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.pos2 = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.pos3 = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, num_heads))
        self.macs_per_offset = width * (2 + 2 * width + num_heads)

    def forward(self, offsets: Tensor) -> Tensor:
        """Evaluate the network."""
        bias: Tensor = self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))
        return bias


@register("crossformer")
class CrossFormer(PartitionAttention):
    """SDA and LDA: softmax(q k^T / sqrt(D) + B) v inside each group. Cost: 4 N C^2 + 2 G^2 N C MACs, and DPB."""

    Config: ClassVar[type[AttentionConfig]] = CrossFormerConfig

    paper: ClassVar[str] = "2108.00154"
    reads: ClassVar[str] = "a group of G x G neighbours; in every other block G x G tokens that lie an interval apart"
    cost: ClassVar[str] = "4NC² + 2G²NC"
    exponent: ClassVar[Fraction | None] = Fraction(1)
    examples: ClassVar[tuple[Example, ...]] = (
        Example(reads="4x4 neighbours", config={"group": 4, "interval": 3, "kind": "short"}, turn=1),
        Example(reads="4x4 at intervals of 3", config={"group": 4, "interval": 3, "kind": "long"}, turn=2),
    )

    def __init__(self, dim: int, num_heads: int, config: CrossFormerConfig) -> None:
        """Add the network of the position bias."""
        super().__init__(dim, num_heads, config)
        self.pos = DynamicPositionBias(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """SDA, or LDA: (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        x, groups = self.enter(x)  # of neighbours, or of tokens an interval apart
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        # softmax(q k^T / sqrt(D) + B) v in each group, B from the network DPB (eq. 3)
        bias = self.region_bias(groups, x.device)  # (heads, G^2, G^2)
        y = softmax_in_regions(qkv, groups, self.num_heads, self.scale, bias, self.pad_rule)  # (B, H, W, C)
        y = self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))
        return self.leave(y, height, width)

    def cut(self, height: int, width: int) -> Partition:
        """Groups of neighbours, or of tokens an interval apart within blocks of (G I)^2."""
        group, interval = self.config.group or 7, self.config.interval or 1
        interval = interval if self.config.kind == "long" else 1
        step = interval if height > group else 1, interval if width > group else 1
        sides = min(group, height), min(group, width)
        return Partition.of_size(height, width, *sides, step=step, centred=self.config.is_centred)

    def offset_bias(self, cut: Partition, dy: Tensor, dx: Tensor) -> Tensor:
        """Dynamic position bias, evaluated once for each offset that a group has, and then looked up."""
        steps = [torch.arange(1 - side, side, device=dy.device) for side in (cut.rows, cut.cols)]
        offsets = torch.cartesian_prod(*steps).to(next((p.dtype for p in self.pos.parameters()), torch.float32))
        return table_bias(self.pos(offsets), (cut.rows, cut.cols), dy, dx)

    def bias_macs(self, cut: Partition) -> int:
        """Products of DPB over the (2 G - 1)^2 offsets."""
        return (2 * cut.rows - 1) * (2 * cut.cols - 1) * self.pos.macs_per_offset
