"""Neighbourhood attention (NA): a window that slides with its query.

Hassani et al., "Neighborhood Attention Transformer", CVPR 2023, arXiv:2204.07143, section 3.1; dilated in Hassani and
Shi, "Dilated Neighborhood Attention Transformer", arXiv:2209.15001. Every query reads the k x k tokens
around it and adds a bias of their offset. At a border the window moves inward instead of shrinking, so a corner query
reads as many keys as an interior one and stands off its window's centre. With dilation d the tokens whose index leaves
the same remainder by d form a sequence of their own, in which the same rule applies; along each side alike.
Generalised in NATTEN (Hassani et al., arXiv:2403.04690 and "Generalized Neighborhood Attention", arXiv:2504.16922),
along each side by itself. Stride s: the s queries of a group share the window of the middle one, of two middle ones the
later. An even window holds one token more before its centre than behind it. A causal side: a query reads no later token
than itself, and the window of a group ends at its last query.
Paper -> here:  k -> kernel,  delta -> dilation,  s -> stride,  B -> bias.
Departures: a side that is shorter than a window is read whole, which NATTEN 0.20 and later refuse
(`padding="error"`) and 0.14 fills up with zeros that are read (`padding="official"`). NATTEN's table of biases is
indexed by key - query, ours by query - key like every table of this package: one is the other turned by 180 degrees;
with strides, even windows or causal sides NATTEN has none.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.dispatch import choose, kernel
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import bias_table, keys_on_map, table_bias
from attention_zoo.regions import Partition, coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SlidingConfig(AttentionConfig):
    """Neighbourhoods of 7 x 7 tokens, as published; inside a pyramid, the odd size next to the layout's window."""

    kernel: int | tuple[int, int] | None = field(
        default=None,
        metadata={"help": "tokens per side of a neighbourhood, or HxW; default: the layout's window, or 7"},
    )
    dilation: int | tuple[int, int] = field(default=1, metadata={"help": "places between neighbours, or HxW"})
    bias: bool = field(default=True, metadata={"help": "relative position bias of each head"})
    stride: int | tuple[int, int] = field(
        default=1, metadata={"help": "queries per side that share a window, or HxW; at most the kernel"}
    )
    causal: Literal["none", "height", "width", "both"] = field(
        default="none", metadata={"help": "sides along which a query reads no later token than itself"}
    )
    padding: Literal["mask", "official", "error"] = field(
        default="mask",
        metadata={"help": "a side shorter than a window is read whole, filled up with zeros that are read, or refused"},
    )

    def __post_init__(self) -> None:
        """Reject neighbourhoods that no map could make right.

        Raises:
            ValueError: a kernel, dilation or stride below 1, or a stride above the kernel.
        """
        super().__post_init__()
        for name in ("kernel", "dilation", "stride"):
            if min(self.sides_of(name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(stride > side for stride, side in zip(self.sides_of("stride"), self.sides_of("kernel"), strict=True)):
            kernel = "x".join(map(str, self.sides_of("kernel")))
            raise ValueError(
                f"stride must be at most the kernel along each side, got {self.stride} with kernel={kernel}"
            )

    def sides_of(self, name: str) -> tuple[int, int]:
        """A field along the height and the width."""
        value = getattr(self, name)
        value = 7 if value is None else value
        return (value, value) if isinstance(value, int) else value

    @property
    def pad_rule(self) -> str:
        """`mask`, `error`, or zeros of the `input` that are read."""
        return "input" if self.padding == "official" else self.padding

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window unless a kernel is set, one token more where it is even."""
        return self.replace(kernel=self.kernel or layout.window + 1 - layout.window % 2)


@dataclass(frozen=True)
class Side:
    """Which keys a query reads along one side of a map."""

    kernel: int
    dilation: int
    stride: int
    is_causal: bool

    @property
    def span(self) -> int:
        """Tokens that a window lies in, those between its own included."""
        return self.kernel * self.dilation

    @property
    def is_plain(self) -> bool:
        """Whether each query has a window without gaps, to both of its sides."""
        return self.dilation == self.stride == 1 and not self.is_causal

    def reach(self, length: int) -> int:
        """Keys that a query has, those included that the shorter sequences of a dilation lack, or that lie later."""
        return min(self.kernel, -(-length // self.dilation))

    def neighbours(self, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of each token of a side, their offsets query - key in places, and which are read: (length, K)."""
        token = torch.arange(length, device=device)
        phase, place = token % self.dilation, token // self.dilation
        members = (length - 1 - phase) // self.dilation + 1
        keys = self.reach(length)
        # the query that chooses the window of its group
        leader = place - place % self.stride + (self.stride - 1 if self.is_causal else self.stride // 2)
        before = self.kernel - 1 if self.is_causal else self.kernel // 2
        start = (leader.minimum(members - 1) - before).minimum(members - keys).clamp(min=0)
        near = start[:, None] + torch.arange(keys, device=device)
        is_read = near <= (place if self.is_causal else members - 1)[:, None]
        key = near * self.dilation + phase[:, None]
        return key.clamp(max=length - 1), place[:, None] - near, is_read

    def pairs(self, query: Tensor, key: Tensor, length: int) -> Tensor:
        """Whether these queries read these keys, from coordinates alone: (Nq, Nk)."""
        phase = query % self.dilation
        last = (length - 1 - phase) // self.dilation
        own, place = (query // self.dilation)[:, None], (key // self.dilation)[None, :]
        same = key[None, :] % self.dilation == phase[:, None]
        group = query // self.dilation // self.stride * self.stride
        if self.is_causal:
            leader = (group + self.stride - 1).minimum(last)[:, None]
            return same & (place <= own) & (leader - place < self.kernel)
        before, behind = self.kernel // 2, (self.kernel - 1) // 2
        centre = (group + self.stride // 2).minimum(last - behind).clamp(min=before)[:, None]
        return same & (centre - before <= place) & (place <= centre + behind)


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
        """Add the table of relative position biases, ((2 kh - 1)(2 kw - 1), heads).

        Raises:
            ValueError: tiles are asked for, and windows have gaps, strides or causal sides.
        """
        super().__init__(dim, num_heads, config)
        self.kernel, self.pad_rule = config.sides_of("kernel"), config.pad_rule
        settings = (config.sides_of(name) for name in ("kernel", "dilation", "stride"))
        is_causal = (config.causal in ("height", "both"), config.causal in ("width", "both"))
        self.down, self.across = (Side(*side) for side in zip(*settings, is_causal, strict=True))
        self.bias_table = bias_table(*self.kernel, num_heads) if config.bias else None
        if self.impl == "tiles" and "tiles" not in self.usable_impls():
            raise ValueError(
                f"impl=tiles needs dilation=1, stride=1 and causal=none, got dilation={config.dilation}, "
                f"stride={config.stride}, causal={config.causal}; choose impl=plain"
            )

    def usable_impls(self) -> tuple[str, ...]:
        """Tiles need windows without a gap, each around its own query."""
        return self.impls if self.down.is_plain and self.across.is_plain else ("plain",)

    def impl_on(self, height: int, width: int) -> str:
        """`tiles` where they are usable, unless another way is set."""
        return choose(self.impl, self.usable_impls()[-1])

    def partition(self, height: int, width: int) -> Partition:
        """The map as one region, with the zeros that make it as long as a window where these are read.

        Raises:
            ValueError: a side is shorter than a window, and that is refused.
        """
        lacks = self.down.span > height or self.across.span > width
        if self.pad_rule == "error" and lacks:
            raise ValueError(
                f"kernel and dilation span {self.down.span}x{self.across.span} tokens, more than a {height}x{width} "
                f"map has, which padding=error refuses; choose a larger map, or padding=mask"
            )
        fills = self.pad_rule == "input" and lacks
        sides = (max(height, self.down.span), max(width, self.across.span)) if fills else (height, width)
        return Partition.of_size(height, width, *sides)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the neighbours of each query (eq. 1 to 4): (B, H, W, C) -> same."""
        frame = self.partition(x.shape[1], x.shape[2])
        qkv = self.qkv(frame.pad(x))  # (B, H, W, 3 C)
        impl = self.impl_on(*frame.padded_size)
        if impl == "plain":
            y = self._attend_to_neighbours(qkv)
        else:
            q, k, v = qkv.chunk(3, dim=-1)
            y = kernel(impl)(q, k, v, self.bias_table, self.kernel, self.num_heads, self.scale)
        return self.proj(frame.crop(self.add_lepe(y, qkv[..., 2 * self.dim :])))

    def _attend_to_neighbours(self, qkv: Tensor) -> Tensor:
        """Query by query, each with a copy of the keys that it reads: (B, H, W, 3 C) -> (B, H, W, C)."""
        _, height, width, _ = qkv.shape
        q, k, v = (to_heads(part.flatten(1, 2), self.num_heads) for part in qkv.chunk(3, dim=-1))
        down, across = self.down.neighbours(height, qkv.device), self.across.neighbours(width, qkv.device)
        row, dy, has_row = (part[:, None, :, None] for part in down)  # (H, 1, k, 1)
        col, dx, has_col = (part[None, :, None, :] for part in across)  # (1, W, 1, k)
        keys = (row * width + col).reshape(height * width, -1)  # (N, k k)
        near_k, near_v = (part.index_select(2, keys.flatten()).unflatten(2, keys.shape) for part in (k, v))
        if self.bias_table is None:
            bias = q.new_zeros(1, *keys.shape)
        else:
            bias = self._table(dy, dx).to(q.dtype).reshape(-1, *keys.shape)
        bias = bias.masked_fill(~(has_row & has_col).reshape(keys.shape), float("-inf"))
        bias = bias.expand(self.num_heads, -1, -1).flatten(0, 1)[:, None]  # (heads N, 1, k k)
        # each query is a problem of its own
        y = attend(q.flatten(1, 2)[:, :, None], near_k.flatten(1, 2), near_v.flatten(1, 2), self.scale, bias)
        return from_heads(y.reshape(q.shape)).unflatten(1, (height, width))

    def _table(self, dy: Tensor, dx: Tensor) -> Tensor:
        """Bias of offsets query - key in places, (heads, *dy.shape); beyond a window, where nothing is read, any."""
        assert self.bias_table is not None
        dy, dx = (offset.clamp(1 - side, side - 1) for offset, side in zip((dy, dx), self.kernel, strict=True))
        return table_bias(self.bias_table, self.kernel, dy, dx)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow the keys of the window, which keeps off borders: (1, 1, N or queries, N).

        Along each side those from k // 2 places before its centre to (k - 1) // 2 behind it. The centre is the query
        itself where both borders are far enough and no stride or causal side says otherwise.
        """
        _, height, width, _ = x.shape
        rows, cols = self.partition(height, width).padded_size
        row, col = coordinates(height, width, x.device)
        asked = (row, col) if queries is None else (row[queries], col[queries])
        return (self.down.pairs(asked[0], row, rows) & self.across.pairs(asked[1], col, cols))[None, None]

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Bias of every pair of the map, (heads, N, N), or None; of pairs that share no window, any."""
        if self.bias_table is None:
            return None
        return self.query_bias(height, width, torch.arange(height * width, device=self.bias_table.device))

    def query_bias(self, height: int, width: int, queries: Tensor) -> Tensor | None:
        """Bias of these queries with every key, (heads, Q, N), or None."""
        if self.bias_table is None:
            return None
        line, sides = coordinates(height, width, queries.device), (self.down, self.across)
        offsets = [(at[queries, None] - at) // side.dilation for at, side in zip(line, sides, strict=True)]
        return self._table(*offsets)

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax under `connectivity`; where zeros are read, the keys are the tokens of the padded map."""
        frame = self.partition(x.shape[1], x.shape[2])
        if not frame.is_padded:
            return super().weights(x, queries)
        inside = frame.inside(x.device)
        return self.weights(frame.pad(x), inside if queries is None else inside[queries])

    def values(self, x: Tensor) -> Tensor:
        """Values of the tokens, those of the padding included where it is read."""
        return super().values(self.partition(x.shape[1], x.shape[2]).pad(x))

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on the tokens of the map; those on padding that is read are left out."""
        return keys_on_map(weights, self.partition(x.shape[1], x.shape[2]))

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle; where zeros are read, of the padded map."""
        frame = self.partition(x.shape[1], x.shape[2])
        return frame.crop(super().reference(frame.pad(x)))

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 k^2 N C, with fewer keys along a side that is shorter than a window; strides change nothing.

        Later keys of a causal side are computed and masked. Zeros that are read are projected and attend like tokens;
        the output projection leaves them out. The paper writes 3 N C^2: it leaves out the output projection.
        """
        rows, cols = self.partition(height, width).padded_size
        shared, spare = self.shared_macs(rows, cols), rows * cols - height * width
        return Macs(
            projection=shared.projection - spare * self.dim**2,
            position=shared.position,
            core=self.core_macs(rows * cols, self.down.reach(rows) * self.across.reach(cols)),
        )

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Window (keys of a query, as clamped to the map), and the zeros that are read."""
        frame = self.partition(height, width)
        window = "x".join(str(s.reach(n)) for s, n in zip((self.down, self.across), frame.padded_size, strict=True))
        return {"window": window, "pad_ratio": frame.pad_ratio}
