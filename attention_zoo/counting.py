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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from attention_zoo.operators import MACS, OTHERS, PRODUCTS, TORCH_FORMULAS, computes

ByModule = dict[str, Counter[str]]
Found = TypeVar("Found")


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
    return _on_a_copy(_count, model, shape)


def count_activations(model: nn.Module, shape: Sequence[int]) -> int:
    """Elements that convolutions and matrix products write in one call, by fvcore's rules, as timm counts them."""
    return _on_a_copy(_activations, model, shape)


def _on_a_copy(count: Callable[[nn.Module, Tensor], Found], model: nn.Module, shape: Sequence[int]) -> Found:
    """Return what `count` finds with a copy of a model, in evaluation mode on `meta`, and zeros of this shape."""
    try:
        return _on(count, "meta", model, shape)
    # operators whose shapes depend on data (nonzero, item) have no meaning without it, and earlier versions of torch
    # cannot trace convolutions there
    except (RuntimeError, TypeError, AssertionError):
        return _on(count, "cpu", model, shape)


def _on(count: Callable[[nn.Module, Tensor], Found], device: str, model: nn.Module, shape: Sequence[int]) -> Found:
    # any function mode also keeps nn.MultiheadAttention off its fast path, which hides its products
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _TracedConvolutions():
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        return count(_copy_on(device, model), torch.zeros(*shape, dtype=dtype, device=device))


def _count(model: nn.Module, x: Tensor) -> Counts:
    by_torch = _torch_counts(model, x)
    by_fvcore, unknown = _fvcore_counts(model, x)
    macs = {name: Counter({k: n for k, n in c.items() if k in MACS}) for name, c in by_fvcore.items()}
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
    formulas |= TORCH_FORMULAS
    # the fused CPU kernel would count as 0, the plain one consists of counted products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(x)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return {
        name: Counter({str(op): n // 2 for op, n in flops.get(f"{root}.{name}" if name else "Global", {}).items()})
        for name, _ in model.named_modules(remove_duplicate=False)
    }


def _activations(model: nn.Module, x: Tensor) -> int:
    with _traced():
        from fvcore.nn import ActivationCountAnalysis

        analysis = ActivationCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def _fvcore_counts(model: nn.Module, x: Tensor) -> tuple[ByModule, ByModule]:
    with _traced():
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import elementwise_flop_counter

        others = {name: elementwise_flop_counter(*each) for name, each in OTHERS.items()}
        analysis = FlopCountAnalysis(model, x).set_op_handle(**PRODUCTS, **others)
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
    return counted, {name: Counter({k: n for k, n in c.items() if computes(k)}) for name, c in unknown.items()}


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
        known: dict[Any, Any] = {torch.conv2d: _convolution, torch.conv_transpose2d: _transposed_convolution}
        return known.get(func, func)(*args, **(kwargs or {}))


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    options: Any = (*map(_pair, (stride, padding, dilation)), False, [0, 0], groups, False, False, False, False)
    return torch._convolution(input, weight, bias, *options)


def _transposed_convolution(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    pairs = *map(_pair, (stride, padding, dilation)), True, _pair(output_padding)
    options: Any = (*pairs, groups, False, False, False, False)
    return torch._convolution(input, weight, bias, *options)


def _pair(value: Any) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value)


@contextmanager
def _traced() -> Iterator[None]:
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
            yield
    finally:
        function.apply = original
