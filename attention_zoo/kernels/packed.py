"""Many small attentions at once: the tokens of a map in the order of its regions, and a softmax over packed q, k, v.

A region lies where its tokens lie together, so attention inside regions needs the tokens gathered once: one copy by an
index that undoes shift, step and cut together. Regions that a seam parts alike are of one kind and lie together too,
so that one bias serves a whole run of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_zoo.kernels.caching import Kept
from attention_zoo.regions import Partition, joined

_ORDERS, _KINDS = Kept(32), Kept(32)
_MOST_KEPT = 1 << 17
"""Tokens of an order above which it is made anew rather than kept, 1 MiB."""
_MOST_SAVED = 128
"""Tokens of a region above which the weights are computed again in the backward pass rather than saved."""


@dataclass(frozen=True)
class Kinds:
    """The kinds of regions that a seam or padding makes of a cut.

    `of_region` (R,) says which kind a region is of, `apart` (K, 1, T, T) which tokens of a region may not read each
    other, or None where all may; there is one kind then.
    """

    of_region: Tensor
    apart: Tensor | None
    counts: tuple[int, ...]


def kinds_of(cut: Partition, device: torch.device) -> Kinds:
    """Tell the regions of a cut apart by what may be read in them; padded tokens read each other, nothing else."""

    def make() -> Kinds:
        sides = cut.sides(torch.device("cpu"))
        if sides is None:
            return Kinds(torch.zeros(cut.count, dtype=torch.long, device=device), None, (cut.count,))
        kinds, of_region, counts = sides.unique(dim=0, return_inverse=True, return_counts=True)
        apart = kinds[:, None, :, None] != kinds[:, None, None, :]
        return Kinds(of_region.to(device), apart.to(device), tuple(counts.tolist()))

    return _KINDS.get((cut, device), make)


@dataclass(frozen=True)
class Order:
    """Where the tokens of a batch of unpadded maps come from, region after region, and where they go back to.

    `rows` (B R T,) are rows of the flattened batch: all regions of the first kind in all images, then the next kind.
    """

    rows: Tensor
    back: Tensor
    counts: tuple[int, ...]


def order_of(cut: Partition, batch: int, device: torch.device) -> Order:
    """Put the tokens of `batch` maps in the order of their regions."""

    def make() -> Order:
        kinds, tokens = kinds_of(cut, device), cut.height * cut.width
        index = torch.arange(tokens, device=device).reshape(1, cut.height, cut.width, 1)
        regions = cut.split(index)[0, :, :, 0][kinds.of_region.argsort(stable=True)]  # (R, T)
        first = torch.arange(batch, device=device)[:, None, None] * tokens
        rows = torch.cat([(first + part).flatten() for part in regions.split(kinds.counts)])
        back = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows), device=device))
        return Order(rows, back, tuple(batch * count for count in kinds.counts))

    is_small = batch * cut.height * cut.width <= _MOST_KEPT
    return _ORDERS.get((cut, batch, device), make) if is_small else make()


class _Reorder(torch.autograd.Function):
    """Rows in another order; the gradient is the same copy the other way, where torch would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def reorder(rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Take rows in an order, whose inverse is `back`: (M, C) -> (M, C)."""
    return _Reorder.apply(rows, order, back)  # type: ignore[no-any-return]


class _Packed(torch.autograd.Function):
    """Batched products around one softmax, the weights saved.

    Fused attention computes the weights of a small region again in its backward pass, and does not run at all where
    the bias takes a gradient; here that one is a sum over the gradient of the logits.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float, bias: Tensor | None, counts: tuple[int, ...]) -> Tensor:
        count, tokens, _, heads, _ = qkv.shape
        parts = qkv.permute(2, 0, 3, 1, 4).reshape(3, count * heads, tokens, -1)
        q, k, v = parts.unbind(0)
        if bias is None:
            weights = torch.bmm(q, k.mT).mul_(scale)
        else:
            weights = q.new_empty(count, heads, tokens, tokens)
            for part, own in zip(weights.split(counts), bias, strict=True):
                part.copy_(own)
            weights = weights.flatten(0, 1).baddbmm_(q, k.mT, alpha=scale)
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(parts, weights)
        ctx.heads, ctx.scale, ctx.counts = heads, scale, counts
        y: Tensor = torch.bmm(weights, v).unflatten(0, (count, heads)).transpose(1, 2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        parts, weights = ctx.saved_tensors
        q, k, v = parts.unbind(0)
        dy = gradient.transpose(1, 2).flatten(0, 1)
        grads = torch.empty_like(parts)
        torch.bmm(weights.mT, dy, out=grads[2])
        dlogits = torch.bmm(dy, v.mT)
        torch._softmax_backward_data(dlogits, weights, -1, weights.dtype, grad_input=dlogits)
        torch.bmm(dlogits, k, out=grads[0])
        torch.bmm(dlogits.mT, q, out=grads[1])
        grads[:2].mul_(ctx.scale)
        dbias = None
        if ctx.needs_input_grad[2]:
            dbias = torch.stack([part.sum(0) for part in dlogits.unflatten(0, (-1, ctx.heads)).split(ctx.counts)])
        return grads.unflatten(1, (-1, ctx.heads)).permute(1, 3, 0, 2, 4), None, dbias, None


def packed_attention(qkv: Tensor, scale: float, bias: Tensor | None, counts: tuple[int, ...]) -> Tensor:
    """Attend inside each region: (M, T, 3, heads, D) -> (M, T, heads, D).

    Args:
        qkv: queries, keys and values, region after region.
        scale: factor on the logits.
        bias: added to the logits, for regions of each kind: (K, heads, T, T), or None.
        counts: regions of each kind in their order, K numbers of sum M.
    """
    if _is_better_saved(qkv, bias):
        return _Packed.apply(qkv, scale, bias, counts)  # type: ignore[no-any-return]
    if bias is None:
        return _fused(qkv, scale, None)
    mixed = [_fused(part, scale, own[None]) for part, own in zip(qkv.split(counts), bias, strict=True)]
    return joined(mixed)


def _fused(qkv: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def _is_better_saved(qkv: Tensor, bias: Tensor | None) -> bool:
    learns = torch.is_grad_enabled() and (qkv.requires_grad or (bias is not None and bias.requires_grad))
    is_plain = qkv.device.type == "cpu" and qkv.dtype in (torch.float32, torch.float64)
    is_plain = is_plain and not torch.is_autocast_enabled("cpu")
    return learns and is_plain and qkv.shape[1] <= _MOST_SAVED and not torch.compiler.is_compiling()
