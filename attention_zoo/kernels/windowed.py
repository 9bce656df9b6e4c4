"""The fast path of attention that is a softmax with a bias inside regions: windows, grids and groups that divide a map.

Tokens are put in the order of their regions before they are projected, so that partition, shift and projection cost one
copy of the map. What this path does not cover (padding, recorded calls) is left to `PartitionAttention`.
"""

import torch
from torch import Tensor

from attention_zoo.kernels.caching import Kept, holds_values
from attention_zoo.kernels.packed import kinds_of, order_of, packed_attention, reorder
from attention_zoo.partitioned import PartitionAttention, PartitionConfig, region_offsets
from attention_zoo.regions import Partition


class RegionAttention(PartitionAttention):
    """One softmax with a bias inside the regions of one cut, whose heads have queries, keys and values of one width."""

    def __init__(self, dim: int, num_heads: int, config: PartitionConfig) -> None:
        """Keep the biases of a few sizes."""
        super().__init__(dim, num_heads, config)
        self._biases = Kept(8)

    def bias_sources(self) -> tuple[Tensor, ...]:
        """Parameters that `offset_bias` reads."""
        return ()

    def bias_of_kinds(self, cut: Partition, like: Tensor) -> Tensor | None:
        """Bias of the pairs of a region of each kind, -inf where they may not meet: (K, heads, T, T), or None."""

        def make() -> Tensor | None:
            table = self.offset_bias(cut, *region_offsets(cut, like.device))
            apart = kinds_of(cut, like.device).apart
            if apart is None:
                return None if table is None else table.to(like.dtype)[None].contiguous()
            bias = torch.zeros((), dtype=like.dtype, device=like.device) if table is None else table.to(like.dtype)
            bias = bias.expand(len(apart), self.num_heads, -1, -1) if table is not None else bias.expand_as(apart)
            return bias.masked_fill(apart, float("-inf"))

        return self._biases.get((cut, like.dtype, like.device), make, self.bias_sources())

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens inside regions: (B, H, W, C) -> same."""
        cut = self.partition(*x.shape[1:3])
        if cut.is_padded or torch.compiler.is_compiling() or not holds_values(x):
            return super().fast(x)
        if self.lepe is not None:
            qkv = self.qkv(x)
            y = self._put_back(self._mix_in_order(self._in_order(qkv, cut), cut, len(x)), cut, len(x))
            return self.finish(y, qkv[..., 2 * self.dim :])
        projected: Tensor = self.proj(self._mix_in_order(self.qkv(self._in_order(x, cut)), cut, len(x)))
        return self._put_back(projected, cut, len(x))

    def _in_order(self, x: Tensor, cut: Partition) -> Tensor:
        """Tokens of a map, region after region, regions of one kind together: (B, H, W, C') -> (B R T, C')."""
        if not cut.is_rolled:
            return cut.split(x).flatten(0, 2)
        order = order_of(cut, len(x), x.device)
        return reorder(x.flatten(0, 2), order.rows, order.back)

    def _put_back(self, rows: Tensor, cut: Partition, batch: int) -> Tensor:
        """Undo `_in_order`."""
        if not cut.is_rolled:
            return cut.join(rows.reshape(batch, cut.count, cut.tokens, -1))
        order = order_of(cut, batch, rows.device)
        return reorder(rows, order.back, order.rows).reshape(batch, cut.height, cut.width, -1)

    def _mix_in_order(self, qkv: Tensor, cut: Partition, batch: int) -> Tensor:
        """Mix regions, tokens in order: (B R T, 3 C) -> (B R T, C)."""
        regions = qkv.reshape(-1, cut.tokens, 3, self.num_heads, self.dim // self.num_heads)
        counts = order_of(cut, batch, qkv.device).counts if cut.is_rolled else (len(regions),)
        return packed_attention(regions, self.scale, self.bias_of_kinds(cut, qkv), counts).reshape(-1, self.dim)
