"""Criss-cross attention: one softmax over the row and the column of the query.

Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, arXiv:1811.11721, section 3.2.
A query reads the H + W - 1 tokens that share its row or its column, itself once.
Paper -> here:  A (affinity) -> the two blocks of logits,  C' -> C: q and k keep their width.
Departures: CCNet has one head, leaves the logits unscaled (`qk_scale=1` restores that), and applies the module twice
with the same weights, R = 2; here each block applies it once, with the heads and the scale of all mechanisms. The
residual, which its code weighs with a learned gamma, is the host's.
"""

from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs
from attention_zoo.regions import coordinates
from attention_zoo.registry import register


@register("crisscross")
class CrissCross(Attention):
    """Softmax(q K^T / sqrt(D)) V over the row and column of q. Cost: 4 N C^2 + 2 N (H + W) C MACs."""

    paper: ClassVar[str] = "1811.11721"
    reads: ClassVar[str] = "its row and its column at once"
    cost: ClassVar[str] = "4NC² + 2(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="row and column at once"),)

    def forward(self, x: Tensor) -> Tensor:
        """Affinity and aggregation over the row and column of each query (section 3.2): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        by_row = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k, v = by_row  # (B, H, heads, W, D) each
        q_col, k_col, v_col = by_row.transpose(2, 4)  # (B, W, heads, H, D) each
        # affinity: the row holds the query's own key, so the column leaves it out
        itself = torch.eye(height, dtype=torch.bool, device=x.device)
        in_col = (q_col @ k_col.mT * self.scale).masked_fill(itself, float("-inf"))  # (B, W, heads, H, H)
        affinity = torch.cat((q @ k.mT * self.scale, in_col.transpose(1, 3)), dim=-1)  # (B, H, heads, W, W + H)
        # aggregation
        row_weights, col_weights = affinity.softmax(-1).split((width, height), dim=-1)
        y = row_weights @ v + (col_weights.transpose(1, 3) @ v_col).transpose(1, 3)  # (B, H, heads, W, D)
        y = y.transpose(2, 3).flatten(3)  # (B, H, W, C)
        return self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one row or one column: (1, 1, N or queries, N)."""
        row, col = coordinates(x.shape[1], x.shape[2], x.device)
        rows, cols = (row, col) if queries is None else (row[queries], col[queries])
        return ((rows[:, None] == row) | (cols[:, None] == col))[None, None]

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N (H + W) C (O(N (H + W - 1)), section 1): the query's own key is computed twice, masked once."""
        return self.shared_macs(height, width) + Macs(core=self.core_macs(height * width, height + width))
