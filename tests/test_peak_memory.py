import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from runners.machine import failures
from runners.machine.failures import ChildFailed, OutOfMemory
from runners.measure import memory as peak_memory
from runners.measure.memory import measure_memory

CPU = torch.device("cpu")
MIB = 2**20
BATCH, FEATURES, OUT = 8, 3 * 4 * 6, 4096
FIRST_MIB, SCRATCH_MIB = 128, 48

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's process limits and signals")


class Known(nn.Module):
    """A matrix product with scratch memory in every call, and more of it in the first."""

    def __init__(self):
        super().__init__()
        torch.ones(200 * MIB // 4)  # only while it is built
        self.weight = nn.Parameter(torch.zeros(FEATURES, OUT))
        self.called = False

    def forward(self, x):
        torch.ones((SCRATCH_MIB if self.called else FIRST_MIB) * MIB // 4)
        self.called = True
        scratch = torch.ones(SCRATCH_MIB * MIB // 4)
        return (x.flatten(1) @ self.weight)[:, :10] + scratch[:10]


def build_known(threads):
    print("libraries print, too")
    assert torch.get_num_threads() == threads
    return Known()


def build_never():
    raise ValueError("no such model")


def build_endlessly(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def request(build, training=False, limit_mib=None):
    return peak_memory._Request(build, (BATCH, 3, 4, 6), 10, "cpu", "fp32", 1, limit_mib, training)


@pytest.fixture(scope="module")
def columns():
    return measure_memory(functools.partial(build_known, 2), (BATCH, 3, 4, 6), 10, CPU, threads=2)


def test_peak_of_inference_is_known_to_the_byte(columns):
    weight, images, products = FEATURES * OUT * 4, BATCH * FEATURES * 4, BATCH * OUT * 4
    result = BATCH * 10 * 4
    assert columns["peak_infer_mib"] * MIB == weight + images + SCRATCH_MIB * MIB + products + result


def test_peak_of_training_holds_gradients_and_optimiser_state_too(columns):
    weight_mib = FEATURES * OUT * 4 / MIB
    # weights, gradients, two moments; the step's own scratch is freed before the optimiser's
    assert columns["peak_train_mib"] > columns["peak_infer_mib"] + 2 * weight_mib
    assert columns["peak_train_mib"] < columns["peak_infer_mib"] + 4 * weight_mib


@linux
def test_resident_peak_is_that_of_both_runs_over_the_loaded_model(columns):
    for name in ("peak_rss_mib", "peak_train_rss_mib"):
        assert FIRST_MIB * 0.95 < columns[name] < FIRST_MIB + 60


def test_without_a_device_allocator_nothing_is_reserved(columns):
    assert set(columns) == {"peak_infer_mib", "peak_train_mib", "peak_rss_mib", "peak_train_rss_mib"}


@linux
@pytest.mark.parametrize(("limit_mib", "enough"), [(100, False), (260, True)])
def test_a_limit_counts_what_the_model_needs_alone(limit_mib, enough):
    run = functools.partial(peak_memory._run, [request(functools.partial(build_known, 1), limit_mib=limit_mib)])
    if enough:
        assert run()["peak_infer_mib"] > SCRATCH_MIB
    else:
        with pytest.raises(OutOfMemory, match="DefaultCPUAllocator"):
            run()


def test_an_exception_of_the_child_is_raised_with_its_traceback():
    with pytest.raises(ChildFailed, match=r"(?s)Traceback.*build_never.*ValueError: no such model") as caught:
        peak_memory._run([request(build_never)])
    assert caught.value.status == "error"


@pytest.mark.parametrize(
    ("end", "message", "status"),
    [("os._exit(3)", "exit code 3", "error"), ("os.kill(os.getpid(), 9)", "exit code -9", "killed")],
)
def test_a_child_that_dies_without_an_answer_leaves_its_last_words(end, message, status, monkeypatch):
    monkeypatch.setattr(peak_memory, "_CHILD", f"import os; os.write(2, b'last words'); {end}")
    with pytest.raises(ChildFailed, match=f"(?s){message}:.*last words") as caught:
        peak_memory._run([request(Known)])
    assert caught.value.status == status


def test_a_child_that_the_kernel_killed_is_out_of_memory(monkeypatch):
    kills = iter([3, 4])
    for module in (peak_memory, failures):
        monkeypatch.setattr(module, "oom_kills", lambda: next(kills))
    monkeypatch.setattr(peak_memory, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(OutOfMemory, match="out-of-memory killer"):
        peak_memory._run([request(Known)])


@pytest.mark.parametrize(("limit_mib", "runs"), [(None, ["infer+train", "infer", "train"]), (100, ["infer+train"])])
def test_two_processes_that_do_not_fit_beside_each_other_run_alone(limit_mib, runs, monkeypatch):
    calls = []

    def run(requests):
        calls.append("+".join("train" if r.training else "infer" for r in requests))
        if len(requests) > 1:
            raise OutOfMemory("together")
        return {calls[-1]: 1.0}

    monkeypatch.setattr(peak_memory, "_run", run)
    expected = pytest.raises(OutOfMemory) if limit_mib else contextlib.nullcontext()
    with expected:
        found = measure_memory(Known, (1, 3, 4, 6), 10, CPU, memory_limit_mib=limit_mib)
        assert found == {"infer": 1.0, "train": 1.0}
    assert calls == runs


def test_on_a_gpu_the_maxima_of_the_second_run_count_and_processes_run_alone(monkeypatch):
    log = []
    machine = peak_memory.Hardware(
        lambda: log.append("synchronize"), time.perf_counter, float, lambda: log.append("reset"), lambda: (5.0, 6.0)
    )
    monkeypatch.setattr(peak_memory, "_load", lambda request: lambda: log.append("run"))
    found = peak_memory._measure_twice(request(Known), CPU, machine)
    assert found[:2] == (5.0, 6.0)
    assert log == ["synchronize", "run", "synchronize", "reset", "run", "synchronize"]
    monkeypatch.setattr(
        peak_memory, "_run", lambda requests: {"train" if r.training else "infer": len(requests) for r in requests}
    )
    assert measure_memory(Known, (1, 3, 4, 6), 10, torch.device("cuda")) == {"infer": 1, "train": 1}


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(folder):
    return [int(path.name) for path in folder.iterdir()]


@linux
def test_a_killed_parent_leaves_no_child(tmp_path):
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import functools\n"
        "from runners.measure.memory import _run\n"
        "from test_peak_memory import build_endlessly, request\n"
        f"_run([request(functools.partial(build_endlessly, {str(tmp_path)!r}))])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: children(tmp_path))
        assert is_alive(*children(tmp_path))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_alive(*children(tmp_path)), seconds=5)


def test_where_the_kernel_does_not_tell_a_closed_pipe_alone_ends_the_child(tmp_path):
    with peak_memory._child(request(functools.partial(build_endlessly, tmp_path))) as (child, _):
        wait_until(lambda: children(tmp_path))
        # Ctrl-C is the parent's to judge
        child.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.stdin.close()
        assert child.wait(timeout=5) == 1


def test_a_child_asks_to_die_with_its_parent_and_ends_if_that_is_gone_already(monkeypatch):
    wishes = []
    monkeypatch.setattr(
        peak_memory.ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *args: wishes.append(args))
    )
    peak_memory._die_with_parent(os.getppid())
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    with pytest.raises(pytest.fail.Exception, match="ended with 1"):
        peak_memory._die_with_parent(os.getppid() + 1)
    assert wishes == ([(1, signal.SIGKILL)] * 2 if sys.platform == "linux" else [])


def test_an_interrupted_measurement_ends_its_child(monkeypatch):
    monkeypatch.setattr(peak_memory, "_CHILD", "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), peak_memory._child(request(Known)) as (child, _):
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGKILL
