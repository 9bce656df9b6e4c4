"""Softmax over pooled keys: what mechanisms share whose queries read a smaller map (Pyramid Vision Transformer).

Wang et al., "Pyramid Vision Transformer", ICCV 2021, arXiv:2102.12122, section 3.3, eq. 1 to 3. Patches of R x R
tokens become one each, by a convolution of stride R and a LayerNorm; k and v are projections of what results. Wang et
al., "PVT v2", CVMJ 2022, arXiv:2106.13797, section 3.2, averages the map to 7 x 7 patches instead.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
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
                patches.append(normalised(patch, self.norm))
        return torch.stack(patches, 1).reshape(x.shape[0], cut.down, cut.across, -1)

    def count(self, height: int, width: int) -> int:
        """Patches of a map, M."""
        return self.cut(height, width).count

    def holds(self, height: int, width: int, device: torch.device) -> Tensor:
        """Which tokens lie in a patch: (N,), all but a remainder that is left out."""
        cut = self.cut(height, width)
        row, col = coordinates(height, width, device)
        return (row < cut.height) & (col < cut.width)

    def on_map(self, weights: Tensor, height: int, width: int) -> Tensor:
        """Spread the weight of each patch evenly over its tokens: (B, heads, Q, M) -> (B, heads, Q, H, W)."""
        cut = self.cut(height, width)
        return spread_over_patches(weights, self.reduction, (cut.down, cut.across), (height, width))

    def pad_ratio(self, height: int, width: int) -> float:
        """Tokens that complete the patches, over the map's own."""
        return self.cut(height, width).pad_ratio

    def macs(self, height: int, width: int) -> int:
        """R^2 C^2 for each of the M patches."""
        return 0 if self.sr is None else self.cut(height, width).count * self.sr.weight.numel()


class LinearReduction(nn.Module):
    """Averages of a map in 7 x 7 patches, then a 1 x 1 convolution, LayerNorm and GELU: (B, H, W, C) -> (B, 7, 7, C).

    Patch i of a side of n tokens holds those from floor(i n / 7) to ceil((i + 1) n / 7): where 7 does not divide n,
    neighbours share tokens.
    """

    side = 7

    def __init__(self, dim: int) -> None:
        """Make the convolution and the norm."""
        super().__init__()
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce a map."""
        averages = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.side)
        return F.gelu(self.norm(self.sr(averages).permute(0, 2, 3, 1)))

    def by_patch(self, x: Tensor) -> Tensor:
        """Reduce a map patch by patch, norm and GELU written out."""
        assert self.sr.bias is not None
        patches = []
        for top, bottom in self._bins(x.shape[1]):
            for left, right in self._bins(x.shape[2]):
                mean = x[:, top:bottom, left:right].mean((1, 2))
                y = normalised(mean @ self.sr.weight[:, :, 0, 0].mT + self.sr.bias, self.norm)
                patches.append(y * (1 + (y / math.sqrt(2)).erf()) / 2)
        return torch.stack(patches, 1).reshape(x.shape[0], self.side, self.side, -1)

    def _bins(self, length: int) -> list[tuple[int, int]]:
        """First token and the one after the last of each patch along a side."""
        return [(i * length // self.side, -(-(i + 1) * length // self.side)) for i in range(self.side)]

    def count(self, height: int, width: int) -> int:
        """Patches of a map."""
        return self.side**2

    def holds(self, height: int, width: int, device: torch.device) -> Tensor:
        """Which tokens lie in a patch: all, (N,)."""
        return torch.ones(height * width, dtype=torch.bool, device=device)

    def on_map(self, weights: Tensor, height: int, width: int) -> Tensor:
        """Spread the weight of each patch evenly over its tokens: (B, heads, Q, 49) -> (B, heads, Q, H, W)."""
        shares = []
        for length in (height, width):
            token = torch.arange(length, device=weights.device)
            bins = [(first <= token) & (token < last) for first, last in self._bins(length)]
            shares.append(torch.stack([held / held.sum() for held in bins]).to(weights.dtype))  # (7, length)
        return torch.einsum("bhqyx,yr,xc->bhqrc", weights.unflatten(-1, (self.side, self.side)), *shares)

    def pad_ratio(self, height: int, width: int) -> float:
        """Nothing is padded."""
        return 0.0

    def macs(self, height: int, width: int) -> int:
        """C^2 for each of the patches; averages are not counted."""
        return self.count(height, width) * self.sr.weight.numel()


def normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm written out: (..., C) -> same."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


class PooledAttention(Attention):
    """One softmax over the keys of a reduced map; a mechanism sets `pool` and writes its `forward`."""

    pool: SpatialReduction | LinearReduction | None

    def project_pooled(self, x: Tensor, pool: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Make q of all tokens, (B, heads, N, D), and k and v of the reduced map, (B, heads, M, D)."""
        q = part_of(self.qkv, x.flatten(1, 2), 0, self.qk_dim)
        kv = part_of(self.qkv, pool(x).flatten(1, 2), self.qk_dim, 2 * self.qk_dim + self.dim)
        k, v = kv.split((self.qk_dim, self.dim), dim=-1)
        q, k, v = (to_heads(part, self.num_heads) for part in (q, k, v))
        return q, k, v

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow every token that a patch holds, (1, 1, N or queries, N): all but a remainder that is left out.

        Wider than a key: a query weighs patches, each a mixture of its tokens, and never one token of a patch alone.
        """
        assert self.pool is not None
        _, height, width, _ = x.shape
        is_held = self.pool.holds(height, width, x.device)
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
        return self.pool.on_map(weights, x.shape[1], x.shape[2])

    def macs(self, height: int, width: int) -> Macs:
        """Projections of N queries and outputs and of M keys and values, the reduction, and M keys for each query."""
        assert self.pool is not None
        tokens, patches = height * width, self.pool.count(height, width)
        projection = self.dim * (tokens + patches) * (self.qk_dim + self.dim) + self.pool.macs(height, width)
        return Macs(projection=projection, core=self.core_macs(tokens, patches))

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Padding that completes the patches."""
        assert self.pool is not None
        return {"pad_ratio": self.pool.pad_ratio(height, width)}


def spread_over_patches(weights: Tensor, side: int, patches: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Spread the weight of each patch evenly over its tokens: (B, heads, Q, M) -> (B, heads, Q, H, W)."""
    (down, across), (height, width) = patches, size
    row, col = coordinates(height, width, weights.device)
    # a remainder that is left out belongs to no patch
    inside = (row < down * side) & (col < across * side)
    patch = (row // side * across + col // side).where(inside, 0)
    tokens_of_patch = patch[inside].bincount(minlength=down * across)[patch]
    return (weights[..., patch] * inside / tokens_of_patch).unflatten(-1, size)
