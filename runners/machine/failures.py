"""What a failure is called in a row: the one place that knows what running out of memory looks like."""

import errno
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# PyTorch reports a failed allocation as a plain RuntimeError everywhere but in its CUDA allocator.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (not enough|can't allocate) memory"
    r"|std::bad_alloc"
    r"|out of memory"
    # oneDNN; what it cannot do it refuses earlier, at the descriptor
    r"|could not create a memory object|could not (create|execute) a primitive(?! descriptor)"
    r"|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"not implemented for '|is not currently implemented for the|Could not run '\w+::"
    r"|does not have a deterministic implementation"
    # --sdpa asked for a kernel that cannot do this attention
    r"|No available kernel|No viable backend for scaled_dot_product_attention"
)
MACHINE_COUNTER = Path("/proc/vmstat")

_KILLS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class OutOfMemory(RuntimeError):
    """A measuring process ran out of memory."""


class Unsupported(RuntimeError):
    """A configuration that cannot run on this device or with these libraries; running it again will not help."""


class ChildFailed(RuntimeError):
    """A measuring process failed for another reason; its traceback is the message."""

    def __init__(self, message: str, status: str = "error") -> None:
        """Keep the word for a row beside the message."""
        super().__init__(message)
        self.status = status


def status_of(error: BaseException) -> str:
    """Word for a row: `oom`, `unsupported`, `diverged`, `timeout`, `killed` or `error`."""
    if is_out_of_memory(error):
        return "oom"
    if isinstance(error, ChildFailed):
        return error.status
    if isinstance(error, Unsupported) or (isinstance(error, RuntimeError) and _UNSUPPORTED.search(str(error))):
        return "unsupported"
    if _is_a(error, "runners.train.accuracy", "Diverged"):
        return "diverged"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "killed" if isinstance(error, KeyboardInterrupt) else "error"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory ran out, on any device."""
    return any(_says_out_of_memory(link) for link in _causes(error))


def was_oom_killed(returncode: int, kills_before: int | None) -> bool:
    """Whether a child that ended with `returncode` was ended by the kernel's out-of-memory killer.

    Args:
        returncode: as `subprocess` gives it, negative for a signal.
        kills_before: `oom_kills()` from before the child started.
    """
    kills = oom_kills()
    killed = returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    return killed and kills_before is not None and kills is not None and kills > kills_before


def oom_kills(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processes of this cgroup the out-of-memory killer has ended, None where nobody counts."""
    for counter in _kill_counters(membership, mount):
        try:
            counts = dict(line.split(maxsplit=1) for line in counter.read_text().splitlines())
        except OSError:
            continue
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return None


def exit_status(returncode: int) -> str:
    """Word for a child that left no message: `killed` by a signal that somebody sends, otherwise `error`."""
    return "killed" if -returncode in _KILLS or returncode - 128 in _KILLS else "error"


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, OutOfMemory)) or _is_a(error, "torch", "OutOfMemoryError"):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # a child has judged its own failure, and its traceback may quote anything
    plain = isinstance(error, RuntimeError) and not isinstance(error, ChildFailed)
    return plain and _OUT_OF_MEMORY.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _is_a(error: BaseException, module: str, name: str) -> bool:
    # who never imported the module cannot have raised its exception, and torch is slow to import
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _kill_counters(membership: Path, mount: Path) -> Iterator[Path]:
    """Files with an `oom_kill` line, the nearest first: cgroup 2, cgroup 1, the whole machine."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            # inside a container the path is the host's, the mount the container's own
            yield mount / "memory" / path.lstrip("/") / "memory.oom_control"
            yield mount / "memory" / "memory.oom_control"
        elif not controllers:
            yield mount / path.lstrip("/") / "memory.events"
            yield mount / "memory.events"
    yield MACHINE_COUNTER
