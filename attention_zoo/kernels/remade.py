"""What a backward pass makes again instead of keeping: results that cost little beside the memory that they hold."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from attention_zoo.kernels.caching import holds_values

_IS_CHECKPOINTED = ContextVar("_IS_CHECKPOINTED", default=False)


@contextmanager
def checkpointed() -> Iterator[None]:
    """Leave to torch.utils.checkpoint what runs inside: it keeps nothing, and must see all that would be saved."""
    token = _IS_CHECKPOINTED.set(True)
    try:
        yield
    finally:
        _IS_CHECKPOINTED.reset(token)


def not_kept(*made: tuple[Tensor, Callable[[], Tensor]]) -> AbstractContextManager[object]:
    """Let what runs inside save none of these tensors; a backward pass calls what makes each again.

    A tensor may be saved as a view of the same size. A compiler decides for itself what to keep.
    """
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not all(holds_values(tensor) for tensor, _ in made)
        or _IS_CHECKPOINTED.get()
    ):
        return nullcontext()
    makers = {(tensor.data_ptr(), tensor.numel()): make for tensor, make in made if tensor.numel()}

    def pack(saved: Tensor) -> Any:
        make = makers.get((saved.data_ptr(), saved.numel()))
        return saved if make is None else (make, saved.shape, saved.stride())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        make, shape, stride = packed
        with torch.no_grad():
            again: Tensor = make()
        return again.as_strided(shape, stride)

    return saved_tensors_hooks(pack, unpack)
