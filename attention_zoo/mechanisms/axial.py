"""Axial attention: along each row, then along each column of the result.

Ho et al., "Axial Attention in Multidimensional Transformers", arXiv:1912.12180, section 3.1. Row attention mixes the
tokens of a row, column attention those of a column; each is a softmax of its own, and stacked they reach the whole map.
It is the row "sequential axial" of BiFormer's comparison (arXiv:2303.08810, section 4.4).
Departures: the paper gives each axis a layer with projections of its own. Here one q, k, v serves both, so that a block
has as many parameters as any other mechanism's: y1 = softmax_row(q k^T) v, then y = softmax_column(q k^T) y1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from attention_zoo.base import Attention, Macs, attend, masked_softmax
from attention_zoo.config import AttentionConfig
from attention_zoo.regions import coordinates
from attention_zoo.registry import register


@register("axial")
class Axial(Attention):
    """Row attention, then column attention. Cost: 4 N C^2 + 2 N (H + W) C MACs."""

    impls: ClassVar[tuple[str, ...]] = ("gather",)

    def __init__(self, dim: int, num_heads: int, config: AttentionConfig) -> None:
        """Nothing beyond the shared projections."""
        super().__init__(dim, num_heads, config)

    def fast(self, x: Tensor) -> Tensor:
        """Mix along rows, then along columns: (B, H, W, C) -> same."""
        qkv = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, H, heads, W, D) each
        y = self._along_lines(q, k, v)
        q, k, y = (part.transpose(1, 3) for part in (q, k, y))  # (B, W, heads, H, D)
        y = self._along_lines(q, k, y)
        return self.finish(y.permute(0, 3, 1, 2, 4).flatten(3), qkv[..., 2 * self.qk_dim :])

    def _along_lines(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend inside each line: (B, lines, heads, L, D) -> same."""
        return attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), self.scale).reshape(v.shape)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one row or one column, (1, 1, N or queries, N): what either softmax reads directly.

        Through the two together each query reaches the whole map.
        """
        row, col = coordinates(x.shape[1], x.shape[2], x.device)
        rows, cols = (row, col) if queries is None else (row[queries], col[queries])
        return ((rows[:, None] == row) | (cols[:, None] == col))[None, None]

    def reference(self, x: Tensor) -> Tensor:
        """Row by row, then column by column, each a dense softmax under its part of `connectivity`."""
        batch, height, width, _ = x.shape
        sides = (height, width)
        q, k, v = (part.unflatten(2, sides) for part in self.project(x))  # (B, heads, H, W, D)
        reads = self.connectivity(x).expand(batch, self.num_heads, height * width, height * width)
        reads = reads.unflatten(3, sides).unflatten(2, sides)
        rows = [
            masked_softmax(q[:, :, i], k[:, :, i], v[:, :, i], self.scale, None, reads[:, :, i, :, i])
            for i in range(height)
        ]
        mixed = torch.stack(rows, 2)
        cols = [
            masked_softmax(q[..., j, :], k[..., j, :], mixed[..., j, :], self.scale, None, reads[:, :, :, j, :, j])
            for j in range(width)
        ]
        y = torch.stack(cols, 3).flatten(2, 3)
        term = self.value_term(x, v.flatten(2, 3))
        return self.output(y if term is None else y + term).reshape(x.shape)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N (H + W) C: each query reads W keys in its row, then H in its column."""
        return self.shared_macs(height, width) + Macs(core=self.core_macs(height * width, height + width))
