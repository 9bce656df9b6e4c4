"""Shifted-window attention (Swin).

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, arXiv:2103.14030,
section 3.2. Attention stays inside windows of M x M tokens; every other block shifts the windows by M / 2 (eq. 3),
computed by a cyclic shift of the map; a relative position bias B is added to the logits (eq. 4).
Paper -> here:  M -> window,  shift -> shift,  B-hat -> bias_table.
Departures: a forbidden pair is masked outright (the official code adds -100 to its logit), and so is padding.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.regions import Partition, blank, coordinates
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SwinConfig(AttentionConfig):
    """Windows of 7 x 7 tokens, as published; inside a pyramid, the layout's window."""

    window: int | tuple[int, int] | None = field(
        default=None, metadata={"help": "tokens per side of a window, or HxW; default: the layout's, else 7"}
    )
    shift: int | None = field(
        default=None, metadata={"help": "tokens; default: 0 and window // 2 in alternating blocks"}
    )

    period: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Reject windows and shifts that no map could make right.

        Raises:
            ValueError: a window below 1, a shift that is negative or not below the window.
        """
        super().__post_init__()
        if min(self.sides) < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.shift is not None and not 0 <= self.shift < min(self.sides):
            raise ValueError(f"shift must be at least 0 and below the window {min(self.sides)}, got {self.shift}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a window, tokens."""
        window = 7 if self.window is None else self.window
        return (window, window) if isinstance(window, int) else window

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window unless one is set, and shift every second block unless a shift is set."""
        window = self.window or layout.window
        here = self.replace(window=window)
        if self.shift is None:
            here = here.replace(shift=min(here.sides) // 2 if block % 2 else 0)
        return here


@register("swin")
class Swin(Attention):
    """W-MSA and SW-MSA: softmax(q k^T / sqrt(D) + B) v inside each window. Cost: 4 N C^2 + 2 M^2 N C MACs."""

    Config: ClassVar[type[AttentionConfig]] = SwinConfig

    def __init__(self, dim: int, num_heads: int, config: SwinConfig) -> None:
        """Add the table of relative position biases, ((2M - 1)^2, heads)."""
        super().__init__(dim, num_heads, config)
        self.window, self.shift = config.sides, config.shift or 0
        rows, cols = self.window
        self.bias_table = nn.Parameter(torch.empty((2 * rows - 1) * (2 * cols - 1), num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def partition(self, height: int, width: int) -> Partition:
        """Windows on this map; a side no longer than the window is one window, unshifted (as in Swin's code)."""
        rows, cols = min(self.window[0], height), min(self.window[1], width)
        return Partition.of_size(
            height,
            width,
            rows,
            cols,
            shift_y=self.shift if height > rows else 0,
            shift_x=self.shift if width > cols else 0,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens inside windows: (B, H, W, C) -> same."""
        cut = self.partition(*x.shape[1:3])
        qkv = self.qkv(x)
        windows = blank(cut.split(qkv), cut.valid(x.device))
        # (B, R * heads, T, D): heads of all windows in one dimension, so that a mask per window fits SDPA's four
        q, k, v = windows.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        y = attend(q, k, v, self.scale, self._window_bias(cut, x.device))
        y = cut.join(y.unflatten(1, (cut.count, -1)).transpose(2, 3).flatten(3))
        return self.finish(y, qkv[..., 2 * self.dim :])

    def _window_bias(self, cut: Partition, device: torch.device) -> Tensor:
        """Relative position bias of each window, -inf where it may not read: (1, R*heads, T, T)."""
        dy, dx = (c[:, None] - c[None, :] for c in coordinates(cut.rows, cut.cols, device))
        bias = self._table_entry(dy, dx).expand(cut.count, -1, -1, -1)
        sides = self._sides_of_the_seam(cut, device)
        if sides is not None:
            # padded queries may read padded keys, so that no row is empty; nothing of the map reads either
            bias = bias.masked_fill(sides[:, None, :, None] != sides[:, None, None, :], float("-inf"))
        return bias.flatten(0, 1)[None]

    def _sides_of_the_seam(self, cut: Partition, device: torch.device) -> Tensor | None:
        """On which side of the roll's seam each token of each window lies, -1 for padding: (R, T) or None."""
        if not (cut.is_padded or cut.shift_y or cut.shift_x):
            return None
        row, col = coordinates(cut.height, cut.width, device)
        side = 2 * (row < cut.shift_y) + (col < cut.shift_x)
        # counted from 1, so that the zeros of the padding become -1
        return cut.split((side + 1).reshape(1, cut.height, cut.width, 1))[0, :, :, 0] - 1

    def _table_entry(self, dy: Tensor, dx: Tensor) -> Tensor:
        """Bias for offsets query - key, two of (N, N): -> (heads, N, N)."""
        rows, cols = self.window
        index = (dy + rows - 1) * (2 * cols - 1) + dx + cols - 1
        return self.bias_table[index].permute(2, 0, 1)

    def logit_bias(self, height: int, width: int) -> Tensor:
        """B of eq. 4 for every pair of the map; 0 for pairs further apart than a window, which nothing reads."""
        rows, cols = self.window
        dy, dx = (c[:, None] - c[None, :] for c in coordinates(height, width, self.bias_table.device))
        near = (dy.abs() < rows) & (dx.abs() < cols)
        return self._table_entry(dy.where(near, 0), dx.where(near, 0)) * near

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one window that the roll did not bring together: (1, 1, N or queries, N)."""
        _, height, width, _ = x.shape
        cut = self.partition(height, width)
        key_row, key_col = coordinates(height, width, x.device)
        row, col = (key_row, key_col) if queries is None else (key_row[queries], key_col[queries])

        def same(query: Tensor, key: Tensor, shift: int, side: int, length: int) -> Tensor:
            def window(c: Tensor) -> Tensor:
                return (c - shift) % length // side

            wrapped = (query < shift)[:, None] == (key < shift)[None, :]
            return (window(query)[:, None] == window(key)[None, :]) & wrapped

        down = same(row, key_row, cut.shift_y, cut.rows, cut.down * cut.rows)
        across = same(col, key_col, cut.shift_x, cut.cols, cut.across * cut.cols)
        return (down & across)[None, None]

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 M^2 N C (eq. 2), the core on the padded map, and LePE if any."""
        cut = self.partition(height, width)
        return self.shared_macs(height, width) + Macs(core=self.core_macs(cut.count * cut.tokens, cut.tokens))

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Window (tokens, as clamped to the map) and the padding it needs."""
        cut = self.partition(height, width)
        return {
            "window": f"{cut.rows}x{cut.cols}",
            "pad_ratio": cut.count * cut.tokens / (height * width) - 1,
        }
