"""Neighbourhood attention (NA): a window that slides with its query.

Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, arXiv:2204.07143, section 3.1; dilated in Hassani and
Shi, "Dilated Neighborhood Attention Transformer", arXiv:2209.15001. Every query reads the k x k tokens
around it and adds a bias of their offset. At a border the window moves inward instead of shrinking, so a corner query
reads as many keys as an interior one and stands off its window's centre. With dilation d the tokens whose index leaves
the same remainder by d form a sequence of their own, in which the same rule applies; along each side alike.
Paper -> here:  k -> kernel,  delta -> dilation,  B -> bias.
Departures: a side that is shorter than a window is read whole, where NATTEN refuses or pads it. Its table of biases is
indexed by key - query, ours by query - key like every table of this package: one is the other turned by 180 degrees.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import Attention, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.caching import Kept, holds_values
from attention_zoo.kernels.modes import is_tracing
from attention_zoo.kernels.tiles import Tiles, attend_in_tiles, tiles_of
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import bias_table, table_bias
from attention_zoo.regions import coordinates, from_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SlidingConfig(AttentionConfig):
    """Neighbourhoods of 7 x 7 tokens, as published; inside a pyramid, the odd size next to the layout's window."""

    kernel: int | None = field(
        default=None, metadata={"help": "tokens per side of a neighbourhood, odd; default: the layout's window, or 7"}
    )
    dilation: int = field(default=1, metadata={"help": "places between neighbours along each side"})
    bias: bool = field(default=True, metadata={"help": "relative position bias of each head"})

    def __post_init__(self) -> None:
        """Reject neighbourhoods that no map could make right.

        Raises:
            ValueError: a kernel that is even or below 1, a dilation below 1.
        """
        super().__post_init__()
        if self.side < 1 or self.side % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {self.kernel}")
        if self.dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {self.dilation}")

    @property
    def side(self) -> int:
        """Tokens per side of a neighbourhood."""
        return 7 if self.kernel is None else self.kernel

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window unless a kernel is set, one token more where it is even."""
        return self.replace(kernel=self.kernel or layout.window + 1 - layout.window % 2)


@register("sliding")
class Sliding(Attention):
    """NA: softmax(q K^T / sqrt(D) + B) V over the k x k neighbours of q. Cost: 4 N C^2 + 2 k^2 N C MACs."""

    Config: ClassVar[type[AttentionConfig]] = SlidingConfig
    impls: ClassVar[tuple[str, ...]] = ("gather",)

    def __init__(self, dim: int, num_heads: int, config: SlidingConfig) -> None:
        """Add the table of relative position biases, ((2k - 1)^2, heads)."""
        super().__init__(dim, num_heads, config)
        self.kernel, self.dilation = config.side, config.dilation
        self.bias_table = bias_table(self.kernel, self.kernel, num_heads) if config.bias else None
        self._biases = Kept(8)

    def reach(self, length: int) -> int:
        """Keys that a query has along a side, the one included that the shorter sequences of a dilation lack."""
        return min(self.kernel, -(-length // self.dilation))

    def neighbours(self, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of each token of a side, their offsets query - key in places, and which of them exist: (length, K)."""
        token = torch.arange(length, device=device)
        phase, place = token % self.dilation, token // self.dilation
        members = (length - 1 - phase) // self.dilation + 1
        keys = self.reach(length)
        start = (place - self.kernel // 2).minimum(members - keys).clamp(min=0)
        near = start[:, None] + torch.arange(keys, device=device)
        key = near * self.dilation + phase[:, None]
        return key.clamp(max=length - 1), place[:, None] - near, near < members[:, None]

    def fast(self, x: Tensor) -> Tensor:
        """Attend to the neighbours of each query: (B, H, W, C) -> same."""
        return self._by_tile(x) if self._runs_in_tiles(x) else self._by_query(x)

    def _runs_in_tiles(self, x: Tensor) -> bool:
        """Whether tiles serve: on a CPU, where a call runs; one that is recorded shows the products of the paper."""
        is_recorded = torch.compiler.is_compiling() or is_tracing() or not holds_values(x)
        return self.dilation == 1 and not is_recorded and x.device.type == "cpu"

    def _by_tile(self, x: Tensor) -> Tensor:
        """Attend tile by tile, each key copied a few times only."""
        _, height, width, _ = x.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        bias_q, bias_kv = (None, None) if bias is None else bias.split((self.dim, 2 * self.dim))
        q = F.linear(x, weight[: self.dim], bias_q)
        kv = F.linear(x, weight[self.dim :], bias_kv)
        tiles = tiles_of(height, width, self.kernel, x.device)
        y = attend_in_tiles(q.flatten(1, 2), kv.flatten(1, 2), tiles, self._tile_bias(tiles, x, q.dtype), self.scale)
        return self.finish(y.reshape(x.shape), kv[..., self.dim :])

    def _tile_bias(self, tiles: Tiles, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Bias of each kind of tile, -inf out of reach: (kinds, heads, T, K)."""

        def make() -> Tensor:
            far, size = self.kernel - 1, (-1, tiles.queries.shape[1], tiles.keys.shape[1])
            is_near = ((tiles.dy <= far) & (tiles.dx <= far)).reshape(size)
            if self.bias_table is None:
                bias = x.new_zeros(len(is_near), self.num_heads, *size[1:], dtype=dtype)
            else:
                dy, dx = (offset.clamp(-far, far) for offset in (tiles.dy, tiles.dx))
                sides = self.kernel, self.kernel
                bias = table_bias(self.bias_table, sides, dy, dx).to(dtype).reshape(self.num_heads, *size).movedim(0, 1)
            return bias.masked_fill(~is_near[:, None], float("-inf")).contiguous()

        sources = () if self.bias_table is None else (self.bias_table,)
        return self._biases.get((*x.shape[1:3], dtype, x.device), make, sources)

    def _by_query(self, x: Tensor) -> Tensor:
        """Gather the neighbours of each query, a copy of each key for every query that reads it."""
        _, height, width, _ = x.shape
        q, k, v = self.project(x)
        row, dy, has_row = (part[:, None, :, None] for part in self.neighbours(height, x.device))  # (H, 1, K, 1)
        col, dx, has_col = (part[None, :, None, :] for part in self.neighbours(width, x.device))  # (1, W, 1, K)
        keys = (row * width + col).reshape(height * width, -1)  # (N, K K)
        near_k, near_v = (part.index_select(2, keys.flatten()).unflatten(2, keys.shape) for part in (k, v))
        if self.bias_table is None:
            bias = q.new_zeros(1, *keys.shape)
        else:
            bias = table_bias(self.bias_table, (self.kernel, self.kernel), dy, dx).to(q.dtype).reshape(-1, *keys.shape)
        bias = bias.masked_fill(~(has_row & has_col).reshape(keys.shape), float("-inf"))
        # each query is a problem of its own, so it takes a dimension of one: (B, heads, N, 1, D)
        y = attend(q[:, :, :, None], near_k, near_v, self.scale, bias[:, :, None])[:, :, :, 0]
        return self.finish(from_heads(y).reshape(x.shape), from_heads(v).reshape(x.shape))

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow keys at most k // 2 places from the window's centre, which keeps off borders: (1, 1, N or queries, N).

        The centre is the query itself where both borders are far enough.
        """
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        rows, cols = (row, col) if queries is None else (row[queries], col[queries])
        return (self._near(rows, row, height) & self._near(cols, col, width))[None, None]

    def _near(self, query: Tensor, key: Tensor, length: int) -> Tensor:
        """Pairs along one side: (Nq, Nk)."""
        phase, radius = query % self.dilation, self.kernel // 2
        last = (length - 1 - phase) // self.dilation
        centre = (query // self.dilation).minimum(last - radius).clamp(min=radius)
        distance = (key[None, :] // self.dilation - centre[:, None]).abs()
        return (key[None, :] % self.dilation == phase[:, None]) & (distance <= radius)

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Bias of every pair of the map, (heads, N, N), or None; of pairs that share no window, any."""
        if self.bias_table is None:
            return None
        far = self.kernel - 1
        row, col = coordinates(height, width, self.bias_table.device)
        dy, dx = (((i[:, None] - i[None, :]) // self.dilation).clamp(-far, far) for i in (row, col))
        return table_bias(self.bias_table, (self.kernel, self.kernel), dy, dx)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 k^2 N C, with fewer keys along a side that is shorter than a window.

        The paper writes 3 N C^2: it leaves out the output projection.
        """
        keys = self.reach(height) * self.reach(width)
        return self.shared_macs(height, width) + Macs(core=self.core_macs(height * width, keys))

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Window (keys of a query, as clamped to the map); nothing is padded."""
        return {"window": f"{self.reach(height)}x{self.reach(width)}", "pad_ratio": 0.0}
