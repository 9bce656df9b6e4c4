import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from runners.machine import environment as module
from runners.machine import hardware as seam
from runners.machine.environment import (
    apply_threads,
    commit,
    device_id,
    environment,
    memory_limit,
    pick_device,
)
from runners.machine.hardware import hardware
from runners.store.record import RecordName

CPU = torch.device("cpu")


def test_environment_says_where_a_measurement_ran():
    found = environment(CPU)
    assert found["device"] == "cpu" and found["cpu_model"] == found["device_name"] != ""
    assert found["threads"] == torch.get_num_threads() and found["cores_usable"] >= 1
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_distribution_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "LIBRARIES", ("no-such-distribution",))
    assert environment()["versions"]["no-such-distribution"] is None


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path):
    for name in ("runners/machine/environment.py", "ablations/study.py", "attention_zoo/__init__.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "start")
    return tmp_path


def test_a_commit_is_clean_until_its_code_changes(checkout):
    sha = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "README.md").write_text("changed")
    assert commit.__wrapped__(checkout) == {"git_sha": sha, "git_dirty": False}
    (checkout / "attention_zoo" / "mine.py").write_text("new")
    assert commit.__wrapped__(checkout) == {"git_sha": sha, "git_dirty": True}


def test_an_installed_copy_inside_another_checkout_has_no_commit(checkout):
    installed = checkout / "venv" / "site-packages"
    (installed / "runners").mkdir(parents=True)
    (installed / "runners" / "environment.py").write_text("")
    assert commit.__wrapped__(installed) == {"git_sha": None, "git_dirty": None}


def test_without_git_there_is_no_commit(monkeypatch, checkout):
    monkeypatch.setenv("PATH", "")
    assert commit.__wrapped__(checkout) == {"git_sha": None, "git_dirty": None}


def test_device_ids_name_files_and_differ_where_timings_would(monkeypatch):
    monkeypatch.setattr(module, "cpu_model", lambda: "Intel(R) Xeon(R) Processor @ 2.90GHz / with a very long name")
    one = device_id(CPU, 1)
    assert one.startswith("cpu-intel_r_xeon_r_processor_2_90ghz-1t-")
    assert RecordName.parse(RecordName("throughput", one, 1, 1).file).device_id == one
    assert device_id(CPU, 1) == one != device_id(CPU, 2)
    assert device_id(CPU) == device_id(CPU, torch.get_num_threads())
    monkeypatch.setattr(module, "cpu_model", lambda: "Intel(R) Xeon(R) Processor @ 2.90GHz / with another long name")
    assert device_id(CPU, 1).rpartition("-")[0] == one.rpartition("-")[0] and device_id(CPU, 1) != one


def test_parts_of_one_gpu_have_different_ids_and_threads_do_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    whole = device_id(torch.device("cuda:0"), 1)
    assert whole.startswith("cuda-nvidia_h100_80gb_hbm3-")
    assert whole == device_id(torch.device("cuda:1"), 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10))
    assert whole != device_id(torch.device("cuda:0"), 1)


def test_auto_takes_the_best_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"--device cuda:2.*auto, cpu, cuda, cuda:0, cuda:1, mps"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda, cuda:N or mps, got '{name}'"):
        pick_device(name)


def test_threads_are_set_and_zero_is_refused():
    before = torch.get_num_threads()
    try:
        apply_threads(before + 1)
        apply_threads(None)
        assert torch.get_num_threads() == before + 1
        with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
            apply_threads(0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_a_memory_limit_holds_for_what_is_allocated_within_it():
    mib = 2**18  # floats
    with memory_limit(CPU, 200):
        torch.empty(100 * mib).fill_(1)
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            torch.empty(300 * mib)
    torch.empty(300 * mib)


FULL = """
import mmap
import numpy as np
import torch
from runners.machine.environment import memory_limit

with memory_limit(torch.device("cpu"), 64):
    held = []
    try:
        while True:
            held.append(mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError:
        held.pop()
    print(len(held), (np.ones((64, 64)) @ np.ones((64, 64))).sum())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_the_first_product_of_numpy_does_not_end_a_process_whose_memory_is_full():
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    held, total = done.stdout.split()
    assert 32 < int(held) <= 64 and float(total) == 64**3


def test_a_memory_limit_on_cuda_is_a_share_of_the_device_and_is_lifted(monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000 * 2**20))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    with memory_limit(torch.device("cuda"), 250):
        pass
    assert shares == [0.25, 1.0]


def test_a_memory_limit_that_cannot_be_kept_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"--memory-limit .* got mps"), memory_limit(torch.device("mps"), 100):
        pass
    monkeypatch.setattr(module, "process_memory_mib", lambda name: None)
    with pytest.raises(ValueError, match=r"--memory-limit .* got cpu"), memory_limit(CPU, 100):
        pass
    with memory_limit(CPU, None):
        pass


def test_the_host_is_timed_in_milliseconds(monkeypatch):
    monkeypatch.setattr(seam.time, "perf_counter", iter([1.0, 1.25]).__next__)
    machine = hardware(CPU)
    assert machine.elapsed_ms(machine.stamp(), machine.stamp()) == 250
    assert machine.peak_mib() == (None, None)


def test_cuda_is_timed_by_events_on_its_current_stream(monkeypatch):
    device, log = torch.device("cuda:1"), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(f"record on {stream}")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 7.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append(f"reset {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 4 * 2**20)
    machine = hardware(device)
    machine.synchronize()
    machine.reset_peak()
    assert machine.elapsed_ms(machine.stamp(), machine.stamp()) == 7.5
    assert machine.peak_mib() == (3.0, 4.0)
    assert log == ["synchronize cuda:1", "reset cuda:1", *["record on stream of cuda:1"] * 2, "wait"]


def test_planning_with_this_module_does_not_import_torch():
    code = "import sys; import runners.machine.environment; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True)
