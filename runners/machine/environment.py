"""Where a measurement ran: hardware, versions, commit; and what a process may use of it.

torch is imported where it is used, so that a command line can be planned without it.
"""

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("attention_zoo", "ablations", "runners")
LIBRARIES = ("attention-zoo", "timm", "fvcore", "numpy")
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Beginnings of the environment variables that decide where memory comes from."""
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""Make glibc keep what is freed: nothing mapped apart, nothing given back."""


def environment(device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Everything about this process and machine that can move a number; None for what is not known here."""
    import torch

    device = torch.device(device)
    return {
        "device": str(device),
        "device_name": device_name(device),
        "cpu_model": cpu_model(),
        "cores_logical": os.cpu_count(),
        "cores_usable": usable_cores(),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
            # with its build, as in 2.14.1+cu130
            "torch": str(torch.__version__),
        },
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "driver": _nvidia_driver() if device.type == "cuda" else None,
        **commit(),
    }


@functools.cache
def commit(checkout: Path = CHECKOUT) -> dict[str, Any]:
    """`git_sha` of the checkout that this code runs from and `git_dirty`; both None for an installed copy."""
    # a virtual environment inside another project's checkout is not a checkout of ours
    ours = _output("git", "-C", str(checkout), "ls-files", "--error-unmatch", "runners/machine/environment.py")
    sha = _output("git", "-C", str(checkout), "rev-parse", "HEAD") if ours else None
    changes = _output("git", "-C", str(checkout), "status", "--porcelain", "--", *PACKAGES) if sha else None
    return {"git_sha": sha, "git_dirty": None if changes is None else changes != ""}


@functools.cache
def code(checkout: Path = CHECKOUT) -> dict[str, Any]:
    """`commit` of this program and `source_sha256` of its files, which tells two uncommitted states apart."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (checkout / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(checkout)}\n{len(content)}\n".encode() + content)
    return {**commit(checkout), "source_sha256": digest.hexdigest()}


def device_id(device: "torch.device", threads: int | None = None) -> str:
    """File-name-safe word that is the same on equal machines and differs between types of device.

    Args:
        device: where the measurement runs.
        threads: CPU threads, part of the identity of a CPU alone; torch's present number by default.
    """
    import torch

    name = device_name(device)
    identity = [device.type, name]
    if device.type == "cpu":
        threads = threads or torch.get_num_threads()
        identity += [str(os.cpu_count()), str(threads)]
    elif device.type == "cuda":
        # parts of one board (MIG) share its name
        identity.append(str(torch.cuda.get_device_properties(device).total_memory))
    digest = hashlib.sha256("|".join(identity).encode()).hexdigest()[:6]
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:32].strip("_")
    return "-".join([device.type, slug, *([f"{threads}t"] if device.type == "cpu" else []), digest])


def device_name(device: "torch.device") -> str:
    """Model of the processor or accelerator."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


@functools.cache
def cpu_model() -> str:
    """Model of the processor as the system names it."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    if name:
        return name[1].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def check_device(name: str) -> str:
    """Check the name of a device for its form; only the machine that is to use it knows whether it is there.

    Raises:
        ValueError: another name.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    return name


def pick_device(name: str = "auto") -> "torch.device":
    """Device behind a `--device` value: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps.

    Raises:
        ValueError: another name, or a device that is not here.
    """
    check_device(name)
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = ["cpu", *(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "auto":
        name = "cuda" if cuda else available[-1]
    if name not in available:
        raise ValueError(f"--device {name} is not on this machine; allowed here: auto, {', '.join(available)}")
    return torch.device(name)


def check_local_ranks(name: str, count: int, given: str) -> None:
    """Check that `count` processes of this machine can train together on a `--device`, each GPU with one of them.

    Raises:
        ValueError: they cannot; `given` is how their number was asked for.
    """
    device = pick_device(name)
    if device.type == "mps" or device.index is not None:
        raise ValueError(f"{given} with --device {name}: each process needs a device of its own; allowed: cpu, cuda")
    if device.type == "cuda":
        import torch

        if count > (gpus := torch.cuda.device_count()):
            raise ValueError(
                f"{given}: each process needs a GPU of its own, and this machine shows {gpus}; give {gpus} or fewer, "
                "or --device cpu"
            )


def apply_threads(threads: int | None) -> None:
    """Set the CPU threads of torch's operators; None leaves torch's own choice.

    Raises:
        ValueError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())


@contextmanager
def memory_limit(device: "torch.device", limit_mib: int | None) -> Iterator[None]:
    """Within it this process may allocate `limit_mib` more than it holds: of a CUDA device, else in its data segment.

    RLIMIT_DATA counts writable private memory; RLIMIT_AS would count gigabytes of mapped libraries.

    Raises:
        ValueError: the system has no such limit.
    """
    if limit_mib is None:
        yield
    elif device.type == "cuda":
        import torch

        total_mib = torch.cuda.get_device_properties(device).total_memory / 2**20
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mib / total_mib), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    else:
        import numpy as np

        # OpenBLAS ends a process that has no memory for the buffers of its first product
        np.ones((256, 256)) @ np.ones((256, 256))
        used_mib = process_memory_mib("VmData")
        if used_mib is None or device.type != "cpu":
            raise ValueError(f"--memory-limit works on CUDA and on Linux CPUs, got {device} on {sys.platform}")
        import resource

        before = _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [int((used_mib + limit_mib) * 2**20), *(limit for limit in before if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def process_memory_mib(name: str) -> float | None:
    """A size out of Linux's /proc/self/status (VmRSS, VmHWM, VmData), None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    size = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(size[1]) / 1024 if size else None


def usable_cores() -> int | None:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _nvidia_driver() -> str | None:
    versions = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else None


def _output(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
