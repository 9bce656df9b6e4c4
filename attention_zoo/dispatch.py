"""Which computation runs: kernels by name, and products of a part of a layer. The only importer of `kernels`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

try:
    from attention_zoo import kernels
except ImportError:  # a copy without that folder computes everything the plain way
    kernels = None  # type: ignore[assignment]

_COUNTERS = ("fvcore.", "torch.utils.module_tracker")
"""Modules whose hooks note which layer is entered, and count operators: they see a part of a layer as it is."""


def choose(asked: str, best: str) -> str:
    """Name of the computation that runs: the one asked for, or the `best` of a map for `auto`; plain without kernels.

    Raises:
        ValueError: a kernel was asked for by name, and there are none.
    """
    if kernels is not None or asked in ("plain", "reference"):
        return best if asked == "auto" else asked
    if asked == "auto":
        return "plain"
    raise ValueError(f"impl={asked} needs the folder attention_zoo/kernels, which is missing; use impl=plain")


def kernel(name: str) -> Callable[..., Tensor]:
    """Look up a kernel: a function of q, k, v and what its module says."""
    return kernels.BY_NAME[name]


def part_of(layer: Any, x: Tensor, first: int, last: int) -> Tensor:
    """Channels first .. last - 1 of what a linear layer makes of x: (..., C) -> (..., last - first).

    The others are not computed where nobody could tell. Whatever else sits at the layer (an adapter, a hook, a
    parametrization, a quantized layer) is called whole.
    """
    if not _nobody_could_tell(layer, nn.Linear):
        whole: Tensor = layer(x)
        return whole[..., first:last]
    return F.linear(x, layer.weight[first:last], None if layer.bias is None else layer.bias[first:last])


def depthwise_part_of(layer: Any, x: Tensor, first: int, last: int, channels: int) -> Tensor:
    """Convolve the channels first .. last - 1 alone by a depth-wise layer of more: (B, last - first, H, W) -> same."""
    if not _nobody_could_tell(layer, nn.Conv2d):
        whole: Tensor = layer(F.pad(x, (0, 0, 0, 0, first, channels - last)))
        return whole[:, first:last]
    bias = None if layer.bias is None else layer.bias[first:last]
    return F.conv2d(x, layer.weight[first:last], bias, padding=layer.padding, groups=last - first)


def _nobody_could_tell(layer: Any, kind: type[nn.Module]) -> bool:
    hooks = (
        *layer._forward_pre_hooks.values(),
        *layer._forward_hooks.values(),
        *layer._backward_pre_hooks.values(),
        *layer._backward_hooks.values(),
        *nn.modules.module._global_forward_pre_hooks.values(),
        *nn.modules.module._global_forward_hooks.values(),
        *nn.modules.module._global_backward_pre_hooks.values(),
        *nn.modules.module._global_backward_hooks.values(),
    )
    return (
        type(layer) is kind
        and "forward" not in vars(layer)
        and type(layer.weight) in (nn.Parameter, Tensor, FakeTensor)
        and all(_module_of(hook).startswith(_COUNTERS) for hook in hooks)
        and not torch.compiler.is_exporting()
    )


def _module_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", None) or type(hook).__module__)
