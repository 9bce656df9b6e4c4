"""What mechanisms share whose queries read a smaller map: the spatial reduction of Pyramid Vision Transformer.

Wang et al., "Pyramid Vision Transformer", ICCV 2021, arXiv:2102.12122, section 3.3, eq. 1 to 3. Patches of R x R
tokens become one each, by a convolution of stride R and a LayerNorm; k and v are projections of what results.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, attend, bias_apart, masked_softmax
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import check_padding
from attention_zoo.regions import Partition, coordinates, from_heads, to_heads


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
        # as the map that it reads has, or the weights are reordered on each call
        self.to(memory_format=torch.channels_last)

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
    """SRA: softmax(q k^T / sqrt(D)) v, with k and v of the reduced map. Cost: 2 N C^2 + (2 + R^2) M C^2 + 2 N M C MACs.

    M = N / R^2. Without a `pool` each method is left to the next class in line, for mechanisms that pool in some
    blocks only.
    """

    impls: ClassVar[tuple[str, ...]] = ("gather",)

    def __init__(self, dim: int, num_heads: int, config: AttentionConfig, pool: SpatialReduction | None) -> None:
        """Add the spatial reduction."""
        super().__init__(dim, num_heads, config)
        self.pool = pool

    def fast(self, x: Tensor) -> Tensor:
        """Mix all tokens through the reduced map: (B, H, W, C) -> same."""
        if self.pool is None:
            mixed: Tensor = super().fast(x)
            return mixed
        reduced = self.pool(x).flatten(1, 2)  # (B, M, C)
        q = self.linear(x.flatten(1, 2), 0, self.qk_dim)
        k, v = self.linear(reduced, self.qk_dim, 2 * self.qk_dim + self.dim).split((self.qk_dim, self.dim), dim=-1)
        q, k, v = (to_heads(part, self.num_heads) for part in (q, k, v))
        y = attend(q, k, v, self.scale)
        del q, k, v  # in inference what is made next takes their memory
        return bias_apart(self.proj, from_heads(y)).reshape(x.shape)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow every token that a patch holds, (1, 1, N or queries, N): all but a remainder that is left out."""
        if self.pool is None:
            return super().connectivity(x, queries)
        _, height, width, _ = x.shape
        cut = self.pool.cut(height, width)
        row, col = coordinates(height, width, x.device)
        held = (row < cut.height) & (col < cut.width)
        return held.expand(1, 1, height * width if queries is None else len(queries), -1)

    def reference(self, x: Tensor) -> Tensor:
        """Reduce token by token, then a dense softmax over all of the reduced map."""
        if self.pool is None:
            return super().reference(x)
        q, _, _ = self.project(x)
        _, k, v = self.project(self.pool.by_patch(x))
        everything = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
        return self.output(masked_softmax(q, k, v, self.scale, None, everything)).reshape(x.shape)

    def macs(self, height: int, width: int) -> Macs:
        """Projections of N queries and outputs and of M keys and values, the reduction, and M keys for each query."""
        if self.pool is None:
            return super().macs(height, width)
        tokens, patches = height * width, self.pool.cut(height, width).count
        projection = self.dim * (tokens + patches) * (self.qk_dim + self.dim) + self.pool.macs(height, width)
        return Macs(projection=projection, core=self.core_macs(tokens, patches))

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Padding that completes the patches."""
        if self.pool is None:
            return super().geometry(height, width)
        return {"pad_ratio": self.pool.cut(height, width).pad_ratio}
