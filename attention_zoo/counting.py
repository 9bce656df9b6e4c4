"""MACs of a module as fvcore and torch count them, by module and operator.

A multiply-add (MAC) of a matrix product or convolution is 2 of torch's FLOPs; biases are left out. Both counters run a
copy on the `meta` device, which needs no memory; a module that cannot run there, on the CPU. fvcore has handles of our
own for what it drops or miscounts.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

Handle = Callable[[list[Any], list[Any]], int]
ByModule = dict[str, Counter[str]]


class CounterFailed(RuntimeError):
    """A counter cannot count a legal operator; names the counter and the operator."""


@dataclass(frozen=True)
class Counts:
    """MACs by module and operator (module "" is the whole model), other operations, and what was not counted."""

    fvcore: ByModule
    torch: ByModule
    others: int
    unknown: ByModule

    @property
    def totals(self) -> tuple[int, int]:
        """MACs of the whole call, by fvcore and by torch."""
        return self.fvcore[""].total(), self.torch[""].total()


def differences(counts: Counts) -> str:
    """Say in which modules the two counters differ, and by which operators; empty where they agree."""
    differing = [name for name in counts.fvcore if counts.fvcore[name].total() != counts.torch[name].total()]

    def holds_another(name: str) -> bool:
        return any(other != name and other.startswith(f"{name}." if name else "") for other in differing)

    # a parent differs wherever its child does: the deepest modules hold the operators
    return "; ".join(_operators(name, counts) for name in sorted(differing) if not holds_another(name))


def _operators(module: str, counts: Counts) -> str:
    seen = {"fvcore": counts.fvcore, "torch": counts.torch, "unknown to fvcore": counts.unknown}
    listed = (
        f"{counter}: {', '.join(f'{operator} {n}' for operator, n in sorted(by_module[module].items())) or 'nothing'}"
        for counter, by_module in seen.items()
    )
    return f"{module or 'the model itself'} ({'; '.join(listed)})"


def count_macs(model: nn.Module, shape: Sequence[int]) -> Counts:
    """Count one call in evaluation mode on zeros of this shape; `model`, its mode and the RNG stay as they are.

    Raises:
        CounterFailed: a counter cannot count an operator, or fvcore cannot trace the call.
    """
    try:
        return _count_on("meta", model, shape)
    # operators whose shapes depend on data (nonzero, item) have no meaning without it
    except (RuntimeError, TypeError):
        return _count_on("cpu", model, shape)


def _count_on(device: str, model: nn.Module, shape: Sequence[int]) -> Counts:
    # any function mode also keeps nn.MultiheadAttention off its fast path, which hides its products
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _TracedConvolutions():
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        x = torch.zeros(*shape, dtype=dtype, device=device)
        subject = _copy_on(device, model)
        by_torch = _torch_counts(subject, x)
        by_fvcore, unknown = _fvcore_counts(subject, x)
    macs = {name: Counter({k: n for k, n in c.items() if k in _MACS}) for name, c in by_fvcore.items()}
    return Counts(macs, by_torch, by_fvcore[""].total() - macs[""].total(), unknown)


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


def _torch_counts(model: nn.Module, x: Tensor) -> ByModule:
    formulas = {op: _named("torch", str(op), formula) for op, formula in flop_registry.items()}
    for formula in formulas.values():
        # torch's own formulas take the tensors themselves, those of others their shapes
        formula._get_raw = True  # type: ignore[attr-defined]
    formulas |= _TORCH_FORMULAS
    # the fused CPU kernel would count as 0, the plain one consists of counted products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(x)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return {
        name: Counter({str(op): n // 2 for op, n in flops.get(f"{root}.{name}" if name else "Global", {}).items()})
        for name, _ in model.named_modules(remove_duplicate=False)
    }


def _fvcore_counts(model: nn.Module, x: Tensor) -> tuple[ByModule, ByModule]:
    with warnings.catch_warnings(), _inlined_functions():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import elementwise_flop_counter

        others = {name: elementwise_flop_counter(*each) for name, each in _OTHERS.items()}
        analysis = FlopCountAnalysis(model, x).set_op_handle(**_PRODUCTS, **others)
        handles = {name: _named("fvcore", name, handle) for name, handle in analysis._op_handles.items() if handle}
        analysis.set_op_handle(**handles).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        try:
            counted: ByModule = analysis.by_module_and_operator()
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, CounterFailed):
                raise
            # torch's counter has just run the same call to its end
            message = str(error).strip().partition("\n")[0]
            raise CounterFailed(f"fvcore cannot trace {type(model).__name__}: {message}") from error
    unknown = {name: analysis.unsupported_ops(name) for name in counted}
    return counted, {name: Counter({k: n for k, n in c.items() if _computes(k)}) for name, c in unknown.items()}


def _named(counter: str, operator: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    """The same formula, its failures told with the names of counter and operator."""

    def count(*args: Any, **kwargs: Any) -> Any:
        try:
            return formula(*args, **kwargs)
        except Exception as error:
            raise CounterFailed(f"{counter} cannot count {operator}: {type(error).__name__}: {error}") from error

    return count


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
