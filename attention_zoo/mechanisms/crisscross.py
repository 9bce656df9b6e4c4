"""Criss-cross attention: one softmax over the row and the column of the query.

Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, arXiv:1811.11721, section 3.2.
A query reads the H + W - 1 tokens that share its row or its column, itself once. Applied R times with the same weights
(section 3.3), it reaches the whole map.
Paper -> here:  A (affinity) -> the two blocks of logits,  C' -> C / qk_reduction,  R -> recurrence.
Departures: by default each block applies it once, with the heads, the scale and the widths of all mechanisms, and
projects the output; the residual is the host's. The published code has one head, q and k of C // 8 channels
(`qk_reduction=8`), unscaled logits (`qk_scale=1`), R = 2, and ends with x + gamma y, gamma learned from 0, instead of a
projection (`residual`).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Example, Macs
from attention_zoo.config import AttentionConfig
from attention_zoo.regions import coordinates, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class CrissCrossConfig(AttentionConfig):
    """One pass with the widths of all mechanisms."""

    recurrence: int = field(default=1, metadata={"help": "times that it is applied, with the same weights"})
    qk_reduction: int = field(default=1, metadata={"help": "channels of v over those of q and k, which round down"})
    residual: bool = field(
        default=False, metadata={"help": "end with x + gamma y instead of a projection; gamma is learned from 0"}
    )

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a recurrence or a reduction below 1.
        """
        super().__post_init__()
        for name in ("recurrence", "qk_reduction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@register("crisscross")
class CrissCross(Attention):
    """Softmax(q K^T / sqrt(D)) V over the row and column of q. Cost: 4 N C^2 + 2 N (H + W) C MACs."""

    Config: ClassVar[type[AttentionConfig]] = CrissCrossConfig

    paper: ClassVar[str] = "1811.11721"
    reads: ClassVar[str] = "its row and its column at once"
    cost: ClassVar[str] = "4NC² + 2(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="row and column at once"),)

    def __init__(self, dim: int, num_heads: int, config: CrissCrossConfig) -> None:
        """Add gamma, which takes the place of the projection, where the code's residual is wanted."""
        super().__init__(dim, num_heads, config, qk_dim=dim // config.qk_reduction)
        self.recurrence = config.recurrence
        self.gamma = nn.Parameter(torch.zeros(1)) if config.residual else None
        if config.residual:
            self.proj = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply criss-cross attention R times (section 3.3): (B, H, W, C) -> same."""
        for _ in range(self.recurrence):
            y = self._mix(x)
            x = y if self.gamma is None else self.gamma * y + x
        return x

    def _mix(self, x: Tensor) -> Tensor:
        """Affinity and aggregation over the row and column of each query (section 3.2): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        qkv = self.qkv(x).split((self.qk_dim, self.qk_dim, self.dim), dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in qkv)  # (B, H, heads, W, D)
        q_col, k_col, v_col = (part.transpose(1, 3) for part in (q, k, v))  # (B, W, heads, H, D) each
        # affinity: the row holds the query's own key, so the column leaves it out
        itself = torch.eye(height, dtype=torch.bool, device=x.device)
        in_col = (q_col @ k_col.mT * self.scale).masked_fill(itself, float("-inf"))  # (B, W, heads, H, H)
        affinity = torch.cat((q @ k.mT * self.scale, in_col.transpose(1, 3)), dim=-1)  # (B, H, heads, W, W + H)
        # aggregation
        row_weights, col_weights = affinity.softmax(-1).split((width, height), dim=-1)
        y = row_weights @ v + (col_weights.transpose(1, 3) @ v_col).transpose(1, 3)  # (B, H, heads, W, D)
        y = y.transpose(2, 3).flatten(3)  # (B, H, W, C)
        return self.proj(self.add_lepe(y, qkv[2]))

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one row or one column, (1, 1, N or queries, N): what one pass reads."""
        row, col = coordinates(x.shape[1], x.shape[2], x.device)
        rows, cols = (row, col) if queries is None else (row[queries], col[queries])
        return ((rows[:, None] == row) | (cols[:, None] == col))[None, None]

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax under `connectivity`; of several passes, the last one's: (B, heads, N or queries, N)."""
        return super().weights(self._given_last(x), queries)

    def values(self, x: Tensor) -> Tensor:
        """Values of the last pass, times gamma where there is one: (B, heads, N, D)."""
        return self._weighed(super().values(self._given_last(x)))

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE and residual of the last pass, (B, heads, N, D), or None."""
        return self._beside(self._given_last(x))

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle, pass by pass: (B, H, W, C) -> same."""
        return self._slow_pass(self._given_last(x))

    def _given_last(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence - 1):
            x = self._slow_pass(x)
        return x

    def _slow_pass(self, x: Tensor) -> Tensor:
        y, term = super().weights(x) @ self._weighed(super().values(x)), self._beside(x)
        return self.output(y if term is None else y + term).reshape(x.shape)

    def _weighed(self, y: Tensor) -> Tensor:
        return y if self.gamma is None else self.gamma * y

    def _beside(self, x: Tensor) -> Tensor | None:
        lepe = super().value_term(x, super().values(x))
        if self.gamma is None:
            return lepe
        residual = to_heads(x.flatten(1, 2), self.num_heads)
        return residual if lepe is None else residual + self._weighed(lepe)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N (H + W) C (O(N (H + W - 1)), section 1): the query's own key is computed twice, masked once.

        R times that; q and k cost as their width says, and a residual has no projection.
        """
        tokens, each = height * width, self.shared_macs(height, width)
        projection = each.projection - (0 if self.gamma is None else tokens * self.dim**2)
        core = self.core_macs(tokens, height + width)
        times = self.recurrence
        return Macs(projection=times * projection, position=times * each.position, core=times * core)
