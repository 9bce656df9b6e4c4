import errno
import signal
import subprocess
import sys

import pytest
import torch

from runners.machine import failures
from runners.machine.failures import (
    ChildFailed,
    OutOfMemory,
    Unsupported,
    exit_status,
    is_out_of_memory,
    status_of,
    was_oom_killed,
)
from runners.train.accuracy import Diverged


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), "oom"),
        (RuntimeError("could not create a memory object"), "oom"),
        (RuntimeError("could not execute a primitive"), "oom"),
        (RuntimeError("could not create a primitive descriptor for the convolution forward propagation"), "error"),
        (MemoryError(), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (OutOfMemory("the child says so"), "oom"),
        (caused(RuntimeError("backend compiler failed"), MemoryError()), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "error"),
        (Unsupported("no such kernel"), "unsupported"),
        (RuntimeError("\"softmax_kernel_impl\" not implemented for 'Half'"), "unsupported"),
        (NotImplementedError("Could not run 'aten::foo' with arguments from the 'MPS' backend."), "unsupported"),
        (
            NotImplementedError("The operator 'aten::foo' is not currently implemented for the MPS device."),
            "unsupported",
        ),
        (NotImplementedError("macs"), "error"),
        (Diverged("loss is nan"), "diverged"),
        (TimeoutError("too long"), "timeout"),
        (KeyboardInterrupt(), "killed"),
        (ChildFailed("gone", "killed"), "killed"),
        (ChildFailed("Traceback ... out of memory ...", "error"), "error"),
        (ValueError("out of memory is no topic here"), "error"),
        (RuntimeError("shape mismatch"), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__} {value}"[:50],
)
def test_every_failure_has_its_word(error, status):
    assert status_of(error) == status
    assert is_out_of_memory(error) == (status == "oom")


def test_the_cpu_allocator_itself_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert status_of(caught.value) == "oom"


def test_causes_that_form_a_ring_end():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


@pytest.mark.parametrize(
    ("returncode", "kills", "oom"),
    [(-9, 4, True), (137, 4, True), (-9, 3, False), (-15, 4, False), (1, 4, False), (-9, None, False)],
)
def test_a_killed_child_ran_out_of_memory_if_the_kernel_counted_a_kill(returncode, kills, oom, monkeypatch):
    monkeypatch.setattr(failures, "oom_kills", lambda: kills)
    assert was_oom_killed(returncode, kills_before=3) == oom
    assert not was_oom_killed(returncode, kills_before=None)


@pytest.mark.parametrize(
    ("returncode", "status"),
    [
        (-signal.SIGKILL, "killed"),
        (-signal.SIGTERM, "killed"),
        (143, "killed"),
        (-signal.SIGSEGV, "error"),
        (1, "error"),
    ],
)
def test_a_child_without_a_message_is_judged_by_its_exit(returncode, status):
    assert exit_status(returncode) == status


@pytest.mark.parametrize(
    ("membership", "counter", "text"),
    [
        ("0::/jobs/one\n", "jobs/one/memory.events", "low 0\noom 2\noom_kill 7\n"),
        ("0::/../outer\n", "memory.events", "oom_kill 7\n"),
        ("9:cpu:/\n4:memory:/jobs/one\n0::/\n", "memory/jobs/one/memory.oom_control", "under_oom 0\noom_kill 7\n"),
        ("4:memory:/docker/abc\n", "memory/memory.oom_control", "oom_kill 7\n"),
    ],
    ids=["version 2", "version 2 in a container", "version 1", "version 1 in a container"],
)
def test_the_nearest_cgroup_counter_is_read(membership, counter, text, tmp_path):
    (tmp_path / "membership").write_text(membership)
    (tmp_path / "mount" / counter).parent.mkdir(parents=True)
    (tmp_path / "mount" / counter).write_text(text)
    assert failures.oom_kills(tmp_path / "membership", tmp_path / "mount") == 7


def test_without_a_counter_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "MACHINE_COUNTER", tmp_path / "none")
    assert failures.oom_kills(tmp_path / "none", tmp_path) is None


def test_classifying_does_not_import_torch():
    code = "import sys; from runners.machine.failures import *; status_of(RuntimeError()); assert 'torch' not in sys"
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    code += ".modules"
    subprocess.run([sys.executable, "-c", path + code], check=True)
