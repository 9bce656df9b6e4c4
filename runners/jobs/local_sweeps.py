"""Sweeps that run on this machine or on another one without SLURM, as `status` and `cancel` know them.

Each holds a lease of its own, `<out>/sweeps/<study>.<hex>.json`, which names its process and goes with it.
"""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runners.store.files import StoreError, is_file_or_link, list_names, make_folder
from runners.store.lease import Lease, acquire, holder, is_here
from runners.store.store import Store

WAIT_S = 30.0
UNNAMED = "sweep"


class LocalSweep(NamedTuple):
    """A sweep that is alive: the study that it is about, and its process."""

    study: str
    host: str
    pid: int
    path: Path


@contextlib.contextmanager
def announced(store: Store, study: str | None) -> Iterator[None]:
    """Let others see that a sweep is at work in a results folder; where that cannot be written it works unseen."""
    lease: object = None
    with contextlib.suppress(StoreError):
        folder = store.out / "sweeps"
        make_folder(store.out, folder)
        _clear(folder)
        lease = acquire(folder / f"{study or UNNAMED}.{secrets.token_hex(4)}.json")
    try:
        yield
    finally:
        if isinstance(lease, Lease):
            lease.release()
            _forget(lease.path)


def _clear(folder: Path) -> None:
    """Remove what sweeps that were killed have left."""
    for name in list_names(str(folder)):
        held = holder(folder / name) if name.endswith(".json") else None
        if held and held.state == "dead":
            _forget(folder / name)


def _forget(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}.lock")):
        with contextlib.suppress(OSError):
            file.unlink()


def alive(store: Store, study: str | None = None) -> list[LocalSweep]:
    """Sweeps that are at work in a results folder, of one study where it is named."""
    folder = store.out / "sweeps"
    found = []
    for name in sorted(list_names(str(folder))):
        own, _, end = name.removesuffix(".json").rpartition(".")
        if not name.endswith(".json") or not end or study not in (None, own):
            continue
        held = holder(folder / name)
        if held and held.state == "live":
            found.append(LocalSweep(own, held.host, held.pid, folder / name))
    return found


def end(sweep: LocalSweep) -> bool:
    """Ask a sweep to end, as Ctrl-C would, and wait for it; False if it is another machine's or another user's."""
    if not is_file_or_link(sweep.path) or sweep.path.lstat().st_uid != os.geteuid() or not is_here(sweep.path):
        return False
    try:
        os.kill(sweep.pid, signal.SIGTERM)
    except OSError:
        return False
    deadline = time.monotonic() + WAIT_S
    while (held := holder(sweep.path)) and held.state == "live" and time.monotonic() < deadline:
        time.sleep(0.1)
    return True
