"""Softmax in regions: what mechanisms share that cut the map into windows, grids or groups and attend inside each.

A mechanism says how it cuts a map (`cut`) and what it adds to a logit (`offset_bias`), and writes its `forward` with
`softmax_in_regions`; the padding rules, the connectivity, the oracle and the closed form follow.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, attend, softmax_weights
from attention_zoo.padding import PartitionConfig, check_padding
from attention_zoo.regions import Partition, blank, coordinates

Places = tuple[Tensor, Tensor]
"""Rows and columns of tokens, two (N,) integer tensors; outside the map lies its padding."""


class PartitionAttention(Attention):
    """One masked softmax inside the regions of one cut."""

    def __init__(self, dim: int, num_heads: int, config: PartitionConfig, *, qk_dim: int | None = None) -> None:
        """Keep the padding rule beside the shared projections."""
        super().__init__(dim, num_heads, config, qk_dim=qk_dim)
        self.pad_rule = config.pad_rule

    def cut(self, height: int, width: int) -> Partition:
        """Regions on a map, whatever padding they need."""
        raise NotImplementedError(f"{type(self).__name__} has no cut")

    def offset_bias(self, cut: Partition, dy: Tensor, dx: Tensor) -> Tensor | None:
        """Term added to the logits of pairs `dy`, `dx` places of a region apart, query - key: (heads, *dy.shape)."""
        return None

    def partition(self, height: int, width: int) -> Partition:
        """Regions on a map.

        Raises:
            ValueError: the map needs padding that is refused.
        """
        return check_padding(self.cut(height, width), self.pad_rule)

    def rule_on(self, cut: Partition) -> str:
        """What becomes of the padding of this cut: `mask`, or zeros that are read, of the `input` or `projected`."""
        return self.pad_rule

    def pads_input(self, cut: Partition) -> bool:
        """Whether the published code pads the input of this cut."""
        return cut.is_padded and self.rule_on(cut) == "input"

    def enter(self, x: Tensor) -> tuple[Tensor, Partition]:
        """Map that is projected, and its cut: x itself, or x padded where the published code pads its input."""
        cut = self.partition(x.shape[1], x.shape[2])
        return (cut.pad(x), cut.filled()) if self.pads_input(cut) else (x, cut)

    def leave(self, y: Tensor, height: int, width: int) -> Tensor:
        """Take the map out of what `enter` padded."""
        cut = self.partition(height, width)
        return cut.crop(y) if self.pads_input(cut) else y

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens inside regions, for a mechanism that writes `cut` alone: (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        x, cut = self.enter(x)
        qkv = self.qkv(x)
        y = softmax_in_regions(qkv, cut, self.num_heads, self.scale, self.region_bias(cut, x.device), self.pad_rule)
        return self.leave(self.proj(self.add_lepe(y, qkv[..., 2 * self.dim :])), height, width)

    def region_bias(self, cut: Partition, device: torch.device) -> Tensor | None:
        """Bias of the pairs of a region, (heads, T, T), or None."""
        return self.offset_bias(cut, *region_offsets(cut, device))

    def pairs(self, x: Tensor, cut: Partition, queries: Places, keys: Places) -> Tensor:
        """May these queries read these keys, padding being as good as the map? Broadcasts to (B, heads, Nq, Nk)."""
        return same_region(cut, queries, keys)[None, None]

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one region: broadcasts to (B, heads, N or queries, N)."""
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        asked = (row, col) if queries is None else (row[queries], col[queries])
        return self.pairs(x, self.partition(height, width), asked, (row, col))

    def pair_bias(self, cut: Partition, queries: Places, keys: Places) -> Tensor | None:
        """Term added to the logits of these pairs, 0 where they cannot share a region: (heads, Nq, Nk), or None."""
        dy, dx = (q[:, None] - k for q, k in zip(queries, keys, strict=True))
        near = (dy % cut.step_y == 0) & (dy.abs() < cut.rows * cut.step_y)
        near &= (dx % cut.step_x == 0) & (dx.abs() < cut.cols * cut.step_x)
        bias = self.offset_bias(cut, dy.where(near, 0) // cut.step_y, dx.where(near, 0) // cut.step_x)
        return None if bias is None else bias * near

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Bias of every pair of the map, (heads, N, N), or None."""
        return self.query_bias(height, width, torch.arange(height * width, device=self.weight_device))

    def query_bias(self, height: int, width: int, queries: Tensor) -> Tensor | None:
        """Bias of these queries with every key, (heads, Q, N), or None."""
        row, col = coordinates(height, width, queries.device)
        return self.pair_bias(self.partition(height, width), (row[queries], col[queries]), (row, col))

    @property
    def weight_device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax under `connectivity`; where padding is read, the keys are the tokens of the padded map."""
        cut = self.partition(x.shape[1], x.shape[2])
        if not self.reads_padding(cut):
            return super().weights(x, queries)
        inside = cut.inside(x.device) if queries is None else cut.inside(x.device)[queries]
        if self.pads_input(cut):
            return self.weights(cut.pad(x), inside)
        q, k, _ = self.project(x)
        places = padded_places(cut, x.device)
        asked = places[0][inside], places[1][inside]
        bias, allowed = self.pair_bias(cut, asked, places), self.pairs(x, cut, asked, places)
        return softmax_weights(surround(q, cut)[:, :, inside], surround(k, cut), self.scale, bias, allowed)

    def values(self, x: Tensor) -> Tensor:
        """Values of the tokens; where padding is read, of the padded map."""
        cut = self.partition(x.shape[1], x.shape[2])
        if not self.reads_padding(cut):
            return super().values(x)
        return self.values(cut.pad(x)) if self.pads_input(cut) else surround(super().values(x), cut)

    def reads_padding(self, cut: Partition) -> bool:
        """Whether some key is padding."""
        return cut.is_padded and self.rule_on(cut) in ("input", "projected")

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on the tokens of the map; those on padding that is read are left out."""
        cut = self.partition(x.shape[1], x.shape[2])
        return keys_on_map(weights, cut) if self.reads_padding(cut) else super().on_map(x, weights)

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE over the whole map; what padding v holds does not enter it."""
        cut = self.partition(x.shape[1], x.shape[2])
        is_padded = self.lepe is not None and v.shape[2] > cut.height * cut.width
        return super().value_term(x, v[:, :, cut.inside(v.device)] if is_padded else v)

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle; where the published code pads its input, of the padded map."""
        cut = self.partition(x.shape[1], x.shape[2])
        if self.pads_input(cut):
            return cut.crop(self.reference(cut.pad(x)))
        return super().reference(x)

    def macs(self, height: int, width: int) -> Macs:
        """Projections and LePE of the map, T keys for each of the R T tokens of the regions, and the bias's own."""
        cut = self.partition(height, width)
        if self.pads_input(cut):
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


def softmax_in_regions(
    qkv: Tensor, cut: Partition, num_heads: int, scale: float, bias: Tensor | None, pad_rule: str
) -> Tensor:
    """Attend inside each region of a projected map: (B, H, W, 3 C) -> (B, H, W, C).

    Args:
        qkv: queries, keys and values, C channels each.
        cut: the regions, R of T tokens each.
        num_heads: heads in C.
        scale: factor on the logits.
        bias: added to the logits of the pairs of a region, (heads, T, T), or None.
        pad_rule: with `projected` padded tokens are zeros that are read; otherwise they are not read.
    """
    reads_padding = pad_rule == "projected"
    regions = cut.split(qkv)  # (B, R, T, 3 C)
    if not reads_padding:
        regions = blank(regions, cut.valid(qkv.device))
    q, k, v = regions.unflatten(-1, (3, num_heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, R, heads, T, D)
    sides = (cut.filled() if reads_padding else cut).sides(qkv.device)  # (R, T)
    if sides is not None:
        # what the roll brought together stays apart; padded queries read padded keys, so that no row is empty
        apart = (sides[:, None, :, None] != sides[:, None, None, :]).expand(-1, num_heads, -1, -1)
        bias = q.new_zeros(()) if bias is None else bias.to(q.dtype)
        bias = bias.expand(apart.shape).masked_fill(apart, float("-inf"))  # (R, heads, T, T)
    if bias is None or sides is None:
        # one bias for all regions, which so are images of a batch
        y = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale, None if bias is None else bias.to(q.dtype))
    else:
        # another for each region, which so are heads of an image
        y = attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), scale, bias.flatten(0, 1))
    return cut.join(y.reshape(q.shape).transpose(2, 3).flatten(3))


