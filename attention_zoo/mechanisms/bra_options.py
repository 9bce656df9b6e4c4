"""Options of the published code of bi-level routing attention beyond algorithm 1: soft, embedded and pooled routing.

Zhu et al., arXiv:2303.08810; the code is BiFormer's `bra_legacy.py`. Routes may be weighed by a softmax of their
affinities (soft), learned through it (diff), embedded by a linear layer (param), or chosen by each head alone; the keys
and values of a region may be pooled into cells.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.padding import PartitionConfig
from attention_zoo.partitioned import PartitionAttention, keys_on_map
from attention_zoo.regions import Partition, coordinates, from_heads, to_heads
from attention_zoo.routing import region_affinity


@dataclass(frozen=True, kw_only=True)
class RoutingOptions(PartitionConfig):
    """All off by default: hard routes, one choice for all heads, tokens as keys."""

    head_routing: bool = field(default=False, metadata={"help": "each head chooses its own regions"})
    soft_routing: bool = field(default=False, metadata={"help": "weigh routed keys and values by softmax of affinity"})
    diff_routing: bool = field(default=False, metadata={"help": "let gradients through soft routing to q and k"})
    param_routing: bool = field(default=False, metadata={"help": "embed mean q and k by a linear layer to route"})
    kv_pool: Literal["avg", "max"] | None = field(
        default=None, metadata={"help": "pool the keys and values of each region; default: not"}
    )
    kv_per_side: int | None = field(default=None, metadata={"help": "pooled tokens per side of a region (adaptive)"})
    kv_ratio: int | None = field(default=None, metadata={"help": "tokens per side that are pooled into one"})

    def __post_init__(self) -> None:
        """Reject options that exclude each other.

        Raises:
            ValueError: a number below 1, both spellings of a pooling, or an option without what it needs.
        """
        super().__post_init__()
        for name in ("kv_per_side", "kv_ratio"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if (self.kv_pool is None) != (self.kv_per_side is None and self.kv_ratio is None) or (
            self.kv_per_side is not None and self.kv_ratio is not None
        ):
            raise ValueError(
                f"kv_pool=avg|max takes one of kv_per_side and kv_ratio, got kv_pool={self.kv_pool}, "
                f"kv_per_side={self.kv_per_side}, kv_ratio={self.kv_ratio}"
            )
        if self.diff_routing and not self.soft_routing:
            raise ValueError("diff_routing=True needs soft_routing=True: a hard choice of regions has no gradient")

    @property
    def is_plain(self) -> bool:
        """Whether it is one masked softmax: hard routes to keys that are tokens."""
        return not self.soft_routing and self.kv_pool is None

    def keys_of_region(self, cut: Partition) -> int:
        """Keys that a region holds: its tokens, or the cells that they are pooled into."""
        if self.kv_per_side is not None:
            return self.kv_per_side**2
        ratio = self.kv_ratio or 1
        return (cut.rows // ratio) * (cut.cols // ratio)

    def cells(self, cut: Partition, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Tokens of the map that are pooled into one key each, padding in none, and the region of each key, (K,)."""
        row, col = coordinates(cut.height, cut.width, device)
        region = cut.locate(row, col)
        row, col = (row + cut.top) % cut.rows, (col + cut.left) % cut.cols
        cells, regions = [], []
        for index, (top, bottom), (left, right) in itertools.product(
            range(cut.count), self._spans(cut.rows), self._spans(cut.cols)
        ):
            is_inside = (region == index) & (row >= top) & (row < bottom) & (col >= left) & (col < right)
            if is_inside.any():
                cells.append(is_inside.nonzero().flatten())
                regions.append(index)
        return cells, torch.tensor(regions, device=device)

    def _spans(self, length: int) -> list[tuple[int, int]]:
        """First place and end of each cell along a side of a region: adaptive cells may overlap."""
        if self.kv_per_side is not None:
            side = self.kv_per_side
            return [(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
        ratio = self.kv_ratio or 1
        return [(i * ratio, (i + 1) * ratio) for i in range(length // ratio)]

    def pooled(self, part: Tensor, cells: list[Tensor]) -> Tensor:
        """Keys or values of the cells, one by one: (B, heads, N, D) -> (B, heads, K, D)."""
        of_cells = [part[:, :, cell] for cell in cells]
        return torch.stack([cell.amax(2) if self.kv_pool == "max" else cell.mean(2) for cell in of_cells], 2)


class RoutedAttention(PartitionAttention):
    """Affinity of regions, and the oracle of attention along routes, with every option."""

    def __init__(self, dim: int, num_heads: int, config: RoutingOptions, *, qk_dim: int | None = None) -> None:
        """Routing has no weights, unless it is told to embed."""
        super().__init__(dim, num_heads, config, qk_dim=qk_dim)
        self.router = nn.Linear(self.qk_dim, self.qk_dim) if config.param_routing else None
        if self.router is not None and not config.soft_routing:
            # no gradient passes a hard choice, and DDP waits for that of every weight that takes one
            self.router.requires_grad_(False)

    def affinity(self, mean_q: Tensor, mean_k: Tensor, valid: Tensor | None) -> Tensor:
        """How well regions suit each other, (B, 1 or heads, R, R), from mean q and k, (B, R, Cqk)."""
        if self.router is not None:
            mean_q, mean_k = self.router(mean_q), self.router(mean_k)
        heads = self.num_heads if self.config.head_routing else 1
        return region_affinity(to_heads(mean_q, heads), to_heads(mean_k, heads), valid)

    def topk(self, cut: Partition) -> int:
        """Regions that each region attends to on this partition."""
        raise NotImplementedError(f"{type(self).__name__} has no topk")

    def slow_routes(self, x: Tensor, cut: Partition) -> tuple[Tensor, Tensor]:
        """Oracle of the routing: affinities of the chosen regions and their indices, (B, 1 or heads, R, K)."""
        region = cut.locate(*coordinates(cut.height, cut.width, x.device))
        member = (region == torch.arange(cut.count, device=x.device)[:, None]).to(x.dtype)  # (R, N)
        q, k, _ = self.project(x)
        tokens = member.sum(1, keepdim=True)
        means = [member @ from_heads(part) / tokens.clamp(min=1) for part in (q, k)]
        if not self.config.diff_routing:
            means = [mean.detach() for mean in means]
        if self.router is not None:
            means = [self.router(mean) for mean in means]
        heads = self.num_heads if self.config.head_routing else 1
        mean_q, mean_k = (mean.unflatten(-1, (heads, -1)).movedim(2, 1) for mean in means)
        affinity = (mean_q @ mean_k.mT).masked_fill(tokens[:, 0] == 0, float("-inf"))
        chosen = affinity.topk(self.topk(cut))
        return chosen.values, chosen.indices

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax under `connectivity`; with soft routing or pooled keys, over the keys of all regions."""
        cut = self.partition(x.shape[1], x.shape[2])
        if self.config.is_plain or self.reads_padding(cut):
            return super().weights(x, queries)
        q, k, _ = self.project(x)
        of_query = of_key = cut.locate(*coordinates(cut.height, cut.width, x.device))
        if self.config.kv_pool is not None:
            cells, of_key = self.config.cells(cut, x.device)
            k = self.config.pooled(k, cells)
        if queries is not None:
            q, of_query = q[:, :, queries], of_query[queries]
        affinity, routes = self.slow_routes(x, cut)
        shares = (affinity * self.scale).softmax(-1) if self.config.soft_routing else torch.ones_like(affinity)
        nothing = torch.zeros(*routes.shape[:3], cut.count, dtype=x.dtype, device=x.device)
        factors, reads = nothing.scatter(3, routes, shares), nothing.bool().scatter(3, routes, True)
        factors, reads = (part[:, :, of_query][..., of_key] for part in (factors, reads))
        logits = q @ k.mT * self.scale * factors
        # soft routes weigh keys and values alike
        return logits.masked_fill(~reads, torch.finfo(x.dtype).min).softmax(-1) * reads * factors

    def values(self, x: Tensor) -> Tensor:
        """Values of the tokens, or of the cells that they are pooled into."""
        cut = self.partition(x.shape[1], x.shape[2])
        if self.config.kv_pool is None or self.reads_padding(cut):
            return super().values(x)
        return self.config.pooled(self.project(x)[2], self.config.cells(cut, x.device)[0])

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE of the values as they are before any pooling."""
        return super().value_term(x, v if self.config.kv_pool is None else self.project(x)[2])

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on the tokens of the map, a cell's spread evenly over its tokens."""
        cut = self.partition(x.shape[1], x.shape[2])
        if self.config.kv_pool is None:
            return super().on_map(x, weights)
        if self.reads_padding(cut):
            return keys_on_map(self.on_map(cut.pad(x), weights).flatten(3), cut)
        cells, _ = self.config.cells(cut, x.device)
        shares = weights.new_zeros(len(cells), cut.height * cut.width)
        for share, cell in zip(shares, cells, strict=True):
            share[cell] = 1 / len(cell)
        return (weights @ shares).unflatten(-1, (cut.height, cut.width))
