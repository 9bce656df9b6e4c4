"""Position-sensitive axial attention (Axial-DeepLab): along the columns, then along the rows.

Wang et al., "Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation", ECCV 2020, arXiv:2003.07853,
section 3.2. Query, key and value of a pair each get a learned term of their offset along the axis (eq. 4), and batch
norms stand after the projection, the logits and the values, in the place of a scale; nothing is projected afterwards.
Paper -> here:  r^q, r^k, r^v -> relative,  N groups -> num_heads,  d_q = d_out / 2 -> q and k are half as wide as v.
Departures: an axis longer than `map_size` reads the term of the largest offset that it has; the published code takes
one size only. Its stride, an average pooling behind the attention, is the host's here.
In training the batch norms take their statistics from the whole batch, so images mix, as in any network with them.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from attention_zoo.base import Example, Macs
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.axial_deeplab_oracle import Layer, LayeredAttention, from_lines, to_lines
from attention_zoo.regions import coordinates
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class AxialDeepLabConfig(AttentionConfig):
    """Both axes, without a bias before the batch norm; inside a pyramid made for the layout's own maps."""

    qkv_bias: bool = field(default=False, metadata={"help": "bias of the q, k, v projections"})
    axes: Literal["both", "height", "width"] = field(
        default="both", metadata={"help": "attend along the height, then the width, or along one of them"}
    )
    map_size: int | tuple[int, int] | None = field(
        default=None, metadata={"help": "map the offsets are made for, tokens, or HxW; default: the layout's, else 14"}
    )

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a map size below 1, a scale, or LePE.
        """
        super().__post_init__()
        if min(self.table_map) < 1:
            raise ValueError(f"map_size must be at least 1, got {self.map_size}")
        if self.qk_scale is not None:
            raise ValueError(f"qk_scale must be left out: a batch norm scales the logits; got {self.qk_scale}")
        if self.lepe:
            raise ValueError("lepe must be off, got lepe=True: axial_deeplab has a position term of its own on v")

    @property
    def table_map(self) -> tuple[int, int]:
        """Height and width of the map that the offsets are made for, tokens."""
        size = 14 if self.map_size is None else self.map_size
        return (size, size) if isinstance(size, int) else size

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's own map unless one is set."""
        return self.replace(map_size=self.map_size or layout.own_maps[stage])


class PositionSensitive(nn.Module):
    """Eq. 4 along lines of tokens, batch norms included: q, k, v of lines, (n, 2 C, L) -> (n, C, L)."""

    def __init__(self, dim: int, num_heads: int, length: int) -> None:
        """Make the terms of offsets up to `length` - 1, shared by the heads, and the norms."""
        super().__init__()
        self.dim, self.num_heads, self.length = dim, num_heads, length
        width = dim // num_heads
        self.relative = nn.Parameter(torch.empty(2 * width, 2 * length - 1))
        nn.init.normal_(self.relative, std=width**-0.5)
        self.bn_qkv, self.bn_similarity = nn.BatchNorm1d(2 * dim), nn.BatchNorm2d(3 * num_heads)
        self.bn_output = nn.BatchNorm1d(2 * dim)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise q, k and v, and split them: (n, 2 C, L) -> (n, heads, D / 2, L) twice, (n, heads, D, L)."""
        parts = self.bn_qkv(qkv).split((self.dim // 2, self.dim // 2, self.dim), dim=1)
        q, k, v = (part.unflatten(1, (self.num_heads, -1)) for part in parts)
        return q, k, v

    def terms(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """r^q, r^k and r^v of each pair of a line, by the offset first - second index: (D / 2 or D, L, L)."""
        place, far = torch.arange(length, device=self.relative.device), self.length - 1
        offset = (place[:, None] - place).clamp(-far, far) + far
        width = self.dim // self.num_heads
        r_q, r_k, r_v = self.relative[:, offset].split((width // 2, width // 2, width))
        return r_q, r_k, r_v

    def forward(self, qkv: Tensor) -> Tensor:
        """Attend along each line."""
        q, k, v = self.split(qkv)
        r_q, r_k, r_v = self.terms(qkv.shape[2])
        by_query = at_each_place(q.mT, r_q.movedim(0, 1))  # (n, heads, L, L)
        by_key = at_each_place(k.mT, r_k.movedim(0, 1)).mT
        weights = self.softmax(q.mT @ k, by_query, by_key)  # (n, heads, L, L)
        return self.join(v @ weights.mT, at_each_place(weights, r_v.movedim(0, 2)).mT)

    def softmax(self, *logits: Tensor) -> Tensor:
        """Normalise the three logits, and take the softmax of their sum: (n, heads, L, L) each -> same."""
        return self.bn_similarity(torch.cat(logits, 1)).unflatten(1, (3, self.num_heads)).sum(1).softmax(-1)

    def join(self, by_value: Tensor, by_position: Tensor) -> Tensor:
        """Normalise both halves of the output, which take turns in the channels, and add them: -> (n, C, L)."""
        both = torch.stack((by_value, by_position), 3).flatten(1, 3)  # (n, 2 C, L)
        return self.bn_output(both).unflatten(1, (self.dim, 2)).sum(2)


def at_each_place(rows: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the row of each place by the matrix of that place: (n, heads, L, a), (L, a, b) -> (n, heads, L, b)."""
    product = rows.flatten(0, 1).transpose(0, 1) @ matrices  # (L, n heads, b)
    return product.transpose(0, 1).unflatten(0, rows.shape[:2])


