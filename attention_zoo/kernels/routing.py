"""Region-to-region routing and token-to-token attention along the routes: the two levels of bi-level routing attention.

Zhu et al., CVPR 2023, arXiv:2303.08810, section 3.2. Tokens come cut into regions, (B, R, T, C); routes are the regions
that each region reads, one list for all heads or one for each: (B, 1 or heads, R, K).
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import attend
from attention_zoo.kernels.caching import Kept
from attention_zoo.kernels.modes import infers_on_cpu
from attention_zoo.kernels.remade import not_kept
from attention_zoo.regions import Partition, blank, coordinates, from_heads, joined, to_heads


def region_means(regions: Tensor, valid: Tensor | None) -> Tensor:
    """Average each region over the map's own tokens (eq. 3): (B, R, T, C), blank, under `valid` (R, T) -> (B, R, C)."""
    if valid is None:
        return regions.mean(2)
    return regions.sum(2) / valid.sum(1).clamp(min=1).to(regions.dtype)[:, None]


def map_means(x: Tensor, cut: Partition) -> Tensor:
    """The same from a map: (B, H, W, C) -> (B, R, C)."""
    if cut.is_padded:
        valid = cut.valid(x.device)
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
    batch, count, tokens, _ = q.shape
    kv_count, groups, topk = k.shape[1], routes.shape[1], routes.shape[-1]
    offsets = torch.arange(batch * groups, device=q.device).reshape(batch, groups, 1, 1) * kv_count
    index = (routes + offsets).flatten()  # regions of all images in one row: gather and its gradient stay compact

    def gather(part: Tensor) -> Tensor:
        width = part.shape[-1] // groups
        rows = (
            part.unflatten(-1, (groups, width)).movedim(3, 1).flatten(3).flatten(0, 2)
        )  # (B * groups * Rk, Tk * width)
        picked = rows.index_select(0, index).reshape(batch, groups, count, topk, -1, width)
        if weights is not None:
            picked = picked * weights[..., None, None]
        picked = picked.flatten(3, 4).movedim(1, 3).flatten(3)  # (B, Rq, K * Tk, C)
        return to_heads(picked.flatten(0, 1), num_heads)

    bias = None
    if valid is not None:
        bias = torch.zeros((), dtype=q.dtype, device=q.device).where(valid[routes], torch.finfo(q.dtype).min)
        bias = bias.movedim(1, 2).flatten(0, 1).flatten(2)[:, :, None, :]  # (B * Rq, 1 or heads, 1, K * Tk)
    y = attend(to_heads(q.flatten(0, 1), num_heads), gather(k), gather(v), scale, bias)
    return from_heads(y).reshape(batch, count, tokens, -1)


GATHERED_BYTES = 4 * 2**20
"""Keys and values of a few regions that a core's cache holds; more are gathered after those were attended to."""

_KEPT = Kept(64)


def row_pieces(batch: int, cut: Partition, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the rows of each region are, in pieces of a region's width that a padded map is made of.

    Returns those of one image, (R, rows), and at which piece each image begins, (B, 1).
    """

    def make() -> tuple[Tensor, Tensor]:
        region = torch.arange(cut.count, device=device)[:, None]
        row = region // cut.across * cut.rows + torch.arange(cut.rows, device=device)
        images = torch.arange(batch, device=device)[:, None] * (cut.count * cut.rows)
        return row * cut.across + region % cut.across, images

    return _KEPT.get(("rows", batch, cut, device), make)


def token_regions(cut: Partition, device: torch.device) -> Tensor:
    """Region of each token of a map: (H W,)."""
    return _KEPT.get(("tokens", cut, device), lambda: cut.locate(*coordinates(cut.height, cut.width, device)))


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    cut: Partition,
    num_heads: int,
    scale: float,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """`routed_attention` for routes that all heads share, with keys and values read off their maps.

    A row of a region is contiguous in a map, so one copy both cuts the map and gathers.

    Args:
        q: queries in their regions, (B, R, T, C).
        k: map of keys, (B, *padded_size, C).
        v: map of values, (B, *padded_size, Cv).
        routes: regions that each region reads, (B, R, K).
        cut: the regions.
        num_heads: heads in C and Cv.
        scale: factor on the logits.
        valid: keys that may be read, (R, T), or None for all.
    """
    batch, count, tokens, _ = q.shape
    regions, topk = batch * count, routes.shape[-1]
    rows, images = row_pieces(batch, cut, q.device)
    pieces = rows.index_select(0, routes.flatten()).view(batch, count * topk * cut.rows) + images
    bias = None
    if valid is not None:
        bias = torch.zeros((), dtype=q.dtype, device=q.device).where(valid[routes], torch.finfo(q.dtype).min)
        bias = bias.view(regions, 1, 1, topk * tokens)

    def gather(x: Tensor, pieces: Tensor) -> Tensor:
        # tokens apart from channels, or a compiled gather divides to find each number's place
        return x.reshape(-1, cut.cols, x.shape[3]).index_select(0, pieces)

    def heads(rows: Tensor, x: Tensor) -> Tensor:
        return rows.view(-1, topk * tokens, num_heads, x.shape[3] // num_heads).transpose(1, 2)

    def attend_regions(queries: Tensor, pieces: Tensor, bias: Tensor | None) -> Tensor:
        near = pieces.flatten()
        keys, values = gather(k, near), gather(v, near)
        # a key is gathered for every region that reads it, so a backward pass gathers again what it does not keep
        with not_kept(
            (keys, functools.partial(gather, k.detach(), near)), (values, functools.partial(gather, v.detach(), near))
        ):
            y = attend(to_heads(queries, num_heads), heads(keys, k), heads(values, v), scale, bias)
        return from_heads(y)

    queries, pieces = q.flatten(0, 1), pieces.view(regions, topk * cut.rows)
    parts = 1
    if infers_on_cpu(q):
        gathered_bytes = pieces.numel() * cut.cols * (k.shape[3] + v.shape[3]) * q.element_size()
        parts = max(1, min(regions, math.ceil(gathered_bytes / GATHERED_BYTES)))
    if parts == 1:
        return attend_regions(queries, pieces, bias).view(batch, count, tokens, v.shape[3])
    biases = (None,) * parts if bias is None else bias.tensor_split(parts)
    split = zip(queries.tensor_split(parts), pieces.tensor_split(parts), biases, strict=True)
    return joined(attend_regions(*part) for part in split).view(batch, count, tokens, v.shape[3])


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
