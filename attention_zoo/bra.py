"""Bi-level routing attention (BRA).

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810,
section 3.2 and algorithm 1. Each region attends to the tokens of the k regions whose mean key best matches its mean
query; all heads share one routing, and no gradient flows through the choice.
Paper -> here:  S -> regions (per side),  k -> topk,  I^r -> routes,  A^r -> affinity.
Departures: on a map that does not divide, padded tokens are masked (the official code lets them into the softmax,
the region means and LePE).
"""

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from attention_zoo.base import Attention, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class BRAConfig(AttentionConfig):
    """Seven regions per side and LePE, as published; inside a pyramid, the layout's number of regions."""

    topk: int = field(default=4, metadata={"help": "regions that each region attends to"})
    regions: int | None = field(
        default=None, metadata={"help": "regions per side, S of the paper; default: the layout's, else 7"}
    )
    region_size: int | Literal["auto"] | None = field(
        default=None, metadata={"help": "tokens per side of a region, or auto: the cheapest S on each map"}
    )
    clip_topk: bool = field(default=False, metadata={"help": "on a small map use all regions if topk is larger"})
    qk_dim: int | None = field(default=None, metadata={"help": "channels of q and k, all heads; default: dim"})
    impl: Literal["auto", "gather", "dense"] = field(
        default="auto", metadata={"help": "how it is computed, never what: auto chooses on each map"}
    )
    lepe: bool = field(default=True, metadata={"help": "depth-wise convolution of v added to the output (LePE)"})

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: topk, regions or region_size below 1, or both spellings of the partition.
        """
        super().__post_init__()
        if self.topk < 1:
            raise ValueError(f"topk must be at least 1, got {self.topk}; for dense attention use vanilla")
        if self.regions is not None and self.region_size is not None:
            raise ValueError(
                f"regions (per side) and region_size (tokens) are two spellings of one thing: "
                f"give one of regions={self.regions} and region_size={self.region_size}"
            )
        for name in ("regions", "region_size"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's number of regions unless a partition is set."""
        if self.regions is None and self.region_size is None:
            return self.replace(regions=layout.regions)
        return self


@register("bra")
class BRA(Attention):
    """Route regions, gather their keys and values, attend token to token, add LePE(v), project (algorithm 1)."""

    Config: ClassVar[type[AttentionConfig]] = BRAConfig
    impl: ClassVar[str] = "gather"

    def __init__(self, dim: int, num_heads: int, config: BRAConfig) -> None:
        """Only the shared projections: routing has no weights."""
        super().__init__(dim, num_heads, config, qk_dim=config.qk_dim)
        self.config = config
        # the whole width of q and k, not a head's: eq. 5 as the official code computes it
        self.scale = config.qk_scale or self.qk_dim**-0.5

    def partition(self, height: int, width: int) -> Partition:
        """Regions on this map; those that would hold no token of it are left out.

        Raises:
            ValueError: topk is above the number of regions and may not be clipped.
        """
        size = self.config.region_size
        if size == "auto":
            cut = self._cheapest(height, width)
        elif size is not None:
            cut = Partition.of_size(height, width, min(size, height), min(size, width))
        else:
            cut = Partition.of_count(height, width, self.config.regions or 7)
        if self.config.topk > cut.count and not self.config.clip_topk:
            raise ValueError(
                f"topk={self.config.topk} is above the {cut.count} regions ({cut.down} x {cut.across} of {cut.rows}x"
                f"{cut.cols} tokens) of a {height}x{width} map; lower topk, raise regions, or allow clip_topk"
            )
        return cut

    def _cheapest(self, height: int, width: int) -> Partition:
        """Find the partition with the fewest MACs among all S with room for topk; ties go to the smaller S."""
        return _cheapest_partition(height, width, self.config.topk, self.qk_dim, self.dim)

    def topk(self, cut: Partition) -> int:
        """Regions that each region attends to on this partition."""
        return min(self.config.topk, cut.count)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens along the routes: (B, H, W, C) -> same."""
        cut = self.partition(*x.shape[1:3])
        qkv = self.qkv(x)
        mix = self._gather if self.impl_on(cut) == "gather" else self._dense
        return self.finish(mix(qkv, cut), qkv[..., 2 * self.qk_dim :])

    def impl_on(self, cut: Partition) -> str:
        """How forward computes on this partition: `gather` the routed regions, or `dense` under a mask.

        Dense wastes products, but a gather copies every key once per region that reads it, and its small problems
        keep a processor busy with overhead. The bounds are from timings on two CPU cores.
        """
        if self.config.impl != "auto":
            return self.config.impl
        tokens = cut.height * cut.width
        return "dense" if tokens <= 64 or (tokens <= 1024 and self.topk(cut) >= 0.3 * cut.count) else "gather"

    def _gather(self, qkv: Tensor, cut: Partition) -> Tensor:
        """Mixed values of a projected map: each region attends to its own copy of the regions that it reads."""
        valid = cut.valid(qkv.device)
        q, k, v = blank(cut.split(qkv), valid).split((self.qk_dim, self.qk_dim, self.dim), dim=-1)  # (B, R, T, C)
        routes = route(q, k, valid, self.topk(cut))
        return cut.join(routed_attention(q, k, v, routes, valid, self.num_heads, self.scale))

    def _dense(self, qkv: Tensor, cut: Partition) -> Tensor:
        """Mixed values of a projected map: all tokens attend to all, under the routes as a mask."""
        widths = (self.qk_dim, self.qk_dim, self.dim)
        bias = None
        if self.topk(cut) < cut.count:
            valid = cut.valid(qkv.device)
            q, k = blank(cut.split(qkv[..., : 2 * self.qk_dim].detach()), valid).chunk(2, dim=-1)
            routes = route(q, k, valid, self.topk(cut))
            closed = qkv.new_full((len(qkv), cut.count, cut.count), float("-inf")).scatter(2, routes, 0.0)
            region = cut.locate(*coordinates(cut.height, cut.width, qkv.device))
            bias = closed.index_select(2, region).index_select(1, region)[:, None]
        q, k, v = (to_heads(part, self.num_heads) for part in qkv.flatten(1, 2).split(widths, dim=-1))
        return from_heads(attend(q, k, v, self.scale, bias)).reshape(*qkv.shape[:3], self.dim)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow the keys of the routed regions: (B, 1, N or queries, N); depends on what x holds."""
        batch, height, width, _ = x.shape
        cut = self.partition(height, width)
        row, col = coordinates(height, width, x.device)
        region = row // cut.rows * cut.across + col // cut.cols
        member = (region == torch.arange(cut.count, device=x.device)[:, None]).to(x.dtype)  # (R, N)
        q, k, _ = self.project(x)
        mean_q, mean_k = (member @ from_heads(part) / member.sum(1, keepdim=True) for part in (q, k))
        chosen = (mean_q @ mean_k.mT).topk(self.topk(cut)).indices  # (B, R, K)
        reads = torch.zeros(batch, cut.count, cut.count, dtype=torch.bool, device=x.device)
        reads = reads.scatter(2, chosen, True)
        asked = region if queries is None else region[queries]
        return reads[:, asked][:, :, region][:, None]

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + R^2 C + 2 N k (N / R) C with R = S^2 regions, and LePE (section 3.3 of the paper).

        The paper writes 3 N C^2, leaving out the output projection, and counts the routing as 2 (S^2)^2 C, which is
        in FLOPs; the others it counts in MACs.
        """
        cut = self.partition(height, width)
        return self.shared_macs(height, width) + Macs(
            routing=cut.count**2 * self.qk_dim,
            core=self.core_macs(cut.count * cut.tokens, self.topk(cut) * cut.tokens),
        )

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Implementation, regions, their size (tokens), the effective top-k, and the padding."""
        cut = self.partition(height, width)
        return {
            "impl": self.impl_on(cut),
            "regions": f"{cut.down}x{cut.across}",
            "region_size": f"{cut.rows}x{cut.cols}",
            "topk_effective": self.topk(cut),
            "pad_ratio": cut.count * cut.tokens / (height * width) - 1,
        }


