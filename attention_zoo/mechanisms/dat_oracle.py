"""Oracle of deformable attention: point after point and neighbour after neighbour, in any dtype.

Xia et al., arXiv:2201.00520, section 3.2, and arXiv:2309.01430; see dat.py.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import Attention
from attention_zoo.dispatch import part_of
from attention_zoo.pooled import spread_over_patches
from attention_zoo.regions import to_heads


class SampledAttention(Attention):
    """Softmax over samples of the map; a mechanism says where its points are and what biases they have."""

    config: Any
    groups: int
    stride: int
    offset: Any
    position: Any

    def samples(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of points on a map."""
        raise NotImplementedError(f"{type(self).__name__} has no samples")

    def points(self, q: Tensor) -> Tensor:
        """Where the points of queries lie: (B, H, W, C) -> (B, groups, Hk, Wk, 2) as (y, x), the map from -1 to 1."""
        raise NotImplementedError(f"{type(self).__name__} has no points")

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights over the samples, point by point: (B, heads, N or queries, Ns)."""
        q, k, _ = self.project(x)
        logits, bias = q @ k.mT * self.scale, self.slow_bias(x)
        weights = (logits if bias is None else logits + bias).softmax(-1)
        return weights if queries is None else weights[:, :, queries]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For the oracle: q of the tokens, (B, heads, N, D), k and v of the samples, (B, heads, Ns, D)."""
        sampled = self._slow_samples(x) if self.config.offsets else self._slow_pool(x)
        kv = part_of(self.qkv, sampled, self.dim, 3 * self.dim).chunk(2, -1)
        parts = part_of(self.qkv, x, 0, self.dim).flatten(1, 2), *kv
        q, k, v = (to_heads(part, self.num_heads) for part in parts)
        return q, k, v

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """With position=dwc, q under the nine places of the kernel, (B, heads, N, D), or None."""
        if self.config.position != "dwc":
            return None
        _, height, width, _ = x.shape
        kernel, bias = self.position.weight, self.position.bias
        y: Tensor = bias
        q = F.pad(part_of(self.qkv, x, 0, self.dim), (0, 0, 1, 1, 1, 1))
        for dy, dx in itertools.product(range(3), range(3)):
            y = y + kernel[:, 0, dy, dx] * q[:, dy : dy + height, dx : dx + width]
        return to_heads(y.flatten(1, 2), self.num_heads)

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights of the samples on the tokens around them: by bilinear shares, or evenly over a pooled window."""
        _, height, width, _ = x.shape
        if not self.config.offsets:
            return spread_over_patches(weights, self.stride, self.samples(height, width), (height, width))
        shares = bilinear_shares(self.places(x), height, width).mean(1, keepdim=True).to(weights.dtype)
        return (weights @ shares.flatten(3)).unflatten(-1, (height, width))

    def places(self, x: Tensor) -> Tensor:
        """Where the points of a map lie, in tokens: (B, groups, Ns, 2) as (row, column)."""
        _, height, width, _ = x.shape
        points = self.points(part_of(self.qkv, x, 0, self.dim)).flatten(2, 3)
        return (points + 1) / 2 * (points.new_tensor([height, width]) - 1)

    def slow_points(self, x: Tensor) -> Tensor:
        """Centre, offset and bound of one point after the other, (B, H, W, C) -> (B, groups, Ns, 2)."""
        assert self.offset is not None
        is_2022, reach, groups = self.config.variant == "2022", self.config.reach, []
        for q in part_of(self.qkv, x, 0, self.dim).chunk(self.groups, dim=-1):
            offsets, points = self.offset(q.permute(0, 3, 1, 2)), []
            for place in itertools.product(*map(range, offsets.shape[1:3])):
                for axis, (index, count) in enumerate(zip(place, offsets.shape[1:3], strict=True)):
                    span = count if is_2022 else max(1, count - 1)
                    centre, offset = (index + 0.5) * 2 / span - 1, offsets[:, place[0], place[1], axis]
                    if reach is not None:
                        points.append(centre + reach / span * offset.tanh())
                    elif not self.config.keeps_on_map:
                        points.append(centre + offset)
                    elif is_2022:
                        points.append((centre + offset).tanh())
                    else:
                        points.append((centre + offset).clamp(-1, 1))
            groups.append(torch.stack(points, -1).unflatten(-1, (-1, 2)))
        return torch.stack(groups, 1)

    def _slow_samples(self, x: Tensor) -> Tensor:
        images = []
        for image, points in zip(x, self.slow_points(x), strict=True):
            maps = image.chunk(self.groups, dim=-1)
            images.append(torch.cat([interpolate(maps[g], *points[g].unbind(-1)) for g in range(self.groups)], -1))
        return torch.stack(images)

    def _slow_pool(self, x: Tensor) -> Tensor:
        down, across = (range(0, count * self.stride, self.stride) for count in self.samples(*x.shape[1:3]))
        windows = [x[:, i : i + self.stride, j : j + self.stride] for i in down for j in across]
        return torch.stack([window.mean((1, 2)) for window in windows], 1)

    def slow_bias(self, x: Tensor) -> Tensor | None:
        """Bias of every logit, (B or 1, heads, N, Ns), or None."""
        if self.config.position == "fixed":
            return self._slow_fixed_bias(x)
        if self.config.position not in ("rpb", "log"):
            return None
        rows, cols = (torch.arange(side, dtype=x.dtype) for side in x.shape[1:3])
        if self.config.variant == "2022":
            rows, cols = ((2 * line + 1) / len(line) - 1 for line in (rows, cols))
        else:
            rows, cols = (2 * line / (len(line) - 1) - 1 if len(line) > 1 else line for line in (rows, cols))
        queries = torch.cartesian_prod(rows, cols)
        images = []
        for points in self.slow_points(x):
            biases = [self._slow_move_bias(g, queries[:, None] - points[g]) for g in range(self.groups)]
            images.append(torch.cat(biases, -1).movedim(-1, 0))
        return torch.stack(images)

    def _slow_move_bias(self, group: int, moves: Tensor) -> Tensor:
        """Bias of one group's heads: (N, Ns, 2) -> (N, Ns, heads of the group)."""
        if self.config.position == "log":
            first, _, last = self.position
            logarithm = moves.sign() * (4 * moves.abs() + 1).log2() / math.log2(8)
            return (logarithm @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T
        table = self.position.chunk(self.groups)[group].permute(1, 2, 0)
        return interpolate(table, moves[..., 0] / 2, moves[..., 1] / 2)

    def _slow_fixed_bias(self, x: Tensor) -> Tensor:
        own = self.config.table_map
        table = self.position.unflatten(2, self.samples(*own)).unflatten(1, own)  # (heads, H, W, Hk, Wk) of its map
        sizes = x.shape[1:3], self.samples(x.shape[1], x.shape[2])
        queries, keys = (
            torch.cartesian_prod(*(torch.linspace(-1, 1, side, dtype=x.dtype) for side in size)) for size in sizes
        )
        by_query = interpolate(table.permute(1, 2, 0, 3, 4), *queries.unbind(-1))  # (N, heads, Hk, Wk)
        return interpolate(by_query.permute(2, 3, 1, 0), *keys.unbind(-1)).permute(1, 2, 0)[None]


def interpolate(values: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values, 0 beyond the map: (H, W, ...), y and x in -1..1 (*M) -> (*M, ...)."""
    height, width = values.shape[:2]
    row, col = (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1)
    total = torch.zeros((), dtype=values.dtype)
    for near_row in (row.floor(), row.floor() + 1):
        for near_col in (col.floor(), col.floor() + 1):
            inside = (near_row >= 0) & (near_row < height) & (near_col >= 0) & (near_col < width)
            share = (1 - (row - near_row).abs()) * (1 - (col - near_col).abs()) * inside
            neighbour = values[near_row.long().clamp(0, height - 1), near_col.long().clamp(0, width - 1)]
            total = total + share.reshape(*share.shape, *[1] * (values.dim() - 2)) * neighbour
    return total


def bilinear_shares(points: Tensor, height: int, width: int) -> Tensor:
    """Share that each token of a map has in a sample: (..., 2) as (row, column) in tokens -> (..., H, W)."""
    rows, cols = (
        (1 - (points[..., axis, None] - torch.arange(side, device=points.device)).abs()).clamp(min=0)
        for axis, side in enumerate((height, width))
    )
    return rows[..., :, None] * cols[..., None, :]
