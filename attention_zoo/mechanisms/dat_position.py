"""Points of deformable attention: the network of their offsets, where they lie, and what that adds to a logit.

Xia et al., arXiv:2201.00520, section 3.2 (table of relative biases), and the code of arXiv:2309.01430 (network on the
logarithm of the displacement, dense table, depth-wise convolution of q); see dat.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_WIDTH = 32
"""Hidden channels of the network on the logarithm of the displacement."""


class OffsetNetwork(nn.Module):
    """theta_offset: queries of one group, (B, C, H, W) -> offsets as (y, x), (B, Hk, Wk, 2)."""

    def __init__(self, dim: int, kernel: int, stride: int, padding: int) -> None:
        """Depth-wise convolution, norm, GELU, and two channels without a bias, so that points start at the grid."""
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, stride, padding, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.point = nn.Conv2d(dim, 2, 1, bias=False)

    def forward(self, q: Tensor) -> Tensor:
        """Read the offsets off the queries."""
        features = F.gelu(self.norm(self.conv(q).permute(0, 2, 3, 1)))
        offsets: Tensor = self.point(features.permute(0, 3, 1, 2))
        return offsets.permute(0, 2, 3, 1)


def span(variant: str, count: int) -> int:
    """Cells of a side in 2022, gaps between their centres in 2023; offsets count in 1 / span."""
    return count if variant == "2022" else max(1, count - 1)


def lines(variant: str, height: int, width: int, like: Tensor, *, queries: bool = False) -> list[Tensor]:
    """Where the rows and the columns of the reference points, or of the queries, lie, the map from -1 to 1."""
    sides = []
    for count in (height, width):
        start = 0.0 if queries and variant == "2023" and count > 1 else 0.5
        index = torch.arange(count, dtype=like.dtype, device=like.device)
        sides.append(2 * (index + start) / span(variant, count) - 1)
    return sides


def position_term(
    config: Any, dim: int, num_heads: int, groups: int, samples: Callable[[int, int], tuple[int, int]]
) -> nn.Parameter | nn.Module | None:
    """Weights of the position term of a configuration, None where it has none."""
    if config.position == "dwc":
        return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
    if config.position == "log":
        return nn.Sequential(nn.Linear(2, LOG_WIDTH), nn.ReLU(), nn.Linear(LOG_WIDTH, num_heads // groups, bias=False))
    if config.position == "none":
        return None
    height, width = config.table_map
    if config.position == "rpb":
        sides = 2 * height - 1, 2 * width - 1
    else:
        down, across = samples(height, width)
        sides = height * width, down * across
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, *sides), std=0.01))


def displacements(points: Tensor, queries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows and columns from points to queries: (B, groups, Hk, Wk, 2) -> (B, groups, H, Ns), (B, groups, W, Ns)."""
    y, x = points.flatten(2, 3)[:, :, None].unbind(-1)  # (B, groups, 1, Ns)
    return queries[0][:, None] - y, queries[1][:, None] - x


def bias_by_table(table: Tensor, points: Tensor, queries: list[Tensor]) -> Tensor:
    """Sample a table, (heads, 2 H - 1, 2 W - 1), at the displacements: -> (B, heads, N, Ns)."""
    batch, groups = points.shape[:2]
    tables = table.to(points.dtype).unflatten(0, (groups, -1)).expand(batch, -1, -1, -1, -1)
    dy, dx = _for_all_queries(*(move / 2 for move in displacements(points, queries)))
    at = torch.stack((dx, dy), -1).flatten(2, 3).flatten(0, 1)
    bias = F.grid_sample(tables.flatten(0, 1), at, align_corners=True)  # (B groups, heads of a group, N, Ns)
    return bias.unflatten(0, (-1, groups)).flatten(1, 2)


def bias_by_network(network: nn.Module, points: Tensor, queries: list[Tensor]) -> Tensor:
    """Evaluate a network at the logarithms of the displacements: -> (B, heads, N, Ns)."""
    dy, dx = (torch.sign(move) * torch.log2(1 + 4 * move.abs()) / 3 for move in displacements(points, queries))
    moves = torch.stack(_for_all_queries(dy, dx), -1).flatten(2, 3)  # (B, groups, N, Ns, 2)
    by_group: Tensor = network(moves.to(next((p.dtype for p in network.parameters()), torch.float32)))
    return by_group.movedim(-1, 2).flatten(1, 2)


def _for_all_queries(dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat what depends on the row or the column of a query alone: (..., H, Ns), (..., W, Ns) -> (..., H, W, Ns).

    Rows and columns are worked on apart as long as possible, since there are H + W of them and N = H W queries.
    """
    size = *dy.shape[:-1], dx.shape[-2], dx.shape[-1]
    return dy.unsqueeze(-2).expand(size), dx.unsqueeze(-3).expand(size)


def stretched(
    table: Tensor, own: tuple[int, int], own_samples: tuple[int, int], size: tuple[int, int], samples: tuple[int, int]
) -> Tensor:
    """Resize a dense table of biases, (heads, N, Ns) of its own map, to another map: -> (1, heads, N, Ns)."""
    by_query = _stretch(table, own_samples, samples)
    return _stretch(by_query.mT, own, size).mT[None]


def _stretch(table: Tensor, own: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize maps that lie flat in the last axis, bilinearly, corner to corner: (heads, M, h w) -> (heads, M, H W)."""
    if own == size:
        return table
    return F.interpolate(table.unflatten(-1, own), size, mode="bilinear", align_corners=True).flatten(-2)
