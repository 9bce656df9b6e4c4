"""Leases: at most one live process works on a cell.

A lease is a small file, created with O_EXCL, that names its owner: machine, pid and the pid's start time.
On the owner's own machine the process table decides whether it lives, so `kill -9` frees a lease at once and
a reused pid does not hold it. From any other machine the owner counts as live while its heartbeat, the file's
modification time, is younger than `STALE_S`; a time as far in the future is no heartbeat. A dead lease is taken over
under a lock (flock) on a side file. Where the file system has no locks, whoever creates the one claim file that this
dead lease can have takes it over.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from runners.store.files import StoreError, opened
from runners.store.strict_json import parse

HEARTBEAT_S = 15.0
# several heartbeats, plus what the clocks of two nodes and the attribute cache of NFS may add
STALE_S = 120.0
# a file that names no owner is just being written, or its writer died between creating and writing it
GRACE_S = 5.0
# whoever holds the lock beside a lease does so for milliseconds
LOCK_S = 60.0
# an owner is written in some hundred bytes
OWNER_BYTES = 1 << 16
# psutil derives a start time from the system clock, which may be corrected between two readings
START_TOLERANCE_S = 2.0

State = Literal["live", "dead", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Who holds a lease; `heartbeat_age_s` is how far its time lies from now, in the past or in the future.

    `unknown` counts as held: a file younger than `GRACE_S` that names no owner yet, or one that we may not read.
    """

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
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
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
            _discard(path)
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
        found, text = _look(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    age_s = abs(time.time() - found.st_mtime)
    nobody = Held(state="unknown" if age_s < GRACE_S else "dead", host="", pid=0, heartbeat_age_s=age_s)
    if text is None:  # of another user, whose process table would not tell us either
        return Held(state="unknown" if age_s < STALE_S else "dead", host="", pid=0, heartbeat_age_s=age_s)
    try:
        owner = parse(text.decode())
        machine = _Machine(str(owner["host"]), owner["boot_id"], owner["pid_namespace"])
        pid, started = int(owner["pid"]), float(owner["started"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return nobody
    alive = _is_alive(pid, started) if machine == _Machine.this() else None
    if alive is None:
        alive = age_s < STALE_S
    return Held(state="live" if alive else "dead", host=machine.host, pid=pid, heartbeat_age_s=age_s)


def is_here(path: Path) -> bool:
    """Whether the owner of a lease is a live process of this machine, which its process table knows by its start."""
    try:
        _, text = _look(path)
        owner = parse((text or b"").decode())
        machine = _Machine(str(owner["host"]), owner["boot_id"], owner["pid_namespace"])
        return machine == _Machine.this() and _is_alive(int(owner["pid"]), float(owner["started"])) is True
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return False


def _look(path: Path) -> tuple[os.stat_result, bytes | None]:
    """Times of a lease, and its content; that of a link, a pipe or a folder is empty, None if we may not read it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
    """
    try:
        with opened(str(path)) as descriptor:
            return os.fstat(descriptor), os.read(descriptor, OWNER_BYTES)
    except ValueError:
        return os.lstat(path), b""
    except PermissionError:
        return os.lstat(path), None


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
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _discard(path: Path) -> None:
    """Remove a dead lease; a folder in its place is set aside, with whatever is in it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
    else:
        path.unlink(missing_ok=True)


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
            if abs(time.time() - claim.lstat().st_mtime) > STALE_S:
                claim.unlink()
        return False
    mine = _identity(path) == dead
    if mine:
        _discard(path)
    # only now: who comes later finds that the dead file is gone
    claim.unlink(missing_ok=True)
    return mine


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock beside a lease, or say that there are none; the kernel drops it with the process."""
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            # file systems without locks (some Lustre mounts)
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock of a file, not for ever: its holder may be stopped, or on a node that hangs."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has locked it for {LOCK_S:g} s") from error
            time.sleep(0.005)
