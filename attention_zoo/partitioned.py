"""What mechanisms share that cut the map into regions and attend inside each: windows, grids, groups, stripes.

A mechanism says how it cuts a map (`cut`) and what it adds to a logit (`offset_bias`); the padding rule, the fast path,
the connectivity, the reference and the closed form follow.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, attend, masked_softmax
from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.caching import Kept
from attention_zoo.regions import Partition, blank, coordinates

Places = tuple[Tensor, Tensor]
"""Rows and columns of tokens, two (N,) integer tensors; outside the map lies its padding."""

_OFFSETS = Kept(32)


@dataclass(frozen=True, kw_only=True)
class PartitionConfig(AttentionConfig):
    """What becomes of a map that does not divide into whole regions."""

    padding: Literal["mask", "official", "error"] = field(
        default="mask", metadata={"help": "padded tokens are masked, treated as in the published code, or refused"}
    )
    pad_side: Literal["end", "center"] | None = field(
        default=None, metadata={"help": "pad at the bottom and right, or on all sides; default: end, or as published"}
    )
    pad_moment: Literal["input", "projected"] | None = field(
        default=None, metadata={"help": "pad x or q, k, v with zeros that are read; only with padding=official"}
    )

    official_side: ClassVar[str] = "end"
    official_moment: ClassVar[str] = "input"
    """What the published code does: `input`, `projected`, `mask`, or `error` where it refuses."""

    def __post_init__(self) -> None:
        """Reject a moment without the rule that it belongs to.

        Raises:
            ValueError: `pad_moment` without padding="official", and what the base rejects.
        """
        super().__post_init__()
        if self.pad_moment is not None and self.padding != "official":
            raise ValueError(f"pad_moment={self.pad_moment} needs padding=official, got padding={self.padding}")

    @property
    def pad_rule(self) -> str:
        """`mask`, `error`, or zeros that are read: of the `input`, or `projected`."""
        return (self.pad_moment or self.official_moment) if self.padding == "official" else self.padding

    @property
    def is_centred(self) -> bool:
        """Whether padding lies on all sides."""
        return (self.pad_side or (self.official_side if self.padding == "official" else "end")) == "center"


@dataclass(frozen=True, kw_only=True)
class WindowConfig(PartitionConfig):
    """Windows of 7 x 7 tokens, as published; inside a pyramid, of the layout's window."""

    window: int | tuple[int, int] | None = field(
        default=None, metadata={"help": "tokens per side of a window (or grid), or HxW; default: the layout's, else 7"}
    )

    def __post_init__(self) -> None:
        """Reject windows that no map could make right.

        Raises:
            ValueError: a window below 1, and what the base rejects.
        """
        super().__post_init__()
        if min(self.sides) < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a window, tokens."""
        window = 7 if self.window is None else self.window
        return (window, window) if isinstance(window, int) else window

    def sides_on(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a window on a map: no longer than its sides, but for the published rule."""
        rows, cols = self.sides
        return (rows, cols) if self.padding == "official" else (min(rows, height), min(cols, width))


def check_padding(cut: Partition, rule: str) -> Partition:
    """Return the cut.

    Raises:
        ValueError: it needs padding, and the rule refuses that.
    """
    if rule == "error" and cut.is_padded:
        block = f"{cut.rows * cut.step_y}x{cut.cols * cut.step_x}"
        raise ValueError(
            f"a {cut.height}x{cut.width} map does not divide into blocks of {block} tokens, which padding=error or the "
            f"published code refuses; choose a size that divides, or padding=mask"
        )
    return cut


