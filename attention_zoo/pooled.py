"""Softmax over pooled keys: what mechanisms share whose queries read a smaller map (Pyramid Vision Transformer).

Wang et al., "Pyramid Vision Transformer", ICCV 2021, arXiv:2102.12122, section 3.3, eq. 1 to 3. Patches of R x R
tokens become one each, by a convolution of stride R and a LayerNorm; k and v are projections of what results.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, softmax_weights
from attention_zoo.dispatch import part_of
from attention_zoo.layouts import Layout
from attention_zoo.padding import check_padding
from attention_zoo.regions import Partition, coordinates, to_heads


def stage_reduction(stage: int, layout: Layout) -> int:
    """R of a stage: as published 8-4-2-1, which leaves seven keys a side; on smaller maps less, for as many."""
    return min((8, 4, 2, 1)[stage], max(1, layout.own_maps[stage][0] // 7))


class SpatialReduction(nn.Module):
    """SR: (B, H, W, C) -> (B, H / R, W / R, C). With R = 1 it is the identity and has no weights.

    padding: `mask` completes the last patches with zeros, which add nothing; `official` leaves them out; `error`
    refuses them.
    """

    def __init__(self, dim: int, reduction: int, padding: str) -> None:
        """Make the convolution and the norm."""
        super().__init__()
        self.reduction, self.padding = reduction, padding
        self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(dim) if reduction > 1 else None

    def cut(self, height: int, width: int) -> Partition:
        """Patches of a map, whole or completed; without its remainder where that is left out.

        Raises:
            ValueError: patches need completion that is refused, or the map has no whole patch.
        """
        side = self.reduction
        if self.padding == "official":
            if min(height, width) < side:
                raise ValueError(
                    f"reduction={side} is above the sides of a {height}x{width} map, which padding=official does not "
                    f"complete; lower reduction, or choose padding=mask"
                )
            height, width = height - height % side, width - width % side
        return check_padding(Partition.of_size(height, width, side, side), self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce a map."""
        cut = self.cut(*x.shape[1:3])
        if self.sr is None or self.norm is None:
            return x
        reduced: Tensor = self.norm(self.sr(cut.pad(cut.crop(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return reduced

    def by_patch(self, x: Tensor) -> Tensor:
        """Reduce a map token by token, the norm written out."""
        if self.sr is None or self.norm is None:
            return x
        assert self.sr.bias is not None
        _, height, width, _ = x.shape
        cut = self.cut(height, width)
        patches = []
        for top in range(0, cut.down * self.reduction, self.reduction):
            for left in range(0, cut.across * self.reduction, self.reduction):
                patch = self.sr.bias.expand(x.shape[0], -1)
                for y in range(top, min(top + self.reduction, height)):
                    for z in range(left, min(left + self.reduction, width)):
                        patch = patch + x[:, y, z] @ self.sr.weight[:, :, y - top, z - left].mT
                centred = patch - patch.mean(-1, keepdim=True)
                spread = (centred.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
                patches.append(centred / spread * self.norm.weight + self.norm.bias)
        return torch.stack(patches, 1).reshape(x.shape[0], cut.down, cut.across, -1)

    def macs(self, height: int, width: int) -> int:
        """R^2 C^2 for each of the M patches."""
        return 0 if self.sr is None else self.cut(height, width).count * self.sr.weight.numel()


class PooledAttention(Attention):
    """One softmax over the keys of a reduced map; a mechanism sets `pool` and writes its `forward`."""

    pool: SpatialReduction | None

    def project_pooled(self, x: Tensor, pool: SpatialReduction) -> tuple[Tensor, Tensor, Tensor]:
        """Make q of all tokens, (B, heads, N, D), and k and v of the reduced map, (B, heads, M, D)."""
        q = part_of(self.qkv, x.flatten(1, 2), 0, self.qk_dim)
        kv = part_of(self.qkv, pool(x).flatten(1, 2), self.qk_dim, 2 * self.qk_dim + self.dim)
        k, v = kv.split((self.qk_dim, self.dim), dim=-1)
        q, k, v = (to_heads(part, self.num_heads) for part in (q, k, v))
        return q, k, v

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow every token that a patch holds, (1, 1, N or queries, N): all but a remainder that is left out."""
        assert self.pool is not None
        _, height, width, _ = x.shape
        cut = self.pool.cut(height, width)
        row, col = coordinates(height, width, x.device)
        is_held = (row < cut.height) & (col < cut.width)
        return is_held.expand(1, 1, height * width if queries is None else len(queries), -1)

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Reduce token by token, then a dense softmax over all of the reduced map: (B, heads, N or queries, M)."""
        assert self.pool is not None
        q, _, _ = self.project(x)
        _, k, _ = self.project(self.pool.by_patch(x))
        q = q if queries is None else q[:, :, queries]
        everything = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
        return softmax_weights(q, k, self.scale, None, everything)

    def values(self, x: Tensor) -> Tensor:
        """Values of the patches: (B, heads, M, D)."""
        assert self.pool is not None
        return self.project(self.pool.by_patch(x))[2]

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """Return None: values are pooled, so there is no map of them to convolve."""
        return None

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weight of each patch, spread evenly over its tokens."""
        assert self.pool is not None
        _, height, width, _ = x.shape
        cut = self.pool.cut(height, width)
        return spread_over_patches(weights, self.pool.reduction, (cut.down, cut.across), (height, width))

    def macs(self, height: int, width: int) -> Macs:
        """Projections of N queries and outputs and of M keys and values, the reduction, and M keys for each query."""
        assert self.pool is not None
        tokens, patches = height * width, self.pool.cut(height, width).count
        projection = self.dim * (tokens + patches) * (self.qk_dim + self.dim) + self.pool.macs(height, width)
        return Macs(projection=projection, core=self.core_macs(tokens, patches))

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Padding that completes the patches."""
        assert self.pool is not None
        return {"pad_ratio": self.pool.cut(height, width).pad_ratio}


def spread_over_patches(weights: Tensor, side: int, patches: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Spread the weight of each patch evenly over its tokens: (B, heads, Q, M) -> (B, heads, Q, H, W)."""
    (down, across), (height, width) = patches, size
    row, col = coordinates(height, width, weights.device)
    # a remainder that is left out belongs to no patch
    inside = (row < down * side) & (col < across * side)
    patch = (row // side * across + col // side).where(inside, 0)
    tokens_of_patch = patch[inside].bincount(minlength=down * across)[patch]
    return (weights[..., patch] * inside / tokens_of_patch).unflatten(-1, size)
