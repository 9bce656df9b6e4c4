"""How a call runs: now or recorded, with or without a backward pass to come."""

import torch
from torch import Tensor


def is_tracing() -> bool:
    """Whether torch.jit records what runs."""
    found: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return found


def makes_kernels() -> bool:
    """Whether torch.compile records what runs; unlike an export, which keeps the layers as they are."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def infers_on_cpu(tensor: Tensor) -> bool:
    """Whether what is made of a tensor is computed now, on a CPU, and for no backward pass."""
    is_still = tensor.device.type == "cpu" and not torch.is_grad_enabled()
    return is_still and not torch.compiler.is_compiling() and not is_tracing()