class PartitionAttention(Attention):
    """One masked softmax inside the regions of one cut."""

    impls: ClassVar[tuple[str, ...]] = ("gather",)

    def __init__(self, dim: int, num_heads: int, config: PartitionConfig, *, qk_dim: int | None = None) -> None:
        """Keep the padding rule beside the shared projections."""
        super().__init__(dim, num_heads, config, qk_dim=qk_dim)
        self.pad_rule = config.pad_rule
        self._partitions: dict[tuple[int, int], Partition] = {}

    def cut(self, height: int, width: int) -> Partition:
        """Regions on a map, whatever padding they need; asked once for each size, so it must follow from that alone."""
        raise NotImplementedError(f"{type(self).__name__} has no cut")

    def offset_bias(self, cut: Partition, dy: Tensor, dx: Tensor) -> Tensor | None:
        """Term added to the logits of pairs `dy`, `dx` places of a region apart, query - key: (heads, *dy.shape)."""
        return None

    def partition(self, height: int, width: int) -> Partition:
        """Regions on a map; those of a size are made once.

        Raises:
            ValueError: the map needs padding that is refused.
        """
        # while a call is recorded, a size may be no number yet
        is_known = type(height) is int and type(width) is int and not torch.compiler.is_compiling()
        found = self._partitions.get((height, width)) if is_known else None
        if found is None:
            found = check_padding(self.cut(height, width), self.pad_rule)
            if is_known:
                self._partitions[height, width] = found
        return found

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens inside regions: (B, H, W, C) -> same."""
        cut = self.partition(*x.shape[1:3])
        if self.pad_rule == "input" and cut.is_padded:
            return cut.crop(self(cut.pad(x)))
        qkv = self.qkv(x)
        return self.finish(self.mix(qkv, cut), qkv[..., 2 * self.qk_dim :])

    def mix(self, qkv: Tensor, cut: Partition) -> Tensor:
        """Mixed values of a projected map: (B, H, W, 3 C) -> (B, H, W, C)."""
        table = self.offset_bias(cut, *region_offsets(cut, qkv.device))
        return attend_in_regions(qkv, cut, self.num_heads, self.scale, table, masked=self.pad_rule != "projected")

    def pairs(self, x: Tensor, cut: Partition, queries: Places, keys: Places) -> Tensor:
        """May these queries read these keys, padding being as good as the map? Broadcasts to (B, heads, Nq, Nk)."""
        return same_region(cut, queries, keys)[None, None]

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one region: broadcasts to (B, heads, N or queries, N)."""
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        asked = (row, col) if queries is None else (row[queries], col[queries])
        return self.pairs(x, self.partition(height, width), asked, (row, col))

    def pair_bias(self, cut: Partition, places: Places) -> Tensor | None:
        """Term added to the logits of all pairs of these places, 0 where they cannot share a region: (heads, N, N)."""
        dy, dx = (c[:, None] - c[None, :] for c in places)
        near = (dy % cut.step_y == 0) & (dy.abs() < cut.rows * cut.step_y)
        near &= (dx % cut.step_x == 0) & (dx.abs() < cut.cols * cut.step_x)
        bias = self.offset_bias(cut, dy.where(near, 0) // cut.step_y, dx.where(near, 0) // cut.step_x)
        return None if bias is None else bias * near

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Bias of every pair of the map, (heads, N, N), or None."""
        places = coordinates(height, width, self.qkv.weight.device)
        return self.pair_bias(self.partition(height, width), places)

    def reference(self, x: Tensor) -> Tensor:
        """Dense softmax over all keys under `connectivity`; where padding is read, over those of the padded map."""
        cut = self.partition(*x.shape[1:3])
        if self.pad_rule == "input" and cut.is_padded:
            return cut.crop(self.reference(cut.pad(x)))
        if self.pad_rule == "projected" and cut.is_padded:
            q, k, v = self.project(x)
            places = padded_places(cut, x.device)
            allowed, bias = self.pairs(x, cut, places, places), self.pair_bias(cut, places)
            y, term = softmax_with_zeros(q, k, v, cut, self.scale, bias, allowed), self.value_term(x, v)
            return self.output(y if term is None else y + term).reshape(x.shape)
        return super().reference(x)

    def macs(self, height: int, width: int) -> Macs:
        """Projections and LePE of the map, T keys for each of the R T tokens of the regions, and the bias's own."""
        cut = self.partition(height, width)
        if self.pad_rule == "input" and cut.is_padded:
            return self.macs(*cut.padded_size)
        core = self.core_macs(cut.count * cut.tokens, cut.tokens)
        return self.shared_macs(height, width) + Macs(core=core, position=self.bias_macs(cut))

    def bias_macs(self, cut: Partition) -> int:
        """Multiply-adds of the network that makes the bias, once per forward; a table has none."""
        return 0

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Window (tokens of a region, as clamped to the map) and the padding it needs."""
        cut = self.partition(height, width)
        return {"window": f"{cut.rows}x{cut.cols}", "pad_ratio": cut.pad_ratio}


def attend_in_regions(
    qkv: Tensor, cut: Partition, num_heads: int, scale: float, table: Tensor | None, *, masked: bool
) -> Tensor:
    """Attend inside each region of a projected map: (B, H, W, 3 C) -> (B, H, W, C).

    Args:
        qkv: queries, keys and values, C channels each.
        cut: the regions.
        num_heads: heads in C.
        scale: factor on the logits.
        table: bias of the pairs of a region, (heads, T, T), or None.
        masked: padded tokens are not read; otherwise they are zeros like any other token.
    """
    regions = cut.split(qkv)
    if masked:
        regions = blank(regions, cut.valid(qkv.device))
    # (B, R * heads, T, D): heads of all regions in one dimension, so that a mask per region fits SDPA's four
    q, k, v = regions.unflatten(-1, (3, num_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
    sides = (cut if masked else cut.filled()).sides(qkv.device)
    bias = None if table is None else table.to(q.dtype).expand(cut.count, -1, -1, -1)
    if sides is not None:
        # padded queries may read padded keys, so that no row is empty; nothing of the map reads either
        apart = sides[:, None, :, None] != sides[:, None, None, :]
        if bias is None:
            bias = q.new_zeros(cut.count, num_heads, cut.tokens, cut.tokens)
        bias = bias.masked_fill(apart, float("-inf"))
    y = attend(q, k, v, scale, None if bias is None else bias.flatten(0, 1)[None])
    return cut.join(y.unflatten(1, (cut.count, -1)).transpose(2, 3).flatten(3))


def padded_places(cut: Partition, device: torch.device) -> Places:
    """Coordinates of all tokens of the padded map, row-major; those of the map itself count from 0."""
    row, col = coordinates(*cut.padded_size, device)
    return row - cut.top, col - cut.left


def softmax_with_zeros(
    q: Tensor, k: Tensor, v: Tensor, cut: Partition, scale: float, bias: Tensor | None, allowed: Tensor
) -> Tensor:
    """Attend on the padded map, q, k, v being zeros in the padding: three of (B, heads, N, D) -> as v.

    `bias` and `allowed` tell of all pairs of the padded map.
    """
    row, col = padded_places(cut, q.device)
    inside = ((row >= 0) & (row < cut.height) & (col >= 0) & (col < cut.width)).nonzero().flatten()

    def surrounded(part: Tensor) -> Tensor:
        return part.new_zeros(*part.shape[:2], len(row), part.shape[-1]).index_copy(2, inside, part)

    return masked_softmax(surrounded(q), surrounded(k), surrounded(v), scale, bias, allowed)[:, :, inside]


def bias_table(rows: int, cols: int, num_heads: int) -> nn.Parameter:
    """Make a table of relative position biases, one for each offset in a region: ((2 rows - 1)(2 cols - 1), heads)."""
    table = nn.Parameter(torch.empty((2 * rows - 1) * (2 * cols - 1), num_heads))
    nn.init.trunc_normal_(table, std=0.02)
    return table


def table_bias(table: Tensor, sides: tuple[int, int], dy: Tensor, dx: Tensor) -> Tensor:
    """Look up offsets query - key in a table made for regions of these sides: -> (heads, *dy.shape)."""
    rows, cols = sides
    return table[(dy + rows - 1) * (2 * cols - 1) + dx + cols - 1].movedim(-1, 0)


def region_offsets(cut: Partition, device: torch.device) -> Places:
    """Offsets query - key between the places of a region: two (T, T)."""

    def make() -> Places:
        row, col = coordinates(cut.rows, cut.cols, device)
        return row[:, None] - row[None, :], col[:, None] - col[None, :]

    return _OFFSETS.get((cut.rows, cut.cols, device), make)


def same_region(cut: Partition, queries: Places, keys: Places) -> Tensor:
    """Pairs of one region that the roll did not bring together: (Nq, Nk) boolean, from coordinates alone."""

    def beyond_the_seam(places: Places) -> Tensor:
        row, col = places
        return 2 * (row + cut.top < cut.shift_y) + (col + cut.left < cut.shift_x)

    together = cut.locate(*queries)[:, None] == cut.locate(*keys)[None, :]
    return together & (beyond_the_seam(queries)[:, None] == beyond_the_seam(keys)[None, :])
