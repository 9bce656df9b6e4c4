"""The seam of a device: what measurements need of it, and the one place that treats kinds of device differently.

Tests put a `Hardware` of their own in its place.
"""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from runners.machine import accelerator
from runners.machine.accelerator import Meter


@dataclass(frozen=True)
class Hardware:
    """What a measurement needs of a device; `hardware` makes one.

    `synchronize` waits for all work given to the device, `stamp` marks the present point of it, and `elapsed_ms` is
    the time between two stamps. `peak_mib` returns the allocated and the reserved maximum since `reset_peak`, None
    where no allocator keeps one. `has_tf32` tells of matrix products in TF32. `state` are columns of how the device
    stands just now, `meter` is its counter of energy or None, and `why_no_meter` says why.
    """

    synchronize: Callable[[], None]
    stamp: Callable[[], Any]
    elapsed_ms: Callable[[Any, Any], float]
    reset_peak: Callable[[], None]
    peak_mib: Callable[[], tuple[float | None, float | None]]
    has_tf32: Callable[[], bool] = lambda: False
    state: Callable[[], dict[str, Any]] = dict
    meter: Callable[[], Meter | None] = lambda: None
    why_no_meter: Callable[[], str] = lambda: "no energy counter"


def hardware(device: torch.device) -> Hardware:
    """Return the seam of a device: events and allocator statistics on CUDA, elsewhere the host's clock."""
    return replace(
        _cuda(device) if device.type == "cuda" else _host(device),
        state=partial(accelerator.state, device),
        meter=partial(accelerator.meter, device),
        why_no_meter=partial(accelerator.why_no_meter, device),
    )


def give_back(device: torch.device) -> None:
    """Free what nobody holds any more, also to other processes of the device."""
    gc.collect()
    if device.type == "cuda":
        # a lost context raises here what its measure has told already
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _cuda(device: torch.device) -> Hardware:
    from torch import cuda

    def stamp() -> Any:
        event = cuda.Event(enable_timing=True)
        event.record(cuda.current_stream(device))
        return event

    def elapsed_ms(start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.elapsed_time(end))

    def peak_mib() -> tuple[float, float]:
        return cuda.max_memory_allocated(device) / 2**20, cuda.max_memory_reserved(device) / 2**20

    synchronize, reset_peak = (partial(call, device) for call in (cuda.synchronize, cuda.reset_peak_memory_stats))
    has_tf32 = partial(_from_ampere_on, device)
    return Hardware(synchronize, stamp, elapsed_ms, reset_peak, peak_mib, has_tf32)


def _from_ampere_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _host(device: torch.device) -> Hardware:
    def synchronize() -> None:
        if device.type == "mps":
            from torch import mps

            mps.synchronize()

    def stamp() -> float:
        synchronize()
        return time.perf_counter()

    return Hardware(synchronize, stamp, lambda start, end: (end - start) * 1e3, lambda: None, lambda: (None, None))
