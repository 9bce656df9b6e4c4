"""The least time that a model can take: its matrix products and convolutions alone, replayed on random tensors.

The products of one forward pass, or of one backward pass too, are recorded with their shapes and strides and run again
one after the other on tensors that exist already. What is left out is everything else: norms, softmax, activations,
copies, the optimiser. Attention that the model computes by one fused call takes the faster of two forms for each shape:
that call, softmax included, which never writes the weights of attention; or its products one by one, softmax left out.
No product is reordered or left out: the floor has the multiply-adds of the model.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.models import Work
from benchmarks.pairs import take_turns

_aten = torch.ops.aten
FUSED = _aten._scaled_dot_product_flash_attention_for_cpu.default
FUSED_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
    FUSED,
    FUSED_BACKWARD,
}
ROUNDS = 3
"""Samples of each form of a fused call, to choose by."""
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Recorder(TorchDispatchMode):
    """Keeps the products that run under it, with tensors of the same shapes and strides in the place of theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._tensors: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            self.calls.append((func, *tree_map_only(Tensor, self._like, (args, kwargs))))
        return func(*args, **kwargs)

    def _like(self, tensor: Tensor) -> Tensor:
        """A tensor of this shape, one for all calls, or the memory of all layers at once would be touched."""
        key = tuple(tensor.shape), tensor.stride(), tensor.dtype
        if key not in self._tensors:
            places = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            # an expanded tensor has fewer places than elements
            self._tensors[key] = torch.randn(max(places, 0)).to(tensor.dtype).as_strided(*key[:2])
        return self._tensors[key]


def record(model: nn.Module, work: Work) -> list[Call]:
    """List the products of a model at a work."""
    images = torch.randn(work.input_shape)
    model.train(work.training)
    recorder = Recorder()
    # inference mode would show linear layers in one piece
    with torch.set_grad_enabled(work.training), recorder:
        logits = model(images)
        if work.training:
            F.cross_entropy(logits, torch.zeros(work.batch, dtype=torch.int64)).backward()
    model.zero_grad()
    return recorder.calls


def separate_products(call: Call) -> list[Call]:
    """List the products of a fused attention call: q k^T and weights v; backward, the gradients of all four."""
    function, args, _ = call
    backward = function is FUSED_BACKWARD
    q, k, v = (torch.randn_like(t.flatten(0, -3)) for t in args[backward : backward + 3])
    weights = torch.randn(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
    pairs = [(q, k.mT), (weights, v)]
    if backward:
        grad = torch.randn_like(args[0].flatten(0, -3))
        pairs = [(weights.mT, grad), (grad, v.mT), (weights, k), (weights.mT, q)]
    return [(_aten.bmm.default, pair, {}) for pair in pairs]


def replay(calls: Sequence[Call]) -> None:
    """Run products one after the other."""
    with torch.inference_mode():
        for function, args, kwargs in calls:
            function(*args, **kwargs)


def floor(model: nn.Module, work: Work) -> Callable[[], None]:
    """Make what runs the products of a model at a work, and nothing else."""
    calls = []
    chosen: dict[Any, list[Call]] = {}
    for call in record(model, work):
        function, args, _ = call
        if function not in (FUSED, FUSED_BACKWARD):
            calls.append(call)
            continue
        key = function, *((tuple(t.shape), t.stride()) for t in args if isinstance(t, Tensor))
        if key not in chosen:
            chosen[key] = _faster([call], separate_products(call))
        calls += chosen[key]
    return partial(replay, calls)


def _faster(*forms: list[Call]) -> list[Call]:
    samples = take_turns({str(i): partial(replay, form) for i, form in enumerate(forms)}, ROUNDS)
    return forms[min(range(len(forms)), key=lambda i: min(samples[str(i)]))]
