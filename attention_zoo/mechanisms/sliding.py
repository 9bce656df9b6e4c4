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
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.dispatch import choose, kernel
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import bias_table, table_bias
from attention_zoo.regions import coordinates, from_heads, to_heads
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
    impls: ClassVar[tuple[str, ...]] = ("plain", "tiles")
    old_impls: ClassVar[dict[str, str]] = {"gather": "auto"}

    paper: ClassVar[str] = "2204.07143"
    reads: ClassVar[str] = "its own neighbourhood of K x K tokens"
    cost: ClassVar[str] = "4NC² + 2K²NC"
    exponent: ClassVar[Fraction | None] = Fraction(1)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="neighbourhood of 5x5", config={"kernel": 5}),)

    def __init__(self, dim: int, num_heads: int, config: SlidingConfig) -> None:
        """Add the table of relative position biases, ((2k - 1)^2, heads).

        Raises:
            ValueError: tiles are asked for, and neighbours are apart.
        """
        super().__init__(dim, num_heads, config)
        self.kernel, self.dilation = config.side, config.dilation
        self.bias_table = bias_table(self.kernel, self.kernel, num_heads) if config.bias else None
        if self.impl == "tiles" and "tiles" not in self.usable_impls():
            raise ValueError(f"impl=tiles needs dilation=1, got dilation={self.dilation}; choose impl=plain")

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

    def usable_impls(self) -> tuple[str, ...]:
        """Tiles need neighbours without a gap."""
        return self.impls if self.dilation == 1 else ("plain",)

    def impl_on(self, height: int, width: int) -> str:
        """`tiles` where they are usable, unless another way is set."""
        return choose(self.impl, self.usable_impls()[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the neighbours of each query (eq. 1 to 4): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        impl = self.impl_on(height, width)
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        if impl == "plain":
            y = self._attend_to_neighbours(qkv)
        else:
            q, k, v = qkv.chunk(3, dim=-1)
            y = kernel(impl)(q, k, v, self.bias_table, self.kernel, self.num_heads, self.scale)
        return self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))

    def _attend_to_neighbours(self, qkv: Tensor) -> Tensor:
        """Query by query, each with a copy of the keys that it reads: (B, H, W, 3 C) -> (B, H, W, C)."""
        _, height, width, _ = qkv.shape
        q, k, v = (to_heads(part.flatten(1, 2), self.num_heads) for part in qkv.chunk(3, dim=-1))
        row, dy, has_row = (part[:, None, :, None] for part in self.neighbours(height, qkv.device))  # (H, 1, k, 1)
        col, dx, has_col = (part[None, :, None, :] for part in self.neighbours(width, qkv.device))  # (1, W, 1, k)
        keys = (row * width + col).reshape(height * width, -1)  # (N, k k)
        near_k, near_v = (part.index_select(2, keys.flatten()).unflatten(2, keys.shape) for part in (k, v))
        if self.bias_table is None:
            bias = q.new_zeros(1, *keys.shape)
        else:
            bias = table_bias(self.bias_table, (self.kernel, self.kernel), dy, dx).to(q.dtype).reshape(-1, *keys.shape)
        bias = bias.masked_fill(~(has_row & has_col).reshape(keys.shape), float("-inf"))
        bias = bias.expand(self.num_heads, -1, -1).flatten(0, 1)[:, None]  # (heads N, 1, k k)
        # each query is a problem of its own
        y = attend(q.flatten(1, 2)[:, :, None], near_k.flatten(1, 2), near_v.flatten(1, 2), self.scale, bias)
        return from_heads(y.reshape(q.shape)).unflatten(1, (height, width))

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
        return self.query_bias(height, width, torch.arange(height * width, device=self.bias_table.device))

    def query_bias(self, height: int, width: int, queries: Tensor) -> Tensor | None:
        """Bias of these queries with every key, (heads, Q, N), or None."""
        if self.bias_table is None:
            return None
        far = self.kernel - 1
        line = coordinates(height, width, queries.device)
        dy, dx = (((at[queries, None] - at) // self.dilation).clamp(-far, far) for at in line)
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
