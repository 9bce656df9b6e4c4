"""The least time that a model can take: its matrix products and convolutions alone, replayed on random tensors.

The products of one forward pass or one backward pass too are recorded with their shapes and strides, attention as its
separate products, and run again one after the other on tensors that exist already. What is left out is everything
else: norms, softmax, activations, copies, the optimiser. A fused kernel can be faster than this floor, since it never
writes the weights of attention.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.models import Work

_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
}
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
            self._tensors[key] = torch.randn(max(places, 0), dtype=tensor.dtype).as_strided(*key[:2])
        return self._tensors[key]


def record(model: nn.Module, work: Work) -> list[Call]:
    """List the products of a model at a work."""
    images = torch.randn(work.input_shape)
    model.train(work.training)
    recorder = Recorder()
    # inference mode would show linear layers in one piece, and fused attention hides its products
    with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(work.training), recorder:
        logits = model(images)
        if work.training:
            F.cross_entropy(logits, torch.zeros(work.batch, dtype=torch.int64)).backward()
    model.zero_grad()
    return recorder.calls


def floor(model: nn.Module, work: Work) -> Callable[[], None]:
    """Make what runs the products of a model at a work, and nothing else."""
    calls = record(model, work)

    def replay() -> None:
        with torch.inference_mode():
            for function, args, kwargs in calls:
                function(*args, **kwargs)

    return replay
