"""Axial attention: along each row, then along each column of the result.

Ho et al., "Axial Attention in Multidimensional Transformers", arXiv:1912.12180, section 3.1. Row attention mixes the
tokens of a row, column attention those of a column; each is a softmax of its own, and stacked they reach the whole map.
It is the row "sequential axial" of BiFormer's comparison (arXiv:2303.08810, section 4.4).
Departures: the paper gives each axis a layer with projections of its own. Here by default one q, k, v serves both, so
that a block has as many parameters as any other mechanism's: y1 = softmax_row(q k^T) v, then y = softmax_column(q k^T)
y1. `layers` gives each axis its own, as lucidrains/axial-attention does: both read x and their outputs are summed, or
the rows read what the columns return, without a residual between.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention, Example, Macs, attend, softmax_weights
from attention_zoo.config import AttentionConfig
from attention_zoo.regions import coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class AxialConfig(AttentionConfig):
    """One q, k, v for both axes."""

    layers: Literal["shared", "sum", "sequence"] = field(
        default="shared",
        metadata={"help": "one q, k, v for both axes; or one for each, summed, or in sequence, columns first"},
    )
    head_dim: int | None = field(
        default=None, metadata={"help": "channels of a head of layers=sum and sequence; default: C / heads"}
    )

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a head of no channels, or one of its own width or LePE where it has no meaning.
        """
        super().__post_init__()
        if self.head_dim is not None and (self.head_dim < 1 or self.layers == "shared"):
            raise ValueError(
                f"head_dim must be at least 1, and needs layers=sum or sequence; got {self.head_dim}, "
                f"layers={self.layers}"
            )
        if self.lepe and self.layers != "shared":
            raise ValueError(f"lepe must be off, got lepe=True: with layers={self.layers} each axis has its own values")


