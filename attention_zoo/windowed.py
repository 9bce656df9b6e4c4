"""The fast path of attention that is a softmax with a bias inside regions: windows, grids and groups that divide a map.

Tokens are put in the order of their regions before they are projected, so that partition, shift and projection cost one
copy of the map. Regions are independent from there on, so without gradients a CPU takes them in pieces that stay in its
cache. What this path does not cover (padding, recorded calls) is left to `PartitionAttention`.
"""

import torch
from torch import Tensor

from attention_zoo.caching import Kept, holds_values
from attention_zoo.packed import Order, counts_between, kinds_of, order_of, packed_attention, reorder, tokens_of_a_piece
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
        order = order_of(cut, len(x), x.device)
        if self.lepe is not None:
            qkv = self.qkv(x)
            y = self._mix_in_order(reorder(qkv.flatten(0, 2), order.rows, order.back), cut, order.counts)
            return self.finish(reorder(y, order.back, order.rows).reshape(x.shape), qkv[..., 2 * self.dim :])
        if torch.is_grad_enabled() or x.device.type != "cpu":
            qkv = self.qkv(reorder(x.reshape(-1, self.dim), order.rows, order.back))
            y = self.proj(self._mix_in_order(qkv, cut, order.counts))
            return reorder(y, order.back, order.rows).reshape(x.shape)
        return self._piece_by_piece(x, cut, order)

    def _mix_in_order(self, qkv: Tensor, cut: Partition, counts: tuple[int, ...]) -> Tensor:
        """Mix regions, tokens in order, so many of each kind: (M T, 3 C) -> (M T, C)."""
        regions = qkv.reshape(-1, cut.tokens, 3, self.num_heads, self.dim // self.num_heads)
        return packed_attention(regions, self.scale, self.bias_of_kinds(cut, qkv), counts).reshape(-1, self.dim)

    def _piece_by_piece(self, x: Tensor, cut: Partition, order: Order) -> Tensor:
        rows = x.reshape(-1, self.dim)
        mixed: Tensor | None = None
        tokens = tokens_of_a_piece(3 * self.dim, cut.tokens, x)
        for index, piece in enumerate(order.rows.split(tokens)):
            regions = tokens // cut.tokens
            counts = counts_between(order.counts, index * regions, (index + 1) * regions)
            y = self.proj(self._mix_in_order(self.qkv(rows.index_select(0, piece)), cut, counts))
            mixed = y.new_empty(rows.shape) if mixed is None else mixed
            mixed.index_copy_(0, piece, y)
        assert mixed is not None
        return mixed.reshape(x.shape)
