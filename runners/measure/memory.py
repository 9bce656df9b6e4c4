"""Peak memory of inference and of training, each measured in a fresh process that dies with its parent.

Protocol 2. A process first warms the libraries up with a tiny model, then builds the model and runs it
twice: two forwards (evaluation and inference mode) or two steps of training (AdamW, its state included). The second
run counts, so what the first one caches is included and what only making it takes is not.
- Allocated, CPU: the largest running total of the allocator's own events (torch.profiler) during the second run. The
  profiler starts before the weights are made, so weights, inputs and the workspaces of kernels are in the total.
- Allocated and reserved, CUDA: the caching allocator's maxima during the second run.
- Resident: the largest resident size during both runs minus that after the model was built (Linux only). The
  profiler's records would be resident too, so on the CPU it watches a second build and run of the same model.
On the CPU the two processes run at the same time; should one run out of memory without having been given a limit,
they are repeated one after the other.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.autograd.profiler import profile, record_function

from runners.machine.conditions import Conditions
from runners.machine.environment import apply_threads, memory_limit, process_memory_mib
from runners.machine.failures import OutOfMemory
from runners.machine.hardware import Hardware, hardware
from runners.measure.children import child
from runners.measure.goal import CLASSES, Goal
from runners.train.optim import make_optimizer
from runners.train.step import PLAIN, train_step

Columns = dict[str, float | None]

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Time does not matter here, and threads that spin while they wait would starve the process beside."""
_COUNTED_RUN = "runners.measure.memory: counted run"


@dataclass(frozen=True)
class _Request:
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    device: str
    conditions: Conditions
    threads: int | None
    memory_limit_mib: int | None
    goal: Goal
    training: bool


def measure_memory(
    build: Callable[[], nn.Module],
    input_shape: Sequence[int],
    device: torch.device,
    conditions: Conditions = PLAIN,
    threads: int | None = None,
    memory_limit_mib: int | None = None,
    goal: Goal = CLASSES,
) -> Columns:
    """Measure the memory columns, in MiB, of a model and a batch of `input_shape` (B, 3, height_px, width_px).

    Args:
        build: makes the model on the CPU; it is pickled, so a function of a module, or a `functools.partial` of one.
        input_shape: shape of the batch.
        device: where the model runs.
        conditions: how it computes.
        threads: CPU threads, None for torch's choice.
        memory_limit_mib: what each process may allocate beyond its interpreter and libraries.
        goal: what a training step learns.

    Raises:
        OutOfMemory: a process ran out of memory; carries its message.
        ChildFailed: a process failed otherwise; carries its traceback and its status.
    """
    given = (build, tuple(input_shape), str(device), conditions, threads, memory_limit_mib, goal)
    can_train = conditions.can_train and input_shape[0] >= goal.least_images
    requests = [_Request(*given, training=training) for training in (False, True)[: 1 + can_train]]
    if device.type == "cpu":
        try:
            return _run(requests)
        except OutOfMemory:
            if memory_limit_mib is not None:
                raise
    return {name: value for request in requests for name, value in _run([request]).items()}


def _run(requests: Sequence[_Request]) -> Columns:
    """Answer requests at the same time, one process each."""
    with ExitStack() as processes:
        children = [processes.enter_context(child(partial(_measure, request), PASSIVE)) for request in requests]
        for process in children:
            process.begin()
        return {name: value for process in children for name, value in process.answer().items()}


def _measure(request: _Request) -> Columns:
    device = torch.device(request.device)
    apply_threads(request.threads)
    with request.conditions.applied(device):
        _warm_up(request)
        with memory_limit(device, request.memory_limit_mib):
            allocated, reserved, resident = _measure_twice(request, device, hardware(device))
        gc.collect()
        if device.type == "cpu":
            allocated = _allocated_on_cpu(request)
    phase, resident_name = ("train", "peak_train_rss_mib") if request.training else ("infer", "peak_rss_mib")
    columns = {f"peak_{phase}_mib": allocated, resident_name: resident}
    columns |= {f"peak_{phase}_reserved_mib": reserved} if device.type == "cuda" else {}
    return columns


def _warm_up(request: _Request) -> None:
    """Have torch import and start what it only does when it first runs: that is no model's memory."""
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1), nn.Flatten())
    run = _load(replace(request, build=lambda: tiny, input_shape=(1, 3, 1, 1), goal=CLASSES))
    run()


def _load(request: _Request) -> Callable[[], object]:
    """Build the model and a batch; the result runs the model once."""
    device = torch.device(request.device)
    conditions = request.conditions
    model = conditions.place(request.build(), device).train(request.training)
    images = conditions.place_images(torch.randn(request.input_shape, device=device), device)
    if request.training:
        batch, _, height, width = request.input_shape
        targets = request.goal.make_targets(batch, height, width, device=device)
        optimizer = make_optimizer(model)
        scaler = conditions.scaler(device, init_scale=1.0)
        criterion = request.goal.criterion
        return lambda: train_step(
            model, optimizer, images, targets, conditions=conditions, scaler=scaler, criterion=criterion
        )

    def infer() -> None:
        with torch.inference_mode(), conditions.autocast(device):
            model(images)

    return infer


def _measure_twice(
    request: _Request, device: torch.device, machine: Hardware
) -> tuple[float | None, float | None, float | None]:
    run = _load(request)
    machine.synchronize()
    loaded = _reset_resident_peak()
    run()
    machine.synchronize()
    machine.reset_peak()
    run()
    machine.synchronize()
    peak = process_memory_mib("VmHWM")
    return *machine.peak_mib(), None if loaded is None or peak is None else max(0.0, peak - loaded)


def _reset_resident_peak() -> float | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return process_memory_mib("VmRSS")


def _allocated_on_cpu(request: _Request) -> float:
    with profile(profile_memory=True) as profiler:
        run = _load(request)
        run()
        with record_function(_COUNTED_RUN):
            run()
    events = profiler.kineto_results.events()
    counted = next(event for event in events if event.name() == _COUNTED_RUN)
    start, end = counted.start_ns(), counted.start_ns() + counted.duration_ns()
    total = peak = 0
    changes = (event for event in events if event.name() == "[memory]")
    for event in sorted(changes, key=lambda event: event.start_ns()):
        if event.start_ns() > end:
            break
        before, total = total, total + event.nbytes()
        # what is held when the run starts counts, even if it allocates nothing
        peak = max(peak, before, total) if event.start_ns() >= start else 0
    return max(peak, total) / 2**20
