"""Deformable attention (DAT, and DAT++).

Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022, arXiv:2201.00520, section 3.2, and "DAT++:
Spatially Dynamic Vision Transformer with Deformable Attention", arXiv:2309.01430. A small network moves a grid of
reference points by offsets that it reads off the queries; keys and values are projected from the map, sampled
bilinearly at the moved points, and every query reads all of them. The bias of a logit is sampled from a table at the
displacement between the query and the point.
Paper -> here:  r -> stride,  k -> kernel,  s -> offset_range,  G -> groups,  theta_offset -> offset,  B -> position.
The published code of 2022 and that of 2023 differ in numbers (`variant`): in 2022 points and queries lie at the centres
of cells, (i + 0.5) / n of the map; in 2023 points lie at (i + 0.5) / (n - 1) and queries at i / (n - 1), so points run
past the far edge. Beyond the map the samples are 0.
Conventions of the code: groups have points of their own, but keys and values are projected from the channels of all
groups, so every head reads all points; in 2023 a kernel as large as the stride is not padded.
Departures: a side of one point or token lies in the middle (2023 divides by 0 there); on another map than its own a
table of biases is read by displacement, and a fixed one interpolated (the code takes one size only); average pooling
(`offsets` off) rounds the number of windows up, so that no token is lost, unless the kernel equals the stride.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import Example, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.dispatch import part_of
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.dat_oracle import SampledAttention, bilinear_shares
from attention_zoo.mechanisms.dat_position import (
    LOG_WIDTH,
    OffsetNetwork,
    bias_by_network,
    bias_by_table,
    lines,
    position_term,
    span,
    stretched,
)
from attention_zoo.regions import coordinates, to_heads
from attention_zoo.registry import register

STRIDES = {"2022": (8, 4, 1, 1), "2023": (8, 4, 2, 1)}
"""Stages 3 and 4 of 2022 as published; its stages 1 and 2 have window attention, so they take those of DAT++."""
KERNELS = (9, 7, 5, 3)
HEADS_OF_A_GROUP = {"2022": 4, "2023": 2}


@dataclass(frozen=True, kw_only=True)
class DATConfig(AttentionConfig):
    """As published stage by stage inside a pyramid; alone, the third stage of DAT-T (2022) with one group."""

    variant: Literal["2022", "2023"] = field(default="2022", metadata={"help": "published code: DAT or DAT++"})
    groups: int | None = field(
        default=None, metadata={"help": "groups of channels with points of their own; default: as published, else 1"}
    )
    stride: int | None = field(default=None, metadata={"help": "tokens between points; default: as published, else 1"})
    kernel: int | None = field(default=None, metadata={"help": "kernel of the offsets; default: as published, else 5"})
    offset_range: float | Literal["unbounded", "free"] | None = field(
        default=None,
        metadata={
            "help": "largest offset, half steps between points; unbounded keeps the points on the map instead, by tanh "
            "(2022) or a clamp (2023); free does not; default: 2 (2022), unbounded (2023)"
        },
    )
    offsets: bool = field(default=True, metadata={"help": "deform; off: average pooling by the stride (2023)"})
    position: Literal["rpb", "dwc", "fixed", "log", "none"] = field(
        default="rpb",
        metadata={
            "help": "table of relative biases, depth-wise convolution of q, dense table of biases (2023), or network "
            "on the logarithm of the displacement (2023)"
        },
    )
    map_size: int | tuple[int, int] | None = field(
        default=None, metadata={"help": "map the tables are made for, tokens, or HxW; default: the layout's, else 14"}
    )

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a size below 1, an offset range that is not positive, an unknown word, LePE, or what the
                variant does not have.
        """
        super().__post_init__()
        for name in ("groups", "stride", "kernel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min(self.table_map) < 1:
            raise ValueError(f"map_size must be at least 1, got {self.map_size}")
        if isinstance(self.offset_range, (int, float)) and not 0 <= self.offset_range < float("inf"):
            raise ValueError(f"offset_range must be 0 or more and finite, unbounded or free; got {self.offset_range}")
        if self.lepe:
            raise ValueError(
                "lepe must be off, got lepe=True: dat samples the values; position=dwc convolves q instead"
            )
        if self.variant == "2022" and (self.position in ("fixed", "log") or not self.offsets):
            raise ValueError(
                f"position=fixed, position=log and offsets=off need variant=2023, got variant=2022, "
                f"position={self.position}, offsets={'on' if self.offsets else 'off'}"
            )
        if not self.offsets and self.position != "none":
            raise ValueError(f"offsets=off has no points to take a bias from: set position=none, got {self.position}")

    @property
    def table_map(self) -> tuple[int, int]:
        """Height and width of the map that tables of biases are made for, tokens."""
        size = 14 if self.map_size is None else self.map_size
        return (size, size) if isinstance(size, int) else size

    @property
    def reach(self) -> float | None:
        """Largest offset in half steps between points; None: no bound."""
        if self.offset_range is None:
            return 2.0 if self.variant == "2022" else None
        return None if isinstance(self.offset_range, str) else self.offset_range

    @property
    def keeps_on_map(self) -> bool:
        """Whether points that have no bound of their own are kept on the map."""
        return self.reach is None and self.offset_range != "free"

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take what is published for the stage, groups of as many heads as published, and the layout's own map."""
        heads = layout.dims[stage] // layout.head_dim
        most = max(1, heads // HEADS_OF_A_GROUP[self.variant])
        return self.replace(
            groups=self.groups or max(count for count in range(1, most + 1) if heads % count == 0),
            # as published, seven points a side or more: on smaller maps a smaller stride
            stride=self.stride or min(STRIDES[self.variant][stage], max(1, layout.own_maps[stage][0] // 7)),
            kernel=self.kernel or KERNELS[stage],
            map_size=self.map_size or layout.own_maps[stage],
        )


@register("dat")
class DAT(SampledAttention):
    """softmax(q k(x~)^T / sqrt(D) + B) v(x~), x~ = x at Ns moved points. Cost: 2 (N + Ns) C^2 + 2 N Ns C MACs."""

    Config: ClassVar[type[AttentionConfig]] = DATConfig

    paper: ClassVar[str] = "2201.00520"
    reads: ClassVar[str] = "N' sampled points (deformable), the same ones for all queries"
    cost: ClassVar[str] = "2(N+N')C² + 2NN'C + offset network"
    exponent: ClassVar[Fraction | None] = Fraction(2)
    examples: ClassVar[tuple[Example, ...]] = (
        Example(reads="around 12 moved points", config={"stride": 4, "kernel": 5, "map_size": (12, 16)}),
    )

    def __init__(self, dim: int, num_heads: int, config: DATConfig) -> None:
        """Add the offset network, shared by the groups, and the position term.

        Raises:
            ValueError: the groups divide neither heads nor channels.
        """
        super().__init__(dim, num_heads, config)
        self.groups = config.groups or 1
        # points are shared by the channels of a group, biases by its heads
        name, whole = ("num_heads", num_heads) if config.position in ("rpb", "log") else ("dim", dim)
        if whole % self.groups:
            raise ValueError(f"groups must divide {name}, got groups={self.groups}, {name}={whole}")
        self.stride, self.kernel = config.stride or 1, config.kernel or 5
        bare = config.variant == "2023" and self.kernel == self.stride
        self.padding = 0 if bare else self.kernel // 2
        # as the code, where it runs on such maps at all
        self.drops_remainder = bare
        self.offset = (
            OffsetNetwork(dim // self.groups, self.kernel, self.stride, self.padding) if config.offsets else None
        )
        self.position: Any = position_term(config, dim, num_heads, self.groups, self.samples)

    def samples(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of points on a map.

        Raises:
            ValueError: the map is smaller than a kernel without padding.
        """
        if not self.config.offsets and not self.drops_remainder:
            return -(-height // self.stride), -(-width // self.stride)
        down, across = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (height, width))
        if min(down, across) < 1:
            raise ValueError(
                f"a {height}x{width} map is smaller than kernel={self.kernel}, which variant=2023 does not pad when it "
                f"equals the stride; choose another kernel or a larger map"
            )
        return down, across

    def forward(self, x: Tensor) -> Tensor:
        """Sample the map at moved points, and attend to the samples (section 3.2): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        q, bias = part_of(self.qkv, x, 0, self.dim), None  # (B, H, W, C)
        if self.config.offsets:
            points = self.points(q)  # eq. 5: (B, groups, Hk, Wk, 2)
            sampled = self.sample(x, points)  # eq. 6 and 7: (B, Ns, C)
            bias = self.bias(points, height, width)  # (B or 1, heads, N, Ns)
        else:
            sampled = self.pool(x)
        k, v = part_of(self.qkv, sampled, self.dim, 3 * self.dim).chunk(2, dim=-1)
        queries, k, v = (to_heads(part, self.num_heads) for part in (q.flatten(1, 2), k, v))
        y = attend(queries, k, v, self.scale, None if bias is None else bias.to(q.dtype))  # eq. 9
        # heads side by side by a copy: ONNX has no view of what attention under a bias returns
        y = torch.cat(y.unbind(1), -1).unflatten(1, (height, width))
        if self.config.position == "dwc":
            y = y + self.position(q.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(y)

    def pool(self, x: Tensor) -> Tensor:
        """Average windows of the stride, instead of samples: (B, H, W, C) -> (B, Ns, C).

        Raises:
            ValueError: the map is smaller than a window without padding.
        """
        self.samples(x.shape[1], x.shape[2])
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, ceil_mode=not self.drops_remainder)
        return pooled.flatten(2).mT

    def _grid(self, height: int, width: int, like: Tensor) -> Tensor:
        """Reference points: (height, width, 2) as (y, x)."""
        return torch.stack(torch.meshgrid(*lines(self.config.variant, height, width, like), indexing="ij"), -1)

    def points(self, q: Tensor) -> Tensor:
        """Move the reference points: (B, H, W, C) -> (B, groups, Hk, Wk, 2) as (y, x), float32 or wider.

        -1 and 1 are the centres of the outer tokens.
        """
        assert self.offset is not None
        _, height, width, _ = q.shape
        down, across = self.samples(height, width)
        offset = self.offset(self.by_group(q))
        # 16 bits could not tell neighbours apart on a large map
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        if self.config.reach is not None:
            dy, dx = offset.tanh().mul(self.config.reach).unbind(-1)
            offset = torch.stack((dy / span(self.config.variant, down), dx / span(self.config.variant, across)), -1)
        points: Tensor = offset + self._grid(down, across, offset)
        if self.config.keeps_on_map:
            points = points.tanh() if self.config.variant == "2022" else points.clamp(-1, 1)
        return points.unflatten(0, (-1, self.groups))

    def sample(self, x: Tensor, points: Tensor) -> Tensor:
        """Sample each group at its points: (B, H, W, C), (B, groups, Hk, Wk, 2) -> (B, Ns, C)."""
        maps = self.by_group(x).to(points.dtype)
        sampled = F.grid_sample(maps, points.flatten(0, 1).flip(-1), align_corners=True)  # (B groups, C', Hk, Wk)
        return sampled.unflatten(0, points.shape[:2]).flatten(1, 2).flatten(2).mT.to(x.dtype)

    def by_group(self, x: Tensor) -> Tensor:
        """Take each group of channels for an image: (B, H, W, C) -> (B groups, C / groups, H, W)."""
        return x.permute(0, 3, 1, 2).unflatten(1, (self.groups, -1)).flatten(0, 1)

    def bias(self, points: Tensor, height: int, width: int) -> Tensor | None:
        """Bias of the logits, or None: (B, groups, Hk, Wk, 2) -> (B or 1, heads, N, Ns)."""
        kind, term = self.config.position, self.position
        if kind == "fixed":
            own = self.config.table_map
            return stretched(term, own, self.samples(*own), (height, width), (points.shape[2], points.shape[3]))
        if kind not in ("rpb", "log"):
            return None
        by = bias_by_table if kind == "rpb" else bias_by_network
        return by(term, points, lines(self.config.variant, height, width, points, queries=True))

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow the tokens that a point of any group lies less than one token from: (B, 1, 1, N); depends on x.

        Without offsets all tokens that a pooled window holds.
        """
        _, height, width, _ = x.shape
        if not self.config.offsets:
            ends = zip(coordinates(height, width, x.device), self.samples(height, width), strict=True)
            return torch.stack([place < count * self.stride for place, count in ends]).all(0)[None, None, None]
        shares = bilinear_shares(self.places(x), height, width)  # (B, groups, Ns, H, W)
        return (shares > 0).flatten(3).flatten(1, 2).any(1)[:, None, None]

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Nothing is padded.

        Raises:
            ValueError: the map is smaller than a kernel without padding.
        """
        self.samples(height, width)
        return super().geometry(height, width)

    def macs(self, height: int, width: int) -> Macs:
        """2 (N + Ns) C^2 + 2 N Ns C + (k^2 + 2) Ns C (section 3.2), and the position term; sampling is not counted."""
        tokens, (down, across) = height * width, self.samples(height, width)
        keys, position = down * across, 0
        if self.config.position == "dwc":
            position = tokens * self.dim * 3 * 3
        elif self.config.position == "log":
            position = tokens * keys * LOG_WIDTH * (2 * self.groups + self.num_heads)
        return Macs(
            projection=2 * (tokens + keys) * self.dim**2,
            core=self.core_macs(tokens, keys),
            routing=keys * self.dim * (self.kernel**2 + 2) if self.config.offsets else 0,
            position=position,
        )
