"""Drive a planned sweep: what is missing, one job at a time, and what becomes of a job that dies."""

import contextlib
import signal
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from ablations.study import Cell, cell_key
from runners.cells.plan import Plan, estimate_seconds
from runners.cells.run import Job, blank_record, place, run_job
from runners.cli.progress import Display, format_seconds
from runners.jobs.executors import Running, start_local
from runners.jobs.pending import pending
from runners.machine.environment import device_id, pick_device
from runners.machine.failures import oom_kills
from runners.measures import MEASURES
from runners.store.lease import Lease, acquire, holder
from runners.store.names import cell_name
from runners.store.record import RecordName
from runners.store.store import Store

POLL_S = 0.2
LOG_TAIL_LINES = 4


@dataclass
class Sweep:
    """One run of a command line against a results folder."""

    plan: Plan
    store: Store
    measures: tuple[str, ...]
    study: str | None
    options: Namespace
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        """Settle the device, which the cells' records are named after."""
        self.device = pick_device(self.options.device)
        self._running: Running | None = None
        self._job: Job | None = None

    def run(self) -> None:
        """Run what is missing.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the running job is ended, what it recorded stays.
        """
        todo = self._enter_cells()
        if not todo:
            return
        estimates = [estimate_seconds(cell, measures) for cell, measures in todo]
        self._say(f"{len(todo)} cells to run, about {format_seconds(sum(estimates))}; results in {self.store.out}")
        try:
            with _sigterm_as_interrupt(), Display(self.console, estimates) as display:
                for index, (cell, measures) in enumerate(todo):
                    display.begin(index, cell_name(cell))
                    self._run_cell(cell, measures, display)
                display.finish()
        except KeyboardInterrupt:
            with _uninterrupted():
                if self._running and self._job:
                    self._running.kill()
                    self._free_lease(self._job.key)
            raise

    def is_complete(self) -> bool:
        """Whether every measure of every cell is recorded as ok or unsupported."""
        states = [pending(self.store, cell_key(cell), self.measures, self._device_id(cell)) for cell in self.plan.cells]
        return not any(state.run or state.failed for state in states)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _device_id(self, cell: Cell) -> str:
        return device_id(self.device, cell.threads)

    def _enter_cells(self) -> list[tuple[Cell, tuple[str, ...]]]:
        """Enter all cells into the store; say which are done, which failed before, and how to retry those."""
        todo, failed, done = [], Counter[str](), 0
        for cell in self.plan.cells:
            device, options = self._device_id(cell), self.options
            key = self.store.add_cell(cell, self.study, self.measures, device)
            if options.force:
                self.store.forget_states(key)
            state = pending(self.store, key, self.measures, device, retry=options.retry, force=options.force)
            failed.update(record.status for record in state.failed)
            done += not state.run and not state.failed
            if state.run:
                todo.append((cell, state.run))
        if done:
            self._say(f"skipped {done} of {len(self.plan.cells)} cells, they are done; --force measures them again")
        for status, count in sorted(failed.items()):
            what = "measure" if count == 1 else "measures"
            self._say(f"skipped {count} {what} that ended as {status}; --retry {status} runs them again")
        return todo

    def _run_cell(self, cell: Cell, measures: tuple[str, ...], display: Display) -> None:
        """Run a cell's measures, in further jobs if one dies; each measure once."""
        follower = _Follower(self.store, cell_key(cell), display)
        while True:
            follower.wait_for_others()
            measures = tuple(measure for measure in measures if measure not in follower.recorded)
            if not measures:
                return
            device = self._device_id(cell)
            job = Job(
                out=self.store.out,
                key=follower.key,
                cell=cell,
                attempts={m: self.store.next_attempt(follower.key, m, device, MEASURES[m].protocol) for m in measures},
                device=self.options.device,
                memory_limit_mib=self.options.memory_limit,
                save_weights=self.options.save_weights,
            )
            if self.options.cluster == "debug":
                run_job(job)
                follower.show_new()
            else:
                self._run_job(job, follower)

    def _run_job(self, job: Job, follower: "_Follower") -> None:
        """Start a job and follow it to its end; if it dies, the measure it was at becomes a record."""
        kills, started, limit_min = oom_kills(), time.monotonic(), self.options.time
        self.store.write_progress(job.key, {})
        self._job, self._running = job, start_local(job, self.store.log_folder(job.key))
        status = None
        while not self._running.is_done():
            follower.poll()
            if limit_min and time.monotonic() - started > 60 * limit_min:
                self._running.kill()
                status, reason = "timeout", f"stopped after {limit_min:g} min, the limit that --time set"
            time.sleep(POLL_S)
        log, self._running = self._running.log, None
        follower.show_new()
        left = [measure for measure in job.attempts if measure not in follower.recorded]
        held = holder(self.store.lease_path(job.key))
        if not left or (held and held.state != "dead"):
            return
        if status is None and (oom_kills() or 0) > (kills or 0):
            status, reason = "oom", "the kernel killed the job for lack of memory"
        elif status is None and held:
            status, reason = "killed", "the job's process was killed from outside"
        elif status is None:
            status, reason = "error", _tail(log) or "the job ended before it began to measure"
        self._record_death(job, follower, left, status, reason, log)

    def _record_death(
        self, job: Job, follower: "_Follower", left: list[str], status: str, reason: str, log: Path
    ) -> None:
        at = self.store.read_progress(job.key).get("measure")
        measure = at if at in left else left[0]
        blank = blank_record(job, measure, place(self.device, job.cell.threads))
        record = replace(blank, status=status, error_type="JobDied", error_message=reason, log_path=str(log))
        self.store.write_record(job.key, record)
        self._free_lease(job.key)
        follower.show_new()

    def _free_lease(self, key: str) -> None:
        """Remove the lease that a dead job left."""
        lease = acquire(self.store.lease_path(key))
        if isinstance(lease, Lease):
            lease.release()


class _Follower:
    """Eyes on one cell: its progress, and the records that appear, whoever writes them."""

    def __init__(self, store: Store, key: str, display: Display) -> None:
        self.store, self.key, self.display = store, key, display
        self.recorded: set[str] = set()
        self._seen: set[RecordName] = set(store.record_names(key))

    def show_new(self) -> None:
        new = set(self.store.record_names(self.key)) - self._seen
        for name in sorted(new, key=lambda name: list(MEASURES).index(name.measure)):
            self.display.found(self.store.read_record(self.key, name, samples=False))
            self.recorded.add(name.measure)
        self._seen |= new

    def poll(self) -> None:
        self.display.step(self.store.read_progress(self.key))
        self.show_new()

    def wait_for_others(self) -> None:
        """Wait while another live process works on the cell; what it records counts as done here."""
        told = False
        while (held := holder(self.store.lease_path(self.key))) and held.state != "dead":
            if not told and held.state == "live":
                self.display.say(f"      pid {held.pid} on {held.host} works on this cell; waiting for it")
                told = True
            self.poll()
            time.sleep(POLL_S)
        self.show_new()


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in lines[-LOG_TAIL_LINES:])


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which schedulers and shutdowns send, as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let an impatient second Ctrl-C not tear the cleaning up, which takes a second."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
