"""Shifted-window attention (Swin).

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, arXiv:2103.14030,
section 3.2. Attention stays inside windows of M x M tokens; every other block shifts the windows by M / 2 (eq. 3),
computed by a cyclic shift of the map; a relative position bias B is added to the logits (eq. 4).
Paper -> here:  M -> window,  shift -> shift,  B-hat -> bias_table.
Departures: a forbidden pair is masked outright (the official code adds -100 to its logit), and so is padding.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import ClassVar, Self

from torch import Tensor

from attention_zoo.base import Example
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.padding import WindowConfig
from attention_zoo.partitioned import PartitionAttention, bias_table, softmax_in_regions, table_bias
from attention_zoo.regions import Partition
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SwinConfig(WindowConfig):
    """Windows of 7 x 7 tokens, as published; inside a pyramid, the layout's window."""

    shift: int | None = field(
        default=None, metadata={"help": "tokens; default: 0 and window // 2 in alternating blocks"}
    )

    shift_whole: bool = field(
        default=False, metadata={"help": "shift along a side that is one window too, as DAT's code does"}
    )

    period: ClassVar[int] = 2
    official_moment: ClassVar[str] = "error"

    def __post_init__(self) -> None:
        """Reject windows and shifts that no map could make right.

        Raises:
            ValueError: a window below 1, a shift that is negative or not below the window.
        """
        super().__post_init__()
        if self.shift is not None and not 0 <= self.shift < min(self.sides):
            raise ValueError(f"shift must be at least 0 and below the window {min(self.sides)}, got {self.shift}")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window unless one is set, and shift every second block unless a shift is set."""
        window = self.window or layout.window
        here = self.replace(window=window)
        if self.shift is None:
            here = here.replace(shift=min(here.sides) // 2 if block % 2 else 0)
        return here


@register("swin")
class Swin(PartitionAttention):
    """W-MSA and SW-MSA: softmax(q k^T / sqrt(D) + B) v inside each window. Cost: 4 N C^2 + 2 M^2 N C MACs (eq. 2)."""

    Config: ClassVar[type[AttentionConfig]] = SwinConfig

    paper: ClassVar[str] = "2103.14030"
    reads: ClassVar[str] = "a window of M x M tokens, shifted in every other block"
    cost: ClassVar[str] = "4NC² + 2M²NC"
    exponent: ClassVar[Fraction | None] = Fraction(1)
    examples: ClassVar[tuple[Example, ...]] = (
        Example(reads="windows of 4x4", config={"window": 4, "shift": 0}, turn=1),
        Example(reads="the same, shifted by 2", config={"window": 4, "shift": 2}, turn=2),
    )

    def __init__(self, dim: int, num_heads: int, config: SwinConfig) -> None:
        """Add the table of relative position biases, ((2M - 1)^2, heads)."""
        super().__init__(dim, num_heads, config)
        self.window, self.shift, self.is_centred = config.sides, config.shift or 0, config.is_centred
        self.shift_whole = config.shift_whole
        self.bias_table = bias_table(*self.window, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """W-MSA, or SW-MSA where the windows are shifted (eq. 3): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        x, windows = self.enter(x)
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        # softmax(q k^T / sqrt(D) + B) v in each window (eq. 4)
        bias = self.region_bias(windows, x.device)  # B: (heads, M^2, M^2)
        y = softmax_in_regions(qkv, windows, self.num_heads, self.scale, bias, self.pad_rule)  # (B, H, W, C)
        y = self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :]))
        return self.leave(y, height, width)

    def cut(self, height: int, width: int) -> Partition:
        """Windows on this map; a side no longer than the window is one window, unshifted (as in Swin's code)."""
        rows, cols = min(self.window[0], height), min(self.window[1], width)
        windows = Partition.of_size(height, width, rows, cols, centred=self.is_centred)
        shift_y, shift_x = (
            # a roll by a whole map is none
            self.shift % padded if side > window or self.shift_whole else 0
            for side, window, padded in zip((height, width), (rows, cols), windows.padded_size, strict=True)
        )
        return replace(windows, shift_y=shift_y, shift_x=shift_x)

    def offset_bias(self, cut: Partition, dy: Tensor, dx: Tensor) -> Tensor:
        """B of eq. 4, from the table of B-hat."""
        return table_bias(self.bias_table, self.window, dy, dx)
