"""Axial attention: along each row, then along each column of the result.

Ho et al., "Axial Attention in Multidimensional Transformers", arXiv:1912.12180, section 3.1. Row attention mixes the
tokens of a row, column attention those of a column; each is a softmax of its own, and stacked they reach the whole map.
It is the row "sequential axial" of BiFormer's comparison (arXiv:2303.08810, section 4.4).
Departures: the paper gives each axis a layer with projections of its own. Here one q, k, v serves both, so that a block
has as many parameters as any other mechanism's: y1 = softmax_row(q k^T) v, then y = softmax_column(q k^T) y1.
"""

from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs, attend
from attention_zoo.regions import coordinates
from attention_zoo.registry import register


@register("axial")
class Axial(Attention):
    """Row attention, then column attention. Cost: 4 N C^2 + 2 N (H + W) C MACs."""

    paper: ClassVar[str] = "1912.12180"
    reads: ClassVar[str] = "its row, then its column"
    cost: ClassVar[str] = "4NC² + 2(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="row, then column"),)

    def forward(self, x: Tensor) -> Tensor:
        """Row attention, then column attention of what it returns (section 3.1): (B, H, W, C) -> same."""
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, H, heads, W, D) each
        y = self._along_lines(q, k, v)
        q, k, y = (part.transpose(1, 3) for part in (q, k, y))  # (B, W, heads, H, D)
        y = self._along_lines(q, k, y)
        y = y.permute(0, 3, 1, 2, 4).flatten(3)  # (B, H, W, C)
        return self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))

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

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weight of a token in its row, times that of its row in the query's column: (B, heads, N or queries, N)."""
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        if queries is not None:
            row, col = row[queries], col[queries]
        q, k, _ = self.project(x)
        q_map, k_map = (part.unflatten(2, (height, width)) for part in (q, k))  # (B, heads, H, W, D)
        in_column = torch.einsum("bhqd,bhyqd->bhqy", q_map[:, :, row, col], k_map[:, :, :, col]) * self.scale
        in_rows = torch.einsum("bhyqd,bhyxd->bhqyx", q_map[:, :, :, col], k_map) * self.scale
        return (in_column.softmax(-1)[..., None] * in_rows.softmax(-1)).flatten(3)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N (H + W) C: each query reads W keys in its row, then H in its column."""
        return self.shared_macs(height, width) + Macs(core=self.core_macs(height * width, height + width))
