"""Bi-level routing attention (BRA).

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810,
section 3.2 and algorithm 1. Each region attends to the tokens of the k regions whose mean key best matches its mean
query; all heads share one routing, and no gradient flows through the choice.
Paper -> here:  S -> regions (per side),  k -> topk,  I^r -> routes,  A^r -> affinity.
Departures: on a map that does not divide, padded tokens are masked. `padding="official"` is what the published code
does, which has two variants: `legacy` pads the input with zeros to S regions per side, and reads the padding (region
means and LePE too); `nchw` has regions of floor(H / S) tokens, so more than S where that leaves a rest, and pads
q, k, v with zeros, which take part in the softmax alone.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from attention_zoo.base import Example, Macs
from attention_zoo.config import AttentionConfig
from attention_zoo.dispatch import choose, kernel
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.bra_options import RoutedAttention, RoutingOptions
from attention_zoo.partitioned import Places
from attention_zoo.regions import Partition
from attention_zoo.registry import register
from attention_zoo.routing import attend_to_routes, map_means, regions_of


@dataclass(frozen=True, kw_only=True)
class BRAConfig(RoutingOptions):
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
    lepe: bool = field(default=True, metadata={"help": "depth-wise convolution of v added to the output (LePE)"})
    variant: Literal["legacy", "nchw"] = field(
        default="legacy", metadata={"help": "code that padding=official follows"}
    )
    rounding: Literal["ceil", "floor"] | None = field(
        default=None,
        metadata={"help": "tokens per side of a region, map / regions, rounded; default: ceil, or published"},
    )

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a number below 1, both spellings of a partition, or options that have no such impl or padding.
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
        if self.region_size == "auto" and self.padding == "official":
            raise ValueError("region_size=auto needs padding=mask or error: the published code has regions, not sizes")
        if not self.is_plain and (self.impl in ("dense", "flex") or self.pad_rule == "projected"):
            raise ValueError(
                f"soft routing and pooled keys have no impl=dense or flex and no padding after the projection, "
                f"got impl={self.impl}, padding={self.padding}, variant={self.variant}"
            )

    @property
    def pad_rule(self) -> str:
        """`mask`, `error`, or zeros that are read: of the `input`, or `projected`."""
        published = "projected" if self.variant == "nchw" else "input"
        return (self.pad_moment or published) if self.padding == "official" else self.padding

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's number of regions unless a partition is set."""
        return self if self.regions or self.region_size else self.replace(regions=layout.regions)


