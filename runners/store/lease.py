"""Leases: at most one live process works on a cell.

A lease is a small file, created with O_EXCL, that names its owner: machine, pid and the pid's start time.
On the owner's own machine the process table decides whether it lives, so `kill -9` frees a lease at once and
a reused pid does not hold it. From any other machine the owner counts as live while its heartbeat, the file's
modification time, is younger than `STALE_S`. A dead lease is taken over under a lock (flock) on a side file. Where
the file system has no locks, whoever creates the one claim file that this dead lease can have takes it over.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from runners.store.files import StoreError

HEARTBEAT_S = 15.0
# several heartbeats, plus what the clocks of two nodes and the attribute cache of NFS may add
STALE_S = 120.0
# a file that names no owner is just being written, or its writer died between creating and writing it
GRACE_S = 5.0
# psutil derives a start time from the system clock, which may be corrected between two readings
START_TOLERANCE_S = 2.0

State = Literal["live", "dead", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Who holds a lease; `unknown`, a file younger than `GRACE_S` that names no owner yet, counts as held."""

    state: State
    host: str
    pid: int
    heartbeat_age_s: float


@dataclass(frozen=True)
class _Machine:
    """One process table: two processes see each other's pids only if all three agree."""

    host: str
    boot_id: str
    pid_namespace: str

    @classmethod
    def this(cls) -> "_Machine":
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(socket.gethostname(), boot_id, os.readlink("/proc/self/ns/pid"))
        except OSError:  # not Linux
            return cls(socket.gethostname(), "", "")


class Lease:
    """A lease that this process holds; a context manager that releases it on the way out."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Start the heartbeat; `acquire` calls this, with the open descriptor of the file it created."""
        self.path = path
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name=f"heartbeat {path}", daemon=True)
        self._heartbeat.start()

    def __enter__(self) -> "Lease":
        """Return the lease itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lease."""
        self.release()

    def is_mine(self) -> bool:
        """Whether the file on disk is still the one this process created: not removed, not taken over."""
        if self._released.is_set() or os.getpid() != self._pid:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Give the lease back; twice is once, and a file of another owner stays."""
        if self._released.is_set():
            return
        # a lease that cannot be removed, or whose folder is gone, dies with this process
        with contextlib.suppress(OSError), _locked(self.path):
            if self.is_mine():
                self.path.unlink()
        self._released.set()
        self._heartbeat.join()
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            # through the descriptor, so that a successor's file is never kept alive
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def acquire(path: Path) -> Lease | Held:
    """Take the lease, from a dead owner too, or say who holds it; its folder must exist.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        return _acquire(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _acquire(path: Path) -> Lease | Held:
    with _locked(path) as locked:
        looked_at = _identity(path)  # before it is judged
        current = holder(path)
        if current is not None and current.state != "dead":
            return current
        if current is not None and locked:
            path.unlink(missing_ok=True)
        elif current is not None and not _remove_by_claim(path, looked_at):
            return Held(state="unknown", host="", pid=0, heartbeat_age_s=0.0)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:  # another node was first, on a file system whose locks stay on one node
            return Held(state="unknown", host="", pid=0, heartbeat_age_s=0.0)
        try:
            owner = {**asdict(_Machine.this()), "pid": os.getpid(), "started": psutil.Process().create_time()}
            with open(descriptor, "w", closefd=False) as file:
                json.dump(owner, file)
            os.fsync(descriptor)
        except BaseException:
            path.unlink()
            os.close(descriptor)
            raise
    return Lease(path, descriptor)


def holder(path: Path) -> Held | None:
    """Who holds the lease, None if nobody does; reads only."""
    try:
        with path.open("rb") as file:
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
            text = file.read()
    except FileNotFoundError:
        return None
    state: State
    try:
        owner = json.loads(text)
        machine = _Machine(str(owner["host"]), owner["boot_id"], owner["pid_namespace"])
        pid, started = int(owner["pid"]), float(owner["started"])
    except (ValueError, TypeError, KeyError):
        state = "unknown" if age_s < GRACE_S else "dead"
        return Held(state=state, host="", pid=0, heartbeat_age_s=age_s)
    alive = _is_alive(pid, started) if machine == _Machine.this() else None
    if alive is None:
        alive = age_s < STALE_S
    return Held(state="live" if alive else "dead", host=machine.host, pid=pid, heartbeat_age_s=age_s)


def _is_alive(pid: int, started: float) -> bool | None:
    """Ask this machine's process table, which may refuse (None); a zombie is dead."""
    try:
        process = psutil.Process(pid)
        zombie = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return not zombie and abs(process.create_time() - started) < START_TOLERANCE_S
    except psutil.AccessDenied:
        return None
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of a lease, which no later one shares with a dead one; None if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove_by_claim(path: Path, dead: tuple[int, int] | None) -> bool:
    """Remove a dead lease without a lock; of all that try, for this very file, one succeeds.

    A claim whose owner died before it removed the lease gives way after `STALE_S`.
    """
    if dead is None:
        return False
    claim = path.with_name(f"{path.name}.{dead[0]:x}-{dead[1]:x}.claim")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > STALE_S:
                claim.unlink()
        return False
    mine = _identity(path) == dead
    if mine:
        path.unlink()
    # only now: who comes later finds that the dead file is gone
    claim.unlink(missing_ok=True)
    return mine


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock beside a lease, or say that there are none; the kernel drops it with the process."""
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # file systems without locks (some Lustre mounts)
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
