"""Oracle of position-sensitive axial attention: pair by pair along each axis, in any dtype; see axial_deeplab.py."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.regions import to_heads

Layer = tuple[str, nn.Module, Any]
"""Axis (`height` or `width`), projection, and attention along lines of that axis."""


class LayeredAttention(Attention):
    """Position-sensitive attention in layers, one along each axis; a mechanism says which."""

    def layers(self) -> list[Layer]:
        """Layers in the order in which they run."""
        raise NotImplementedError(f"{type(self).__name__} has no layers")

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle, layer by layer: (B, H, W, C) -> same."""
        return self.proj(self._slow(x, len(self.layers())))

    def _slow(self, x: Tensor, count: int) -> Tensor:
        """What the first layers return."""
        for axis, qkv, attention in self.layers()[:count]:
            weights, v, by_position = pair_by_pair(attention, to_lines(qkv(x), axis))
            by_value = (weights[:, :, None] * v[..., None, :]).sum(-1)
            x = from_lines(attention.join(by_value, by_position), axis, x)
        return x

    def _last(self, x: Tensor) -> tuple[str, Any, Tensor, Tensor, Tensor]:
        """Axis and attention of the last layer, its weights, its values and what r^v gives, by the oracle."""
        axis, qkv, attention = self.layers()[-1]
        given = self._slow(x, len(self.layers()) - 1)
        return axis, attention, *pair_by_pair(attention, to_lines(qkv(given), axis))

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights of the last layer: (B, heads, N or queries, N)."""
        axis, _, weights, _, _ = self._last(x)
        by_line = weights.unflatten(0, (len(x), -1)).movedim(1, -1).diag_embed()  # (B, heads, L, L, lines, lines)
        order = (2, 4, 3, 5) if axis == "height" else (4, 2, 5, 3)
        dense = by_line.permute(0, 1, *order).flatten(4).flatten(2, 3)
        return dense if queries is None else dense[:, :, queries]

    def values(self, x: Tensor) -> Tensor:
        """Values of the last layer times the factor of their batch norm in evaluation: (B, heads, N, D)."""
        axis, attention, _, v, _ = self._last(x)
        none = torch.zeros_like(v)
        return self._tokens(attention.join(v, none) - attention.join(none, none), axis, x)

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """What r^v gives, and the summand of the batch norm in evaluation: (B, heads, N, D)."""
        axis, attention, _, _, by_position = self._last(x)
        return self._tokens(attention.join(torch.zeros_like(by_position), by_position), axis, x)

    def _tokens(self, lines: Tensor, axis: str, x: Tensor) -> Tensor:
        return to_heads(from_lines(lines, axis, x).flatten(1, 2), self.num_heads)


def pair_by_pair(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n, heads, L, L), v and what r^v gives, (n, heads, D, L), of lines (n, 2 C, L)."""
    q, k, v = attention.split(qkv)
    r_q, r_k, r_v = attention.terms(qkv.shape[2])
    query, key = q[..., :, None], k[..., None, :]
    weights = attention.softmax((query * key).sum(2), (query * r_q).sum(2), (key * r_k.mT).sum(2))
    return weights, v, (weights[:, :, None] * r_v).sum(-1)


def to_lines(x: Tensor, axis: str) -> Tensor:
    """Cut a map into lines along an axis: (B, H, W, C) -> (B lines, C, L)."""
    return (x.transpose(1, 2) if axis == "height" else x).flatten(0, 1).mT


def from_lines(y: Tensor, axis: str, x: Tensor) -> Tensor:
    """Put lines together to a map of the size of x: (B lines, C, L) -> (B, H, W, C)."""
    batch, height, width, _ = x.shape
    y = y.mT.unflatten(0, (batch, width if axis == "height" else height))
    return y.transpose(1, 2) if axis == "height" else y
