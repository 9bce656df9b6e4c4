"""Arithmetic and parameters of one image, in evaluation mode.

Protocol 1. MACs (multiply-accumulates of matrix products and convolutions, biases left out) are counted three
times, and the three must agree to the last one: the closed form `model.macs`, fvcore's trace (the recorded
counter, with handles of our own for what it drops or miscounts) and torch's FlopCounterMode (1 MAC = 2 FLOPs).
Both counters run a copy on the `meta` device, which needs no memory; a model that cannot run there, on the CPU.
Normalisation, pooling and sampling are estimates by fvcore's rules: 2 per element for an inference batch norm, 5
for another affine norm (4 without affine), 1 per input element in pooling and means, 4 per output of bilinear sampling.
Every other operator that is neither element-wise nor a mere move of data is listed by name, uncounted.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Handle = Callable[[list[Any], list[Any]], int]
ByModule = dict[str, Counter[str]]


class CountMismatch(RuntimeError):
    """Closed form, fvcore and torch count different numbers of MACs."""


def count(model: nn.Module, height_px: int, width_px: int, executed: nn.Module | None = None) -> dict[str, Any]:
    """Cost columns of one (1, 3, height_px, width_px) image; `model`, its mode and the RNG stay as they are.

    Args:
        model: the algorithm's own form, with `macs(height_px, width_px)` and `attention_macs(height_px, width_px)`.
        height_px: image height.
        width_px: image width.
        executed: the same model in the implementation that runs, where that is another; it has no closed form.

    Raises:
        CountMismatch: the closed form or the counters differ; names the numbers and the operators.
    """
    closed = int(cast(Any, model).macs(height_px, width_px).total)
    counts = _count(model, height_px, width_px)
    image = f"one {height_px}x{width_px} image"
    if {*counts.totals} != {closed}:
        raise CountMismatch(f"MACs of {image} differ: closed form {closed}, {_differences(counts)}")
    ran = counts if executed is None else _count(executed, height_px, width_px)
    if len({*ran.totals}) > 1:
        raise CountMismatch(f"executed MACs of {image} differ: {_differences(ran)}")
    return {
        "gmacs": closed / 1e9,
        "executed_gmacs": ran.totals[0] / 1e9,
        "other_gops": counts.others / 1e9,
        "gflops": 2 * closed / 1e9,
        "attention_gmacs": cast(Any, model).attention_macs(height_px, width_px) / 1e9,
        "params_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "uncounted_ops": ";".join(f"{kind}:{n}" for kind, n in sorted(counts.unknown[""].items())),
    }


@dataclass(frozen=True)
class _Counts:
    """MACs by module and operator (module "" is the whole model), other operations, and what was not counted."""

    fvcore: ByModule
    torch: ByModule
    others: int
    unknown: ByModule

    @property
    def totals(self) -> tuple[int, int]:
        return self.fvcore[""].total(), self.torch[""].total()


def _differences(counts: _Counts) -> str:
    totals = "fvcore {}, torch {}".format(*counts.totals)
    differing = [name for name in counts.fvcore if counts.fvcore[name].total() != counts.torch[name].total()]
    if not differing:
        return f"{totals}; the counters agree in every module, so macs() does not describe the model"

    def holds_another(name: str) -> bool:
        return any(other != name and other.startswith(f"{name}." if name else "") for other in differing)

    # a parent differs wherever its child does: the deepest modules hold the operators
    deepest = [_operators(name, counts) for name in sorted(differing) if not holds_another(name)]
    return f"{totals}; the counters differ in {'; '.join(deepest)}"


def _operators(module: str, counts: _Counts) -> str:
    seen = {"fvcore": counts.fvcore, "torch": counts.torch, "unknown to fvcore": counts.unknown}
    listed = (
        f"{counter}: {', '.join(f'{operator} {n}' for operator, n in sorted(by_module[module].items())) or 'nothing'}"
        for counter, by_module in seen.items()
    )
    return f"{module or 'the model itself'} ({'; '.join(listed)})"


def _count(model: nn.Module, height_px: int, width_px: int) -> _Counts:
    try:
        return _count_on("meta", model, height_px, width_px)
    # operators whose shapes depend on data (nonzero, item) have no meaning without it
    except (RuntimeError, TypeError):
        return _count_on("cpu", model, height_px, width_px)


def _count_on(device: str, model: nn.Module, height_px: int, width_px: int) -> _Counts:
    # any function mode also keeps nn.MultiheadAttention off its fast path, which hides its products
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _TracedConvolutions():
        image = torch.zeros(1, 3, height_px, width_px, device=device)
        subject = _copy_on(device, model)
        by_torch = _torch_counts(subject, image)
        by_fvcore, unknown = _fvcore_counts(subject, image)
    macs = {name: Counter({k: n for k, n in c.items() if k in _MACS}) for name, c in by_fvcore.items()}
    return _Counts(macs, by_torch, by_fvcore[""].total() - macs[""].total(), unknown)


class _CopyTensors(TorchFunctionMode):
    """While it is on, `copy.deepcopy` copies every tensor that is not a parameter to `device`."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().to(self.device, copy=True))