@register("axial")
class Axial(Attention):
    """Row attention, then column attention. Cost: 4 N C^2 + 2 N (H + W) C MACs."""

    Config: ClassVar[type[AttentionConfig]] = AxialConfig

    paper: ClassVar[str] = "1912.12180"
    reads: ClassVar[str] = "its row, then its column"
    cost: ClassVar[str] = "4NC² + 2(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="row, then column"),)

    def __init__(self, dim: int, num_heads: int, config: AxialConfig) -> None:
        """Give each axis projections of its own, where they are not shared: `qkv` and `proj` are the columns'."""
        super().__init__(dim, num_heads, config)
        self.layers = config.layers
        if config.layers != "shared":
            head_dim = config.head_dim or dim // num_heads
            self.qk_dim, self.scale = num_heads * head_dim, config.qk_scale or head_dim**-0.5
            self.qkv, self.qkv_rows = (nn.Linear(dim, 3 * self.qk_dim, bias=config.qkv_bias) for _ in range(2))
            self.proj, self.proj_rows = (nn.Linear(self.qk_dim, dim) for _ in range(2))

    @property
    def projections(self) -> list[tuple[Any, nn.Module]]:
        """Those of both axes."""
        own = [] if self.layers == "shared" else [(self.qkv_rows, self.proj_rows)]
        return [*super().projections, *own]

    def forward(self, x: Tensor) -> Tensor:
        """Row attention, then column attention of what it returns (section 3.1): (B, H, W, C) -> same."""
        if self.layers == "sum":
            return self._columns(x) + self._rows(x)
        if self.layers == "sequence":
            return self._rows(self._columns(x))
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, H, heads, W, D) each
        y = self._along_lines(q, k, v)
        q, k, y = (part.transpose(1, 3) for part in (q, k, y))  # (B, W, heads, H, D)
        y = self._along_lines(q, k, y)
        y = y.permute(0, 3, 1, 2, 4).flatten(3)  # (B, H, W, C)
        return self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))

    def _columns(self, x: Tensor) -> Tensor:
        """Column attention with its own projections: (B, H, W, C) -> same."""
        return self._layer(x.transpose(1, 2), self.qkv, self.proj).transpose(1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        """Row attention with its own projections: (B, H, W, C) -> same."""
        return self._layer(x, self.qkv_rows, self.proj_rows)

    def _layer(self, lines: Tensor, qkv: nn.Module, proj: nn.Module) -> Tensor:
        """Project, attend inside each line, project: (B, lines, L, C) -> same."""
        q, k, v = qkv(lines).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        y: Tensor = proj(self._along_lines(q, k, v).transpose(2, 3).flatten(3))
        return y

    def _along_lines(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend inside each line: (B, lines, heads, L, D) -> same."""
        return attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), self.scale).reshape(v.shape)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one row or one column, (1, 1, N or queries, N): what either softmax reads directly.

        One after the other, the two reach the whole map; summed, no more than this.
        """
        row, col = coordinates(x.shape[1], x.shape[2], x.device)
        rows, cols = (row, col) if queries is None else (row[queries], col[queries])
        return ((rows[:, None] == row) | (cols[:, None] == col))[None, None]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make q, k, v, those of the columns where each axis has its own: three of (B, heads, N, D)."""
        q, k, v = (to_heads(part, self.num_heads) for part in self.qkv(x).flatten(1, 2).chunk(3, dim=-1))
        return q, k, v

    def _project_rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (to_heads(part, self.num_heads) for part in self.qkv_rows(x).flatten(1, 2).chunk(3, dim=-1))
        return q, k, v

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weight of a token in its row, times that of its row in the query's column: (B, heads, N or queries, N).

        With layers=sequence those of the rows alone, which read what the columns returned. With layers=sum half of
        those of the columns, then half of those of the rows: (B, heads, N or queries, 2 N).
        """
        if self.layers == "sequence":
            given = self._slow_columns(x)
            return self._line_weights(given, *self._project_rows(given)[:2], 0, queries)
        if self.layers == "sum":
            columns = self._line_weights(x, *self.project(x)[:2], 1, queries)
            return torch.cat((columns, self._line_weights(x, *self._project_rows(x)[:2], 0, queries)), -1) / 2
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        if queries is not None:
            row, col = row[queries], col[queries]
        q, k, _ = self.project(x)
        q_map, k_map = (part.unflatten(2, (height, width)) for part in (q, k))  # (B, heads, H, W, D)
        in_column = torch.einsum("bhqd,bhyqd->bhqy", q_map[:, :, row, col], k_map[:, :, :, col]) * self.scale
        in_rows = torch.einsum("bhyqd,bhyxd->bhqyx", q_map[:, :, :, col], k_map) * self.scale
        return (in_column.softmax(-1)[..., None] * in_rows.softmax(-1)).flatten(3)

    def _line_weights(self, x: Tensor, q: Tensor, k: Tensor, axis: int, queries: Tensor | None) -> Tensor:
        """Dense softmax over the tokens with the same row (axis 0) or column (1): (B, heads, N or queries, N)."""
        line = coordinates(x.shape[1], x.shape[2], x.device)[axis]
        asked = slice(None) if queries is None else queries
        return softmax_weights(q[:, :, asked], k, self.scale, None, line[asked, None] == line)

    def _slow_columns(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        columns: Tensor = self.proj(from_heads(self._line_weights(x, q, k, 1, None) @ v)).reshape(x.shape)
        return columns

    def values(self, x: Tensor) -> Tensor:
        """What `weights` weigh; with layers=sum those of the columns and of the rows side by side: (B, heads, K, D)."""
        if self.layers == "sequence":
            return self._project_rows(self._slow_columns(x))[2]
        v = self.project(x)[2]
        if self.layers == "shared":
            return v
        v_rows, width = self._project_rows(x)[2], v.shape[-1]
        return 2 * torch.cat((F.pad(v, (0, width)), F.pad(v_rows, (width, 0))), 2)

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on tokens, those of both axes together: (B, heads, Q, H, W)."""
        tokens = x.shape[1] * x.shape[2]
        if self.layers == "sum":
            weights = weights[..., :tokens] + weights[..., tokens:]
        return super().on_map(x, weights)

    def output(self, y: Tensor) -> Tensor:
        """Merge heads and project by the last layer, or by both: (B, heads, N, D) -> (B, N, C)."""
        if self.layers == "sum":
            columns, rows = y.chunk(2, dim=-1)
            return self.proj(from_heads(columns)) + self.proj_rows(from_heads(rows))
        return self.proj_rows(from_heads(y)) if self.layers == "sequence" else super().output(y)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N (H + W) C: each query reads W keys in its row, then H in its column.

        With projections for each axis, of heads that are I channels wide together: 8 N C I + 2 N (H + W) I.
        """
        tokens = height * width
        core = self.core_macs(tokens, height + width)
        if self.layers == "shared":
            return self.shared_macs(height, width) + Macs(core=core)
        return Macs(projection=8 * tokens * self.dim * self.qk_dim, core=core)

    def core_macs(self, queries: int, keys: int) -> int:
        """As everywhere, but that layers for each axis have values as wide as their keys."""
        return super().core_macs(queries, keys) if self.layers == "shared" else 2 * queries * keys * self.qk_dim
