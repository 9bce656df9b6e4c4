"""Peak memory of inference and of training, each measured in a fresh process that dies with its parent.

Protocol 1. A process first warms the libraries up with a tiny model, then builds the model and runs it
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

import ctypes
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.autograd.profiler import profile, record_function

from runners.machine.environment import Hardware, apply_threads, hardware, memory_limit, process_memory_mib
from runners.machine.failures import ChildFailed, OutOfMemory, exit_status, oom_kills, status_of, was_oom_killed
from runners.measure.accuracy import autocast, make_optimizer, train_step

Columns = dict[str, float | None]

# argv: the parent's import path and its process id
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from runners.measure import memory; memory.serve()"
_PR_SET_PDEATHSIG = 1
_COUNTED_RUN = "runners.measure.memory: counted run"


@dataclass(frozen=True)
class _Request:
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    num_classes: int
    device: str
    precision: str
    threads: int | None
    memory_limit_mib: int | None
    training: bool


def measure_memory(
    build: Callable[[], nn.Module],
    input_shape: Sequence[int],
    num_classes: int,
    device: torch.device,
    precision: str = "fp32",
    threads: int | None = None,
    memory_limit_mib: int | None = None,
) -> Columns:
    """Measure the memory columns, in MiB, of a model and a batch of `input_shape` (B, 3, height_px, width_px).

    Args:
        build: makes the model on the CPU; it is pickled, so a function of a module, or a `functools.partial` of one.
        input_shape: shape of the batch.
        num_classes: labels are drawn from 0 .. num_classes - 1.
        device: where the model runs.
        precision: `fp32`, or `bf16` for autocast.
        threads: CPU threads, None for torch's choice.
        memory_limit_mib: what each process may allocate beyond its interpreter and libraries.

    Raises:
        OutOfMemory: a process ran out of memory; carries its message.
        ChildFailed: a process failed otherwise; carries its traceback and its status.
    """
    given = (build, tuple(input_shape), num_classes, str(device), precision, threads, memory_limit_mib)
    infer, train = (_Request(*given, training=training) for training in (False, True))
    if device.type == "cpu":
        try:
            return _run([infer, train])
        except OutOfMemory:
            if memory_limit_mib is not None:
                raise
    return _run([infer]) | _run([train])


def _run(requests: Iterable[_Request]) -> Columns:
    """Answer requests at the same time, one process each."""
    kills = oom_kills()
    with ExitStack() as processes:
        children = [processes.enter_context(_child(request)) for request in requests]
        return {name: value for child in children for name, value in _answer(*child, kills).items()}


@contextmanager
def _child(request: _Request) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, paths, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # time does not matter here, and threads that spin while they wait would starve the process beside
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            # a child that is dead by now has a better story to tell
            with suppress(BrokenPipeError):
                child.stdin.write(pickle.dumps(request))
                child.stdin.flush()
            yield child, errors
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()


def _answer(child: subprocess.Popen[bytes], errors: IO[bytes], kills: int | None) -> Columns:
    assert child.stdout is not None
    report, returncode = child.stdout.read(), child.wait()
    if returncode == 0:
        answer: dict[str, Any] = json.loads(report)
        if answer["status"] == "ok":
            return dict(answer["columns"])
        failure = OutOfMemory(answer["message"]) if answer["status"] == "oom" else None
        raise failure or ChildFailed(answer["traceback"], answer["status"])
    if was_oom_killed(returncode, kills):
        raise OutOfMemory("the kernel's out-of-memory killer ended the measuring process")
    errors.seek(0)
    last_words = errors.read()[-4000:].decode(errors="replace")
    raise ChildFailed(f"measuring process ended with exit code {returncode}:\n{last_words}", exit_status(returncode))


def serve() -> None:
    """Answer the one request on standard input, as a child of the process whose id is the second argument."""
    _die_with_parent(int(sys.argv[2]))
    # Ctrl-C reaches the whole group; the parent decides what becomes of a measurement
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # what libraries print must not end up in the answer
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        request: _Request = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_die_at_end_of_input, daemon=True).start()
        content: dict[str, Any] = {"status": "ok", "columns": _measure(request)}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        content = {"status": status_of(error), "message": message, "traceback": traceback.format_exc()}
    json.dump(content, answer)
    answer.close()
    # the watching thread sits in a read, and there is nothing to tidy up
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may have died before that
    if os.getppid() != parent:
        os._exit(1)


def _die_at_end_of_input() -> None:
    """Where the kernel does not tell of a parent's death: its end of the pipe is closed by it, and never before."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _measure(request: _Request) -> Columns:
    device = torch.device(request.device)
    apply_threads(request.threads)
    _warm_up(request)
    with memory_limit(device, request.memory_limit_mib):
        allocated, reserved, resident = _measure_twice(request, device, hardware(device))
    gc.collect()
    if device.type == "cpu":
        allocated = _allocated_on_cpu(request)
    phase, resident_name = ("train", "peak_train_rss_mib") if request.training else ("infer", "peak_rss_mib")
    columns = {f"peak_{phase}_mib": allocated, resident_name: resident}
    return columns | ({f"peak_{phase}_reserved_mib": reserved} if device.type == "cuda" else {})


def _warm_up(request: _Request) -> None:
    """Have torch import and start what it only does when it first runs: that is no model's memory."""
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1), nn.Flatten())
    run = _load(replace(request, build=lambda: tiny, input_shape=(1, 3, 1, 1), num_classes=1))
    run()


def _load(request: _Request) -> Callable[[], object]:
    """Build the model and a batch; the result runs the model once."""
    device = torch.device(request.device)
    model = request.build().to(device).train(request.training)
    images = torch.randn(request.input_shape, device=device)
    if request.training:
        labels = torch.randint(request.num_classes, request.input_shape[:1], device=device)
        optimizer = make_optimizer(model)
        return lambda: train_step(model, optimizer, images, labels, precision=request.precision)

    def infer() -> None:
        with torch.inference_mode(), autocast(device, request.precision):
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