def _copy_on(device: str, model: nn.Module) -> nn.Module:
    # parameters copy themselves without asking a mode, so they come first
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to(device, copy=True), p.requires_grad) for p in model.parameters()}
    with _CopyTensors(device):
        return copy.deepcopy(model, memo).eval()


def _torch_counts(model: nn.Module, image: Tensor) -> ByModule:
    # the fused CPU kernel would count as 0, the plain one consists of counted products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_TORCH_FORMULAS) as counter:
        model(image)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return {
        name: Counter({str(op): n // 2 for op, n in flops.get(f"{root}.{name}" if name else "Global", {}).items()})
        for name, _ in model.named_modules(remove_duplicate=False)
    }


def _fvcore_counts(model: nn.Module, image: Tensor) -> tuple[ByModule, ByModule]:
    with warnings.catch_warnings(), _inlined_functions():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import elementwise_flop_counter

        analysis = FlopCountAnalysis(model, image).set_op_handle(**_PRODUCTS)
        for name, (per_input, per_output) in _OTHERS.items():
            analysis.set_op_handle(name, elementwise_flop_counter(per_input, per_output))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted: ByModule = analysis.by_module_and_operator()
    unknown = {name: analysis.unsupported_ops(name) for name in counted}
    return counted, {name: Counter({k: n for k, n in c.items() if _computes(k)}) for name, c in unknown.items()}


class _TracedConvolutions(TorchFunctionMode):
    """Convolutions that torch.jit's tracer sees on `meta`: there it loses `conv2d`, but not what that calls."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_convolution if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    pairs = [[value] * 2 if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    options: Any = (*pairs, False, [0, 0], groups, False, False, False, False)
    return torch._convolution(input, weight, bias, *options)


@contextmanager
def _inlined_functions() -> Iterator[None]:
    """Run the forward of custom autograd functions in the open: the tracer would record them as one black box."""
    function: Any = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: Any, *args: Any) -> Any:
        if cls.setup_context is not function.setup_context:
            return cls.forward(*args)
        context: Any = FunctionCtx()
        context.needs_input_grad = (False,) * len(args)
        return cls.forward(context, *args)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


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


_PRODUCTS: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::baddbmm": _product(1, 2),
    "aten::matmul": _product(0, 1),
    "aten::mv": _product(0, 1),
    "aten::dot": _product(0, 1),
    "aten::einsum": _einsum,
    "aten::_convolution_mode": _convolution_mode,
}

# operations per element read and per element written
_OTHERS = {
    "aten::avg_pool2d": (1, 0),
    "aten::max_pool2d": (1, 0),
    "aten::mean": (1, 0),
    "aten::rms_norm": (5, 0),
    "aten::upsample_bicubic2d": (0, 16),
}

_MACS = {
    *("_convolution_mode", "addmm", "baddbmm", "bmm", "conv", "dot", "einsum", "linear", "matmul", "mm", "mv"),
    "scaled_dot_product_attention",
}

_TORCH_FORMULAS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), lambda left, *_, out_shape: 2 * prod(left))

# Compute nothing, or element by element, though torch tags them neither as views nor as point-wise.
_UNTAGGED = {
    *("__or__", "__xor__", "dropout", "dropout_", "empty_like", "feature_dropout", "fill_", "hardswish", "hardtanh"),
    *("im2col", "index_select", "linspace", "masked_fill_", "meshgrid", "one_hot", "ones_like", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "repeat", "repeat_interleave", "scalar_tensor", "scatter", "scatter_", "take_along_dim"),
    *("tile", "tril", "triu"),
}


def _computes(kind: str) -> bool:
    """Whether an operator is neither element-wise nor a move of data; one that torch does not know computes."""
    namespace, _, name = kind.partition("::")
    packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    aliases = [a.alias_info for op in overloads for a in op._schema.arguments]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return not (name in _UNTAGGED or is_view or any(torch.Tag.pointwise in op.tags for op in overloads))
