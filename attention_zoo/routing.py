"""Softmax along routes: region-to-region routing, and attention to the tokens of the routed regions.

Zhu et al., "BiFormer", CVPR 2023, arXiv:2303.08810, section 3.2. Tokens come cut into R regions of T tokens,
(B, R, T, C); routes are the K regions that each region reads, one list for all heads or one for each:
(B, 1 or heads, R, K).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import attend
from attention_zoo.regions import Partition, blank, from_heads, to_heads


def region_means(regions: Tensor, valid: Tensor | None) -> Tensor:
    """Average each region over the map's own tokens (eq. 3): (B, R, T, C), blank, under `valid` (R, T) -> (B, R, C)."""
    if valid is None:
        return regions.mean(2)
    return regions.sum(2) / valid.sum(1).clamp(min=1).to(regions.dtype)[:, None]


def map_means(x: Tensor, cut: Partition) -> Tensor:
    """Average each region of a map over the map's own tokens (eq. 3): (B, H, W, C) -> (B, R, C)."""
    valid = cut.valid(x.device)
    if valid is not None:
        return region_means(blank(cut.split(x), valid), valid)
    return F.avg_pool2d(x.permute(0, 3, 1, 2), (cut.rows, cut.cols)).flatten(2).mT


def region_affinity(q: Tensor, k: Tensor, valid: Tensor | None) -> Tensor:
    """Say how well regions suit each other (eq. 3): mean q and k, (B, 1 or heads, R, D) each -> (B, 1 or heads, R, R).

    A region without a token of its own suits none: its column is -inf. `valid` says which tokens are, (R, T).
    """
    affinity = q @ k.mT
    return affinity if valid is None else affinity.masked_fill(~valid.any(1), float("-inf"))


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float,
    *,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Attend token to token in the routed regions (eq. 5 and 6): -> (B, Rq, Tq, Cv).

    Args:
        q: queries in their regions, (B, Rq, Tq, C).
        k: keys in theirs, (B, Rk, Tk, C).
        v: values in the regions of the keys, (B, Rk, Tk, Cv).
        routes: regions of keys that each region of queries reads, (B, 1 or heads, Rq, K).
        num_heads: heads in C and Cv.
        scale: factor on the logits.
        valid: keys that may be read, (Rk, Tk), or None for all.
        weights: factors on the keys and values of each route, like `routes`; None for 1.
    """
    batch, count, _, _ = q.shape
    kv_count, groups, topk = k.shape[1], routes.shape[1], routes.shape[3]
    # regions of all images, and of all heads that route alone, in one row
    offsets = torch.arange(batch * groups, device=q.device).reshape(batch, groups, 1, 1) * kv_count
    index = (routes + offsets).flatten()

    def gather(part: Tensor) -> Tensor:
        """(B, Rk, Tk, C) -> tokens of the routed regions, (B * Rq, heads, K * Tk, D)."""
        rows = part.unflatten(-1, (groups, -1)).movedim(3, 1).flatten(0, 2)  # (B * groups * Rk, Tk, C / groups)
        picked = rows.index_select(0, index).unflatten(0, (batch, groups, count, topk))
        if weights is not None:
            picked = picked * weights[..., None, None]
        picked = picked.movedim(1, 4).flatten(4).flatten(2, 3)  # (B, Rq, K * Tk, C)
        return to_heads(picked.flatten(0, 1), num_heads)

    bias = None
    if valid is not None:
        bias = torch.zeros((), dtype=q.dtype, device=q.device).where(valid[routes], torch.finfo(q.dtype).min)
        bias = bias.movedim(1, 2).flatten(0, 1).flatten(2)[:, :, None, :]  # (B * Rq, 1 or heads, 1, K * Tk)
    y = attend(to_heads(q.flatten(0, 1), num_heads), gather(k), gather(v), scale, bias)
    return from_heads(y).unflatten(0, (batch, count))


def attend_to_routes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Any,
    cut: Partition,
    config: Any,
    num_heads: int,
    scale: float,
    reads_padding: bool,
) -> Tensor:
    """Let each region attend to the tokens, or pooled cells, of its routed regions: maps (B, H, W, C) in and out.

    `routes` are affinities and indices of the routed regions, (B, 1 or heads, R, K); `config` has the options of
    routing.
    """
    valid = cut.valid(q.device)
    q, k, v = (blank(cut.split(part), valid) for part in (q, k, v))  # (B, R, T, C) each
    # the logits of the softmax over routes carry the scale of the attention, as published
    weights = (routes.values * scale).softmax(-1) if config.soft_routing else None
    if config.kv_pool is not None:
        pool = functools.partial(
            pool_regions, maximum=config.kv_pool == "max", per_side=config.kv_per_side, ratio=config.kv_ratio
        )
        (k, _), (v, valid) = pool(k, cut, valid), pool(v, cut, valid)
    valid = None if reads_padding else valid
    return cut.join(routed_attention(q, k, v, routes.indices, num_heads, scale, valid=valid, weights=weights))


def pool_regions(
    regions: Tensor, cut: Partition, valid: Tensor | None, *, maximum: bool, per_side: int | None, ratio: int | None
) -> tuple[Tensor, Tensor | None]:
    """Pool the tokens inside each region: (B, R, T, C), blank -> (B, R, T', C) and what of it is valid, (R, T').

    Either to `per_side` cells along each side, which may overlap (adaptive pooling), or over `ratio` x `ratio` tokens.
    Padding enters no cell; a cell of padding alone is not valid.
    """

    def pool(images: Tensor, maximum: bool) -> Tensor:
        if per_side is not None:
            adaptive: Callable[..., Tensor] = F.adaptive_max_pool2d if maximum else F.adaptive_avg_pool2d
            return adaptive(images, per_side)
        strided: Callable[..., Tensor] = F.max_pool2d if maximum else F.avg_pool2d
        return strided(images, ratio)

    def images(tokens: Tensor) -> Tensor:
        maps: Tensor = tokens.flatten(0, 1).unflatten(1, (cut.rows, cut.cols))
        return maps.permute(0, 3, 1, 2)

    own = None
    if valid is not None:
        own = pool(images(valid.to(regions.dtype)[None, ..., None]), maximum=False).flatten(1)  # (R, T')
        if maximum:
            regions = regions.masked_fill(~valid[..., None], torch.finfo(regions.dtype).min)
    pooled = pool(images(regions), maximum).flatten(2).mT.unflatten(0, regions.shape[:2])
    if own is None:
        return pooled, None
    if not maximum:
        # zeros of the padding took part in the mean
        pooled = pooled / own.where(own > 0, 1)[..., None]
    return blank(pooled, own > 0), own > 0


def regions_of(config: Any, height: int, width: int, qk_dim: int, dim: int) -> Partition:
    """Regions of a map: of a size, of the cheapest size, or S x S of map / S tokens a side, rounded up or down.

    Raises:
        ValueError: the size of a region is rounded down to nothing.
    """
    size, per_side, centred = config.region_size, config.regions or 7, config.is_centred
    if size == "auto":
        return cheapest_partition(height, width, config.topk, qk_dim, dim, centred)
    if size is not None:
        return Partition.of_size(height, width, min(size, height), min(size, width), centred=centred)
    published = "floor" if config.padding == "official" and config.variant == "nchw" else "ceil"
    if (config.rounding or published) == "ceil":
        return Partition.of_count(height, width, per_side, centred=centred, keep_empty=config.pad_rule == "input")
    if min(height, width) < per_side:
        raise ValueError(
            f"regions={per_side} per side leave no token to a region of a {height}x{width} map when their size is "
            f"rounded down; lower regions, or use rounding=ceil"
        )
    return Partition.of_size(height, width, height // per_side, width // per_side, centred=centred)


@functools.lru_cache
def cheapest_partition(height: int, width: int, topk: int, qk_dim: int, dim: int, centred: bool) -> Partition:
    """Search every S, since padding makes the cost jump; ties go to the smaller S.

    Without padding the closed form has its minimum at S = (k N^2)^(1/6); the paper, which counts the routing twice,
    gives (k / 2 N^2)^(1/6) (eq. 9).
    """

    def cost(cut: Partition) -> int:
        return cut.count**2 * qk_dim + cut.count * cut.tokens * min(topk, cut.count) * cut.tokens * (qk_dim + dim)

    sides = range(1, max(height, width) + 1)
    cuts = [Partition.of_count(height, width, per_side, centred=centred) for per_side in sides]
    return min([cut for cut in cuts if cut.count >= topk] or cuts, key=cost)
