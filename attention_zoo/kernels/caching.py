"""Values kept from call to call: tables of indices, which follow from sizes, and biases, which are made of parameters.

What is kept never enters a state dict, a copy or a pickle, and holds no graph. Nothing is kept, and nothing kept is
used, where a call is recorded rather than run (torch.compile, tracing, fake tensors) or where a gradient must reach the
parameters.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from attention_zoo.kernels.modes import is_tracing

T = TypeVar("T")


class _Source:
    """One parameter as it was when a value was made of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.stamp = weakref.ref(tensor), _stamp(tensor)
        # a write through .data leaves no other trace; elsewhere a comparison would make the host wait for the device
        self.content = tensor.detach().clone() if tensor.device.type == "cpu" else None

    def is_still(self, tensor: Tensor) -> bool:
        same = self.tensor() is tensor and self.stamp == _stamp(tensor)
        return same and (self.content is None or torch.equal(self.content, tensor))


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device, tensor.shape


class Kept:
    """A few values by key; the one that was not asked for the longest makes room for a new one."""

    def __init__(self, size: int) -> None:
        """Keep up to `size` values."""
        self.size = size
        self._values: OrderedDict[Hashable, tuple[Any, list[_Source]]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], made_of: tuple[Tensor, ...] = ()) -> T:
        """Return the value of a key; make it anew if it is missing, or if a parameter it was made of has changed."""
        if not _may_keep(made_of):
            return make()
        found = self._values.pop(key, None)
        if found is None or not all(source.is_still(t) for source, t in zip(found[1], made_of, strict=True)):
            # a tensor of inference mode could not be saved for a backward pass later
            with torch.inference_mode(False), torch.no_grad():
                found = make(), [_Source(tensor) for tensor in made_of]
        self._values[key] = found
        while len(self._values) > self.size:
            self._values.popitem(last=False)
        value: T = found[0]
        return value

    def __len__(self) -> int:
        """Count the values."""
        return len(self._values)

    def __reduce__(self) -> tuple[type["Kept"], tuple[int]]:
        """Copy and pickle without the values."""
        return Kept, (self.size,)


def _may_keep(made_of: tuple[Tensor, ...]) -> bool:
    if torch.compiler.is_compiling() or is_tracing():
        return False
    # under a mode of fake tensors even a new one is fake; to ask of one costs more than all else here
    if is_in_torch_dispatch_mode() and type(torch.empty(0)) is not Tensor:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made_of):
        return False
    # inference tensors do not count their changes
    return all(holds_values(tensor) and not tensor.is_inference() for tensor in made_of)


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor is memory with numbers: not on the meta device, fake, or inside a functional transform."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
