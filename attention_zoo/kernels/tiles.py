"""Sliding windows computed tile by tile: the queries of a tile share one block of keys, and a bias says who reads what.

A gather copies each key once for every query that reads it, kernel^2 times in all. A tile of t x t queries needs the
(t + kernel - 1)^2 keys around it once, a few copies of each key, and larger products. What a bias holds depends on the
tile's place along each side alone, and only tiles at the borders differ from the others.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.kernels.caching import Kept

_TILES = Kept(16)
_BIAS_BYTES = 4 << 20
"""Bias of the tiles that are computed together; a larger one would leave the cache of a CPU."""


@dataclass(frozen=True)
class Side:
    """Tiles along one side of a map: places of their queries and keys, and the kinds of their patterns."""

    queries: Tensor
    """(tiles, t); places beyond the side stand for its last token."""
    keys: Tensor
    """(tiles, block)."""
    offsets: Tensor
    """Query - key for each kind of tile, out of reach where it is `kernel`: (kinds, t, block)."""
    kind: Tensor
    """(tiles,)."""

    @classmethod
    def of(cls, length: int, kernel: int, tile: int) -> "Side":
        """Cut a side; all blocks are equally long."""
        tile, reach = min(tile, length), min(kernel, length)
        block = min(length, tile + reach - 1)
        queries = torch.arange(-(-length // tile) * tile).reshape(-1, tile).clamp(max=length - 1)
        first = (queries - kernel // 2).clamp(0, length - reach)
        keys = first[:, :1].clamp(max=length - block) + torch.arange(block)
        offsets = queries[:, :, None] - keys[:, None, :]
        reads = (keys[:, None, :] >= first[:, :, None]) & (keys[:, None, :] < first[:, :, None] + reach)
        patterns, kind = offsets.where(reads, kernel).unique(dim=0, return_inverse=True)
        return cls(queries, keys, patterns, kind)


@dataclass(frozen=True)
class Tiles:
    """Tiles of a map, M of them: tokens of their T queries and K keys, and where each token's own query is."""

    queries: Tensor
    """(M, T)."""
    keys: Tensor
    """(M, K)."""
    back: Tensor
    """(N,), places in the M T queries."""
    dy: Tensor
    """Query - key down, for each kind of tile along each side: (kinds, 1, t, 1, block, 1)."""
    dx: Tensor
    """The same across: (1, kinds, 1, t, 1, block)."""
    kind: Tensor
    """(M,), of the kinds of both sides, row-major."""


def tiles_of(height: int, width: int, kernel: int, device: torch.device) -> Tiles:
    """Cut a map into tiles as wide as a window, or four tokens."""

    def make() -> Tiles:
        down, across = (Side.of(length, kernel, max(4, kernel)) for length in (height, width))

        def tokens(rows: Tensor, cols: Tensor) -> Tensor:
            return (rows[:, None, :, None] * width + cols[None, :, None, :]).flatten(2).flatten(0, 1)

        queries = tokens(down.queries, across.queries)
        # a token that stands for places beyond the side too is found in any of them
        back = torch.empty(height * width, dtype=torch.long).scatter_(
            0, queries.flatten(), torch.arange(queries.numel())
        )
        kind = (down.kind[:, None] * len(across.offsets) + across.kind).flatten()
        dy, dx = down.offsets[:, None, :, None, :, None], across.offsets[None, :, None, :, None, :]
        parts = queries, tokens(down.keys, across.keys), back, dy, dx, kind
        return Tiles(*(part.to(device) for part in parts))

    return _TILES.get((height, width, kernel, device), make)


def attend_in_tiles(q: Tensor, kv: Tensor, tiles: Tiles, bias: Tensor, scale: float) -> Tensor:
    """Attend tile by tile: (B, N, C), (B, N, 2 C), bias of each kind (kinds, heads, T, K) -> (B, N, C)."""
    heads = bias.shape[1]
    size = max(1, _BIAS_BYTES // (bias[0].numel() * bias.element_size()))
    images = list(zip(q.unbind(0), kv.unbind(0), strict=True))
    mixed: list[list[Tensor]] = [[] for _ in images]
    for kind, queries, keys in zip(
        *(part.split(size) for part in (tiles.kind, tiles.queries, tiles.keys)), strict=True
    ):
        own = bias.index_select(0, kind)
        for (image_q, image_kv), done in zip(images, mixed, strict=True):
            own_q = image_q.index_select(0, queries.flatten()).reshape(*queries.shape, heads, -1).transpose(1, 2)
            own_kv = image_kv.index_select(0, keys.flatten()).reshape(*keys.shape, 2, heads, -1)
            own_k, own_v = own_kv.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(own_q, own_k, own_v, attn_mask=own, scale=scale)
            done.append(y.transpose(1, 2).reshape(queries.numel(), -1))
    return torch.stack([torch.cat(done).index_select(0, tiles.back) for done in mixed])