@register("bra")
class BRA(RoutedAttention):
    """Route regions, gather their keys and values, attend token to token, add LePE(v), project (algorithm 1)."""

    Config: ClassVar[type[AttentionConfig]] = BRAConfig
    impls: ClassVar[tuple[str, ...]] = ("plain", "dense", "flex")

    paper: ClassVar[str] = "2303.08810"
    reads: ClassVar[str] = "the tokens of the top k of R regions, chosen by content (bi-level routing)"
    cost: ClassVar[str] = "4NC² + R²C + 2k(N/R)NC"
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="top 4 of 16 regions", config={"regions": 4, "topk": 4}),)

    def __init__(self, dim: int, num_heads: int, config: BRAConfig) -> None:
        super().__init__(dim, num_heads, config, qk_dim=config.qk_dim)
        # the whole width of q and k, not a head's: eq. 5 as the official code computes it
        self.scale = config.qk_scale or self.qk_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """Algorithm 1: (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        x, cut = self.enter(x)
        q, k, v = self.qkv(x).split((self.qk_dim, self.qk_dim, self.dim), dim=-1)  # eq. 1: (B, H, W, C) each
        impl, reads_padding = self.impl_on(height, width), self.pad_rule == "projected"
        if impl == "dense" and self.topk(cut) == cut.count:
            y = kernel(impl)(q, k, v, None, cut, self.num_heads, self.scale, reads_padding)  # no region is left out
            return self.leave(self.proj(self.add_lepe(y, v)), height, width)
        # region-to-region routing (eq. 2 and 3): by default chosen, not learned
        routing_q, routing_k = (q, k) if self.config.diff_routing else (q.detach(), k.detach())
        affinity = self.affinity(map_means(routing_q, cut), map_means(routing_k, cut), cut.valid(x.device))
        routes = affinity.topk(self.topk(cut))  # (B, 1 or heads, R, K)
        # token-to-token attention in the routed regions (eq. 4 and 5)
        if impl == "plain":
            y = attend_to_routes(q, k, v, routes, cut, self.config, self.num_heads, self.scale, reads_padding)
        else:
            y = kernel(impl)(q, k, v, routes.indices, cut, self.num_heads, self.scale, reads_padding)
        return self.leave(self.proj(self.add_lepe(y, v)), height, width)

    def usable_impls(self) -> tuple[str, ...]:
        """Soft routes and pooled keys have the plain way alone."""
        return self.impls if self.config.is_plain else ("plain",)

    def impl_on(self, height: int, width: int) -> str:
        """`dense` on maps where that is faster, unless a way is set.

        Dense wastes products, but a gather copies keys for each region. The bounds are from timings on two CPU cores.
        """
        tokens, cut = height * width, self.partition(height, width)
        is_small = tokens <= 64 or (tokens <= 1024 and self.topk(cut) >= 0.3 * cut.count)
        return choose(self.impl, "dense" if is_small and self.config.is_plain else "plain")

    def cut(self, height: int, width: int) -> Partition:
        """Regions on this map; those that would hold no token of it are left out, but by the legacy code.

        Raises:
            ValueError: topk is above the number of regions and may not be clipped, or regions have no token or key.
        """
        cut = regions_of(self.config, height, width, self.qk_dim, self.dim)
        if self.config.topk > cut.count and not self.config.clip_topk:
            raise ValueError(
                f"topk={self.config.topk} is above the {cut.count} regions ({cut.down} x {cut.across} of {cut.rows}x"
                f"{cut.cols} tokens) of a {height}x{width} map; lower topk, raise regions, or allow clip_topk"
            )
        if self.config.kv_ratio is not None and self.config.kv_ratio > min(cut.rows, cut.cols):
            raise ValueError(
                f"kv_ratio={self.config.kv_ratio} leaves no key to a region of {cut.rows}x{cut.cols} tokens of a "
                f"{height}x{width} map; lower kv_ratio or regions"
            )
        return cut

    def topk(self, cut: Partition) -> int:
        """Regions that each region attends to on this partition."""
        return min(self.config.topk, cut.count)

    def pairs(self, x: Tensor, cut: Partition, queries: Places, keys: Places) -> Tensor:
        """Allow all tokens of the routed regions, also where keys are pooled: (B, 1 or heads, Nq, Nk); depends on x."""
        _, routes = self.slow_routes(*self.enter(x))
        reads = torch.zeros(*routes.shape[:3], cut.count, dtype=torch.bool, device=x.device).scatter(3, routes, True)
        return reads[:, :, cut.locate(*queries)][..., cut.locate(*keys)]

    @classmethod
    def core_exponent(cls, config: AttentionConfig) -> Fraction:
        """4/3 with regions of the cheapest size (section 3.3), 1 with fixed numbers of regions and keys, else 2."""
        assert isinstance(config, BRAConfig)
        if config.region_size == "auto":
            return Fraction(4, 3)
        return Fraction(1 if config.kv_per_side and config.region_size is None else 2)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + R^2 C + 2 N k (N / R) C with R = S^2 regions, and LePE (section 3.3 of the paper).

        The paper leaves out the output projection, and counts the routing alone in FLOPs, as 2 (S^2)^2 C. Pooled keys
        are fewer, embedded means cost 2 R C^2.
        """
        cut = self.partition(height, width)
        if self.pad_rule == "input" and cut.is_padded:
            return self.macs(*cut.padded_size)
        embedding = 2 * cut.count * self.qk_dim**2 if self.config.param_routing else 0
        return self.shared_macs(height, width) + Macs(
            routing=cut.count**2 * self.qk_dim + embedding,
            core=self.core_macs(cut.count * cut.tokens, self.topk(cut) * self.config.keys_of_region(cut)),
        )

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Regions, their size (tokens), the effective top-k, and the padding."""
        cut = self.partition(height, width)
        return {
            "regions": f"{cut.down}x{cut.across}",
            "region_size": f"{cut.rows}x{cut.cols}",
            "topk_effective": self.topk(cut),
            "pad_ratio": cut.pad_ratio,
        }
