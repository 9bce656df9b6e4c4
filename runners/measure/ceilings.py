"""What bounds a forward pass on this device: its fastest matrix product, its fastest copy, and the bytes that move.

Both ceilings are measured, in the process and with the threads of the throughput measure, so that they meet the
same machine as the cell: the best of several runs, since a ceiling is what the device can do, not what it does on
average.
"""

import copy
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.machine.conditions import Conditions
from runners.machine.failures import is_out_of_memory
from runners.machine.hardware import hardware
from runners.train.step import PLAIN

RUNS = 5
LONG_ENOUGH_MS = 20.0
"""Time of one run from which starting it no longer counts."""
MAX_SIDE, MAX_COPY_MIB = 8192, 1024
MIN_COPY_MIB = 256
"""More than the caches of a processor hold."""


def measure_ceilings(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, float | None]:
    """Columns `gemm_gflops` (a square matrix product) and `copy_gb_s` (bytes read and written); None if out of memory.

    `dtype` is that of the operands, of which each is made larger until one run takes 20 ms.
    """
    return {"gemm_gflops": _ceiling(_gemm, device, dtype), "copy_gb_s": _ceiling(_copy, device, dtype)}


def _ceiling(rate: Callable[[torch.device, torch.dtype], float], device: torch.device, dtype: torch.dtype) -> Any:
    try:
        return rate(device, dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _gemm(device: torch.device, dtype: torch.dtype) -> float:
    side = 256
    while True:
        left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
        result = torch.empty_like(left)
        milliseconds = _best_ms(partial(torch.mm, left, right, out=result), device)
        if milliseconds >= LONG_ENOUGH_MS or side >= MAX_SIDE:
            return 2 * side**3 / milliseconds / 1e6
        side *= 2


def _copy(device: torch.device, dtype: torch.dtype) -> float:
    mib = MIN_COPY_MIB
    while True:
        source = torch.ones(mib * 2**20 // dtype.itemsize, device=device, dtype=dtype)
        target = torch.empty_like(source)
        milliseconds = _best_ms(partial(target.copy_, source), device)
        if milliseconds >= LONG_ENOUGH_MS or mib >= MAX_COPY_MIB:
            return 2 * source.nbytes / milliseconds / 1e6
        mib *= 2


def _best_ms(run: Callable[[], object], device: torch.device) -> float:
    machine = hardware(device)
    run()
    times = []
    for _ in range(RUNS):
        start = machine.stamp()
        run()
        times.append(machine.elapsed_ms(start, machine.stamp()))
    return min(times)


def forward_traffic_mib(
    model: nn.Module, images: Tensor, device: torch.device, conditions: Conditions = PLAIN
) -> float:
    """MiB that the operators of one forward of a batch read and write, each tensor once per operator.

    That is the memory traffic if nothing stayed in a cache between two operators, and none were fused by
    torch.compile; a fused attention counts as the one operator that it is. A copy is run: the model stays as it is.

    Args:
        model: on the CPU.
        images: a batch (B, 3, height_px, width_px).
        device: where the copy runs; another kernel may be chosen there.
        conditions: how it computes.
    """
    subject, batch = conditions.place(copy.deepcopy(model), device).eval(), conditions.place_images(images, device)
    traffic = _Traffic()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), conditions.autocast(device), traffic:
        subject(batch)
    return traffic.nbytes / 2**20


class _Traffic(TorchDispatchMode):
    """Add up the tensors that operators read and write; views move nothing, and new memory is not yet written."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        storages = {tensor.untyped_storage().data_ptr() for tensor in read}
        is_view = not func._schema.is_mutable and any(t.untyped_storage().data_ptr() in storages for t in written)
        if not is_view and func.overloadpacket not in _ALLOCATIONS:
            self.nbytes += sum(map(_nbytes, read)) + sum(map(_nbytes, written))
        return result


_ALLOCATIONS = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tensor: Tensor) -> int:
    # an expanded tensor repeats what memory holds once
    return tensor.itemsize * prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
