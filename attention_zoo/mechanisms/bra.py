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

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from attention_zoo.base import Macs, attend, bias_apart, with_lepe
from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.flex import routed_flex_attention
from attention_zoo.kernels.routing import (
    attend_rows,
    map_means,
    pool_regions,
    region_affinity,
    region_means,
    routed_attention,
    token_regions,
)
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import PartitionAttention, PartitionConfig, Places
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class BRAConfig(PartitionConfig):
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
        default="legacy", metadata={"help": "published code that padding=official follows"}
    )
    rounding: Literal["ceil", "floor"] | None = field(
        default=None,
        metadata={"help": "tokens per side of a region, map / regions, rounded; default: ceil, or published"},
    )
    head_routing: bool = field(default=False, metadata={"help": "each head chooses its own regions"})
    soft_routing: bool = field(default=False, metadata={"help": "weigh routed keys and values by softmax of affinity"})
    diff_routing: bool = field(default=False, metadata={"help": "let gradients through soft routing to q and k"})
    param_routing: bool = field(default=False, metadata={"help": "embed mean q and k by a linear layer to route"})
    kv_pool: Literal["avg", "max"] | None = field(
        default=None, metadata={"help": "pool the keys and values of each region; default: not"}
    )
    kv_per_side: int | None = field(default=None, metadata={"help": "pooled tokens per side of a region (adaptive)"})
    kv_ratio: int | None = field(default=None, metadata={"help": "tokens per side that are pooled into one"})

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a number below 1, both spellings of a partition or of a pooling, options that exclude others.
        """
        super().__post_init__()
        if self.topk < 1:
            raise ValueError(f"topk must be at least 1, got {self.topk}; for dense attention use vanilla")
        if self.regions is not None and self.region_size is not None:
            raise ValueError(
                f"regions (per side) and region_size (tokens) are two spellings of one thing: "
                f"give one of regions={self.regions} and region_size={self.region_size}"
            )
        for name in ("regions", "region_size", "kv_per_side", "kv_ratio"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._check_options()

    def _check_options(self) -> None:
        if (self.kv_pool is None) != (self.kv_per_side is None and self.kv_ratio is None) or (
            self.kv_per_side is not None and self.kv_ratio is not None
        ):
            raise ValueError(
                f"kv_pool=avg|max takes one of kv_per_side and kv_ratio, got kv_pool={self.kv_pool}, "
                f"kv_per_side={self.kv_per_side}, kv_ratio={self.kv_ratio}"
            )
        if self.diff_routing and not self.soft_routing:
            raise ValueError("diff_routing=True needs soft_routing=True: a hard choice of regions has no gradient")
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

    @property
    def rounds_down(self) -> bool:
        """Whether the size of a region is rounded down."""
        published = "floor" if self.padding == "official" and self.variant == "nchw" else "ceil"
        return (self.rounding or published) == "floor"

    @property
    def is_plain(self) -> bool:
        """Whether it is one masked softmax: hard routes to keys that are tokens."""
        return not self.soft_routing and self.kv_pool is None

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's number of regions unless a partition is set."""
        if self.regions is None and self.region_size is None:
            return self.replace(regions=layout.regions)
        return self