@functools.lru_cache
def _cheapest_partition(height: int, width: int, topk: int, qk_dim: int, dim: int) -> Partition:
    """Search every S, since padding makes the cost jump.

    Without padding the closed form has its minimum at S = (k N^2)^(1/6); the paper, which counts the routing twice,
    gives (k / 2 N^2)^(1/6) (eq. 9).
    """

    def cost(cut: Partition) -> int:
        return cut.count**2 * qk_dim + cut.count * cut.tokens * min(topk, cut.count) * cut.tokens * (qk_dim + dim)

    cuts = [Partition.of_count(height, width, per_side) for per_side in range(1, max(height, width) + 1)]
    return min([cut for cut in cuts if cut.count >= topk] or cuts, key=cost)


def route(q: Tensor, k: Tensor, valid: Tensor | None, topk: int) -> Tensor:
    """Choose the regions that each region reads (eq. 3 and 4): q, k (B, R, T, C), blank -> (B, R, K) indices.

    Affinity is the product of the means over a region's own tokens. A region without one is never chosen before
    one with: its affinity is -inf.
    """
    # routes are chosen, not learned: gradients reach q and k through the attention itself
    q, k = q.detach(), k.detach()
    if valid is None:
        affinity = q.mean(2) @ k.mean(2).mT
    else:
        own = valid.sum(1)
        count = own.clamp(min=1).to(q.dtype)[:, None]
        affinity = (q.sum(2) / count) @ (k.sum(2) / count).mT
        affinity = affinity.masked_fill(own == 0, float("-inf"))
    return affinity.topk(topk, sorted=False).indices


def routed_attention(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, valid: Tensor | None, num_heads: int, scale: float
) -> Tensor:
    """Attend token to token in the routed regions (eq. 5 and 6): q, k, v (B, R, T, C), routes (B, R, K) -> as v."""
    batch, count, tokens, _ = q.shape
    offsets = torch.arange(batch, device=q.device)[:, None, None] * count
    index = (routes + offsets).flatten()  # regions of all images in one row: gather and its gradient stay compact

    def gather(part: Tensor) -> Tensor:
        picked = part.flatten(2).flatten(0, 1).index_select(0, index)
        return to_heads(picked.reshape(batch * count, -1, part.shape[-1]), num_heads)  # (B*R, heads, K*T, D)

    bias = None
    if valid is not None:
        keys = valid[routes].flatten(0, 1).flatten(1)[:, None, None, :]
        bias = torch.zeros((), dtype=q.dtype, device=q.device).where(keys, torch.finfo(q.dtype).min)
    y = attend(to_heads(q.flatten(0, 1), num_heads), gather(k), gather(v), scale, bias)
    return from_heads(y).reshape(batch, count, tokens, -1)