def padded_places(cut: Partition, device: torch.device) -> Places:
    """Coordinates of all tokens of the padded map, row-major; those of the map itself count from 0."""
    row, col = coordinates(*cut.padded_size, device)
    return row - cut.top, col - cut.left


def surround(part: Tensor, cut: Partition) -> Tensor:
    """Put zeros where the padded map has padding: (B, heads, N, D) -> (B, heads, tokens of the padded map, D)."""
    tokens = cut.padded_size[0] * cut.padded_size[1]
    return part.new_zeros(*part.shape[:2], tokens, part.shape[3]).index_copy(2, cut.inside(part.device), part)


def keys_on_map(weights: Tensor, cut: Partition) -> Tensor:
    """Weights on the tokens of the padded map, those of the map alone: (B, heads, Q, K) -> (B, heads, Q, H, W)."""
    return weights[..., cut.inside(weights.device)].unflatten(-1, (cut.height, cut.width))


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
    row, col = coordinates(cut.rows, cut.cols, device)
    return row[:, None] - row, col[:, None] - col


def same_region(cut: Partition, queries: Places, keys: Places) -> Tensor:
    """Pairs of one region that the roll did not bring together: (Nq, Nk) boolean, from coordinates alone."""

    def beyond_the_seam(places: Places) -> Tensor:
        row, col = places
        return 2 * (row + cut.top < cut.shift_y) + (col + cut.left < cut.shift_x)

    together = cut.locate(*queries)[:, None] == cut.locate(*keys)[None, :]
    return together & (beyond_the_seam(queries)[:, None] == beyond_the_seam(keys)[None, :])