@register("axial_deeplab")
class AxialDeepLab(LayeredAttention):
    """softmax(q k^T + q r^q + k r^k) (v + r^v) along each axis. Cost: 4 N C^2 + 3.5 N (H + W) C MACs."""

    Config: ClassVar[type[AttentionConfig]] = AxialDeepLabConfig

    paper: ClassVar[str] = "2003.07853"
    reads: ClassVar[str] = "its column, then its row, with a term of each offset in logits and values"
    cost: ClassVar[str] = "4NC² + 3.5(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="column, then row"),)

    def __init__(self, dim: int, num_heads: int, config: AxialDeepLabConfig) -> None:
        """Add the terms and norms of each axis; q and k are half as wide as v."""
        super().__init__(dim, num_heads, config, qk_dim=dim // 2)
        self.axes = ("height", "width") if config.axes == "both" else (config.axes,)
        sides = dict(zip(("height", "width"), config.table_map, strict=True))
        self.proj = nn.Identity()
        self.first = PositionSensitive(dim, num_heads, sides[self.axes[0]])
        if len(self.axes) == 2:
            self.qkv_second = nn.Linear(dim, 2 * dim, bias=config.qkv_bias)
            self.second = PositionSensitive(dim, num_heads, sides[self.axes[1]])

    @property
    def projections(self) -> list[tuple[Any, nn.Module]]:
        """Those of each axis."""
        return [(self.qkv, self.proj), *([(self.qkv_second, self.proj)] if len(self.axes) == 2 else [])]

    def forward(self, x: Tensor) -> Tensor:
        """Attend along the height, then along the width: (B, H, W, C) -> same."""
        for axis, qkv, attention in self.layers():
            x = from_lines(attention(to_lines(qkv(x), axis)), axis, x)
        return self.proj(x)

    def layers(self) -> list[Layer]:
        """Axis, projection and attention of each layer."""
        layers: list[Layer] = [(self.axes[0], self.qkv, self.first)]
        return layers if len(self.axes) == 1 else [*layers, (self.axes[1], self.qkv_second, self.second)]

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one row or one column, (1, 1, N or queries, N): what either softmax reads directly.

        Of one axis alone, its lines. Through the two, one after the other, each query reaches the whole map.
        """
        by_axis = dict(zip(("width", "height"), coordinates(x.shape[1], x.shape[2], x.device), strict=True))
        lines = [by_axis[axis] for axis in self.axes]
        pairs = [(line if queries is None else line[queries])[:, None] == line for line in lines]
        return torch.stack(pairs).any(0)[None, None]

    def macs(self, height: int, width: int) -> Macs:
        """2 N C^2 + 1.5 N L C for q k^T and the values, 2 N L C for the terms, along each axis of length L."""
        tokens, sides = height * width, {"height": height, "width": width}
        keys = sum(sides[axis] for axis in self.axes)
        return Macs(
            projection=2 * len(self.axes) * tokens * self.dim**2,
            core=self.core_macs(tokens, keys),
            position=2 * tokens * keys * self.dim,
        )
