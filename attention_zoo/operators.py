"""Rules of our own for operators that fvcore or torch drop or miscount, and which operators compute at all."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch

Handle = Callable[[list[Any], list[Any]], int]
"""MACs of a call, from the traced values that go in and come out."""


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _product(left: int, right: int) -> Handle:
    """Count the matrix product of two inputs, their batch axes broadcast; a vector has one row, or one column."""

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        first, second = _shape(inputs[left]), _shape(inputs[right])
        rows, inner = [1, *first][-2:]
        columns = second[-1] if len(second) > 1 else 1
        batch: list[int] = list(torch.broadcast_shapes(first[:-2], second[:-2]))
        return prod(batch) * rows * inner * columns

    return handle


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value, result = (_shape(v) for v in (*inputs[:3], outputs[0]))
    # the result has the broadcast batch axes and, with grouped queries, the heads of the queries
    return prod(result[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    if "->" not in equation or len(shapes) > 2:
        raise NotImplementedError(f"einsum {equation!r}: MACs are counted for at most two operands and with '->'")
    sizes: dict[str, int] = {}
    terms = []
    for term, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        hidden = len(shape) - len(term.replace("...", ""))
        # axes behind an ellipsis are aligned at their end; digits cannot be axes that have a name
        terms.append(term.replace("...", "".join(str(i) for i in reversed(range(hidden)))))
        sizes |= {axis: max(size, sizes.get(axis, 1)) for axis, size in zip(terms[-1], shape, strict=True)}
    kept = {axis for axis in sizes if axis.isdigit() or axis in equation.partition("->")[2]}
    summed = set.intersection(*map(set, terms)) - kept
    # a sum over one operand alone comes first; without an axis summed over both it is an element-wise product
    return prod(sizes[axis] for axis in kept | summed) if len(terms) == 2 and summed else 0


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> int:
    images, _, *space = _shape(outputs[0])
    return images * prod(space) * prod(_shape(inputs[1]))


PRODUCTS: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::baddbmm": _product(1, 2),
    "aten::matmul": _product(0, 1),
    "aten::mv": _product(0, 1),
    "aten::dot": _product(0, 1),
    "aten::einsum": _einsum,
    "aten::_convolution_mode": _convolution_mode,
}

# operations per element read and per element written
OTHERS = {
    "aten::avg_pool2d": (1, 0),
    "aten::max_pool2d": (1, 0),
    "aten::mean": (1, 0),
    "aten::rms_norm": (5, 0),
    "aten::upsample_bicubic2d": (0, 16),
}

MACS = {
    *("_convolution_mode", "addmm", "baddbmm", "bmm", "conv", "dot", "einsum", "linear", "matmul", "mm", "mv"),
    "scaled_dot_product_attention",
}

TORCH_FORMULAS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), lambda left, *_, out_shape: 2 * prod(left))

# Compute nothing, or element by element, though torch tags them neither as views nor as point-wise.
_UNTAGGED = {
    *("__or__", "__xor__", "dropout", "dropout_", "empty_like", "feature_dropout", "fill_", "hardswish", "hardtanh"),
    *("im2col", "index_select", "linspace", "masked_fill_", "meshgrid", "one_hot", "ones_like", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "repeat", "repeat_interleave", "scalar_tensor", "scatter", "scatter_", "take_along_dim"),
    *("tile", "tril", "triu"),
}


def computes(kind: str) -> bool:
    """Whether an operator is neither element-wise nor a move of data; one that torch does not know computes."""
    namespace, _, name = kind.partition("::")
    packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    aliases = [a.alias_info for op in overloads for a in op._schema.arguments]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return not (name in _UNTAGGED or is_view or any(torch.Tag.pointwise in op.tags for op in overloads))