@register("bra")
class BRA(PartitionAttention):
    """Route regions, gather their keys and values, attend token to token, add LePE(v), project (algorithm 1)."""

    Config: ClassVar[type[AttentionConfig]] = BRAConfig
    impls: ClassVar[tuple[str, ...]] = ("gather", "dense", "flex")

    def __init__(self, dim: int, num_heads: int, config: BRAConfig) -> None:
        """Routing has no weights, unless it is told to embed."""
        super().__init__(dim, num_heads, config, qk_dim=config.qk_dim)
        self.config = config
        # the whole width of q and k, not a head's: eq. 5 as the official code computes it
        self.scale = config.qk_scale or self.qk_dim**-0.5
        self.router = nn.Linear(self.qk_dim, self.qk_dim) if config.param_routing else None

    def cut(self, height: int, width: int) -> Partition:
        """Regions on this map; those that would hold no token of it are left out, but by the legacy code.

        Raises:
            ValueError: topk is above the number of regions and may not be clipped, or regions have no token or key.
        """
        cut = self._cut(height, width)
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

    def _cut(self, height: int, width: int) -> Partition:
        size, per_side, centred = self.config.region_size, self.config.regions or 7, self.config.is_centred
        if size == "auto":
            return _cheapest_partition(height, width, self.config.topk, self.qk_dim, self.dim, centred)
        if size is not None:
            return Partition.of_size(height, width, min(size, height), min(size, width), centred=centred)
        if self.config.rounds_down:
            if min(height, width) < per_side:
                raise ValueError(
                    f"regions={per_side} per side leave no token to a region of a {height}x{width} map when their size "
                    f"is rounded down; lower regions, or use rounding=ceil"
                )
            return Partition.of_size(height, width, height // per_side, width // per_side, centred=centred)
        return Partition.of_count(height, width, per_side, centred=centred, keep_empty=self.pad_rule == "input")

    def topk(self, cut: Partition) -> int:
        """Regions that each region attends to on this partition."""
        return min(self.config.topk, cut.count)

    def impl_on(self, height: int, width: int) -> str:
        """How forward computes on this map: `gather` the routed regions, or `dense` under a mask, unless one is set.

        Dense wastes products, but a gather copies every key once per region that reads it, and its small problems
        keep a processor busy with overhead. The bounds are from timings on two CPU cores.
        """
        return self._cheaper(self.partition(height, width)) if self.impl == "auto" else self.impl

    def _cheaper(self, cut: Partition) -> str:
        tokens = cut.height * cut.width
        is_small = tokens <= 64 or (tokens <= 1024 and self.topk(cut) >= 0.3 * cut.count)
        return "dense" if is_small and self.config.is_plain else "gather"

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens along the routes of their regions: (B, H, W, C) -> same."""
        cut = self.partition(*x.shape[1:3])
        if self.pad_rule == "input" and cut.is_padded:
            return cut.crop(self(cut.pad(x)))
        impl = self._cheaper(cut) if self.impl == "auto" else self.impl
        # v apart from the others, so that LePE reads its rows without a copy, forward and backward
        if impl == "dense":
            qk, v = self.parts(x, 2 * self.qk_dim, self.dim)
            return self.finish(self._dense(qk, v, cut), v)
        q, k, v = self.parts(x, self.qk_dim, self.qk_dim, self.dim)
        if impl == "gather" and self.config.is_plain and not self.config.head_routing:
            return self._finish_windows(self._gather_rows(q, k, v, cut), v, cut)
        return self.finish(self._attend_regions(q, k, v, cut, impl), v)

    def _finish_windows(self, y: Tensor, v: Tensor, cut: Partition) -> Tensor:
        """Add LePE and project, regions (B, R, T, C) in, a map out: as `finish`, with one pass over the map."""
        if self.lepe is None or cut.is_padded:
            return self.finish(cut.join(y), v)
        lepe = cut.tiles(self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        windows = y.view(y.shape[0], cut.down, cut.across, cut.rows, cut.cols, self.dim).transpose(2, 3)
        return bias_apart(self.proj, with_lepe(lepe, windows).reshape(v.shape))

    def affinity(self, mean_q: Tensor, mean_k: Tensor, valid: Tensor | None) -> Tensor:
        """How well regions suit each other, (B, 1 or heads, R, R), from mean q and k, (B, R, Cqk)."""
        if self.router is not None:
            mean_q, mean_k = self.router(mean_q), self.router(mean_k)
        if self.config.head_routing:
            return region_affinity(to_heads(mean_q, self.num_heads), to_heads(mean_k, self.num_heads), valid)
        return region_affinity(mean_q, mean_k, valid).unsqueeze(1)

    def _routes(self, mean_q: Tensor, mean_k: Tensor, cut: Partition, valid: Tensor | None) -> Tensor:
        """Regions that each region reads, (B, 1 or heads, R, K), from mean q and k: chosen, not learned."""
        return self.affinity(mean_q, mean_k, valid).topk(self.topk(cut), sorted=False).indices

    def _gather_rows(self, q: Tensor, k: Tensor, v: Tensor, cut: Partition) -> Tensor:
        """Each region attends to its own copy of the rows of the regions that it reads: -> (B, R, T, C)."""
        valid = cut.valid(q.device)
        routes = self._routes(map_means(q.detach(), cut), map_means(k.detach(), cut), cut, valid)
        readable = None if self.pad_rule == "projected" else valid
        regions = blank(cut.split(q), valid)
        return attend_rows(
            regions, cut.pad(k), cut.pad(v), routes[:, 0], cut, self.num_heads, self.scale, valid=readable
        )

    def _attend_regions(self, q: Tensor, k: Tensor, v: Tensor, cut: Partition, impl: str) -> Tensor:
        """The same with routes of each head or by flex, with weights of the routes or pooled keys: -> (B, H, W, C)."""
        valid = cut.valid(q.device)
        q, k, v = (blank(cut.split(part), valid) for part in (q, k, v))
        mean_q, mean_k = (region_means(part if self.config.diff_routing else part.detach(), valid) for part in (q, k))
        chosen = self.affinity(mean_q, mean_k, valid).topk(self.topk(cut), sorted=False)
        # the logits of the softmax over routes carry the scale of the attention, as published
        weights = (chosen.values * self.scale).softmax(-1) if self.config.soft_routing else None
        readable = None if self.pad_rule == "projected" else valid
        if self.config.kv_pool is not None:
            pooled, readable = self._pool(torch.cat((k, v), -1), cut, readable)
            k, v = pooled.split((self.qk_dim, self.dim), dim=-1)
        if impl == "flex":
            y = routed_flex_attention(q, k, v, chosen.indices, self.num_heads, self.scale, valid=readable)
        else:
            y = routed_attention(q, k, v, chosen.indices, self.num_heads, self.scale, valid=readable, weights=weights)
        return cut.join(y)

    def _pool(self, regions: Tensor, cut: Partition, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        ratio, maximum = config.kv_ratio, config.kv_pool == "max"
        return pool_regions(regions, cut, valid, maximum=maximum, per_side=config.kv_per_side, ratio=ratio)

    def _dense(self, qk: Tensor, v: Tensor, cut: Partition) -> Tensor:
        """All tokens attend to all, under the routes as a mask: (B, H, W, 2 Cqk), (B, H, W, C) -> (B, H, W, C)."""
        read_padding = self.pad_rule == "projected" and cut.is_padded
        bias = None
        if self.topk(cut) < cut.count:
            mean_q, mean_k = map_means(qk.detach(), cut).chunk(2, dim=-1)
            routes = self._routes(mean_q, mean_k, cut, cut.valid(qk.device))
            closed = qk.new_full((*routes.shape[:2], cut.count, cut.count), float("-inf")).scatter_(3, routes, 0.0)
            region = token_regions(cut.filled() if read_padding else cut, qk.device)
            bias = closed.index_select(3, region).index_select(2, region)
        if read_padding:
            qk, v = cut.pad(qk), cut.pad(v)
        batch, height, width, channels = v.shape
        tokens, heads = height * width, self.num_heads
        apart = qk.view(batch, tokens, 2, heads, self.qk_dim // heads)
        queries, keys = apart.permute(2, 0, 3, 1, 4).unbind(0)
        values = v.view(batch, tokens, heads, channels // heads).transpose(1, 2)
        y = attend(queries, keys, values, self.scale, bias)
        y = y.transpose(1, 2).reshape(v.shape)
        return cut.crop(y) if read_padding else y

    def pairs(self, x: Tensor, cut: Partition, queries: Places, keys: Places) -> Tensor:
        """Allow the keys of the routed regions: (B, 1 or heads, Nq, Nk); depends on what x holds."""
        region = cut.locate(*coordinates(cut.height, cut.width, x.device))
        member = (region == torch.arange(cut.count, device=x.device)[:, None]).to(x.dtype)  # (R, N)
        q, k, _ = self.project(x)
        own = member.sum(1, keepdim=True)
        means = [member @ from_heads(part) / own.clamp(min=1) for part in (q, k)]
        if self.router is not None:
            means = [self.router(mean) for mean in means]
        groups = self.num_heads if self.config.head_routing else 1
        mean_q, mean_k = (mean.unflatten(-1, (groups, -1)).movedim(2, 1) for mean in means)
        affinity = (mean_q @ mean_k.mT).masked_fill(own[:, 0] == 0, float("-inf"))
        chosen = affinity.topk(self.topk(cut)).indices
        reads = torch.zeros_like(affinity, dtype=torch.bool).scatter(3, chosen, True)
        return reads[:, :, cut.locate(*queries)][..., cut.locate(*keys)]

    def reference(self, x: Tensor) -> Tensor:
        """Dense softmax under `connectivity`; with soft routing or pooled keys, plain loops over regions and heads."""
        if self.config.is_plain:
            return super().reference(x)
        cut = self.partition(*x.shape[1:3])
        if self.pad_rule == "input" and cut.is_padded:
            return cut.crop(self.reference(cut.pad(x)))
        q, k, v = self.project(x)
        images = [self._loop(*parts, cut) for parts in zip(q, k, v, strict=True)]
        y, term = torch.stack(images), self.value_term(x, v)
        return self.output(y if term is None else y + term).reshape(x.shape)

    def _loop(self, q: Tensor, k: Tensor, v: Tensor, cut: Partition) -> Tensor:
        """Algorithm 1 on one image, region by region and head by head: three of (heads, N, D) -> as v."""
        row, col = coordinates(cut.height, cut.width, q.device)
        region = cut.locate(row, col)
        members = [(region == index).nonzero().flatten() for index in range(cut.count)]
        means = [torch.stack([part[:, tokens].mean(1).flatten() for tokens in members]) for part in (q, k)]  # (R, Cqk)
        if not self.config.diff_routing:
            means = [mean.detach() for mean in means]
        if self.router is not None:
            means = [mean @ self.router.weight.T + self.router.bias for mean in means]
        pools = [self._cells(tokens, row, col, cut) for tokens in members]
        groups = self.num_heads if self.config.head_routing else 1
        y = torch.zeros_like(v)
        for head in range(self.num_heads):
            mean_q, mean_k = (mean.chunk(groups, 1)[head % groups] for mean in means)
            for region_of_queries, tokens in enumerate(members):
                affinity = mean_k @ mean_q[region_of_queries]
                chosen = affinity.topk(self.topk(cut))
                shares = (chosen.values * self.scale).softmax(0) if self.config.soft_routing else chosen.values * 0 + 1
                keys, values = [], []
                for place, share in zip(chosen.indices.tolist(), shares, strict=True):
                    for cell in pools[place]:
                        keys.append(share * self._pooled(k[head, cell]))
                        values.append(share * self._pooled(v[head, cell]))
                logits = q[head, tokens] @ torch.stack(keys).T * self.scale
                y[head, tokens] = logits.softmax(-1) @ torch.stack(values)
        return y

    def _pooled(self, cell: Tensor) -> Tensor:
        return cell.amax(0) if self.config.kv_pool == "max" else cell.mean(0)

    def _cells(self, tokens: Tensor, row: Tensor, col: Tensor, cut: Partition) -> list[Tensor]:
        """Tokens of a region that are pooled into one key each, cell by cell; those of padding are left out."""
        if self.config.kv_pool is None:
            return list(tokens[:, None])

        def spans(length: int) -> list[range]:
            if self.config.kv_per_side is not None:
                side = self.config.kv_per_side
                return [range(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
            ratio = self.config.kv_ratio or 1
            return [range(i * ratio, (i + 1) * ratio) for i in range(length // ratio)]

        at = [((row[t] + cut.top) % cut.rows, (col[t] + cut.left) % cut.cols, t) for t in tokens]
        cells = [
            [t for y, x, t in at if int(y) in down and int(x) in across]
            for down in spans(cut.rows)
            for across in spans(cut.cols)
        ]
        return [torch.stack(cell) for cell in cells if cell]

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + R^2 C + 2 N k (N / R) C with R = S^2 regions, and LePE (section 3.3 of the paper).

        The paper writes 3 N C^2, leaving out the output projection, and counts the routing as 2 (S^2)^2 C, which is
        in FLOPs; the others it counts in MACs. Pooled keys are fewer, embedded means cost 2 R C^2.
        """
        cut = self.partition(height, width)
        if self.pad_rule == "input" and cut.is_padded:
            return self.macs(*cut.padded_size)
        config, keys = self.config, cut.tokens
        if config.kv_per_side is not None:
            keys = config.kv_per_side**2
        elif config.kv_ratio is not None:
            keys = (cut.rows // config.kv_ratio) * (cut.cols // config.kv_ratio)
        embedding = 2 * cut.count * self.qk_dim**2 if config.param_routing else 0
        return self.shared_macs(height, width) + Macs(
            routing=cut.count**2 * self.qk_dim + embedding,
            core=self.core_macs(cut.count * cut.tokens, self.topk(cut) * keys),
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


@functools.lru_cache
def _cheapest_partition(height: int, width: int, topk: int, qk_dim: int, dim: int, centred: bool) -> Partition:
    """Search every S, since padding makes the cost jump; ties go to the smaller S.

    Without padding the closed form has its minimum at S = (k N^2)^(1/6); the paper, which counts the routing twice,
    gives (k / 2 N^2)^(1/6) (eq. 9).
    """

    def cost(cut: Partition) -> int:
        return cut.count**2 * qk_dim + cut.count * cut.tokens * min(topk, cut.count) * cut.tokens * (qk_dim + dim)

    sides = range(1, max(height, width) + 1)
    cuts = [Partition.of_count(height, width, per_side, centred=centred) for per_side in sides]
    return min([cut for cut in cuts if cut.count >= topk] or cuts, key=cost)
