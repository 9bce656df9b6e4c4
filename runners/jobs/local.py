"""Run a planned sweep on this machine: what is missing, one job at a time, and what becomes of a job that dies."""

import contextlib
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from ablations.study import Cell, cell_key
from runners.cells.models import describe
from runners.cells.plan import Plan, Spelling, estimate_seconds
from runners.cells.registered import offered
from runners.cells.run import Job, blank_record, place, run_job
from runners.jobs.executors import Running, start_local
from runners.jobs.options import RunOptions
from runners.jobs.pending import Pending, pending
from runners.jobs.progress import Display, format_seconds
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
class LocalRun:
    """One run of a plan against a results folder."""

    plan: Plan
    store: Store
    measures: tuple[str, ...]
    study: str | None
    options: RunOptions
    spell: Spelling
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
            # a second Ctrl-C must not interrupt the cleaning up, which takes a second
            with _handler(signal.SIGINT, signal.SIG_IGN):
                if self._running and self._job:
                    self._running.kill()
                    self._free_lease(self._job.key)
            raise

    def is_complete(self) -> bool:
        """Whether every measure of every cell is recorded as ok or unsupported."""
        states = [self._pending(cell) for cell in self.plan.cells]
        return not any(state.run or state.failed for state in states)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _device_id(self, cell: Cell) -> str:
        return device_id(self.device, cell.threads)

    def _pending(self, cell: Cell, *, retry: tuple[str, ...] = (), force: bool = False) -> Pending:
        """What of a cell is to be measured; a mechanism that was registered anew is measured anew."""
        code = describe(cell).columns.get("attention_hash")
        device = self._device_id(cell)
        return pending(self.store, cell_key(cell), self.measures, device, retry=retry, force=force, code=code)

    def _enter_cells(self) -> list[tuple[Cell, tuple[str, ...]]]:
        """Enter all cells into the store; say which are done, which failed before, and how to retry those."""
        todo, failed, done = [], Counter[str](), 0
        for cell in self.plan.cells:
            device, options = self._device_id(cell), self.options
            key = self.store.add_cell(cell, self.study, self.measures, device)
            if options.force:
                self.store.forget_states(key)
            state = self._pending(cell, retry=options.retry, force=options.force)
            failed.update(record.status for record in state.failed)
            done += not state.run and not state.failed
            if state.run:
                todo.append((cell, state.run))
        again = self.spell("force", ["on"])
        if done:
            self._say(f"skipped {done} of {len(self.plan.cells)} cells, they are done; {again} measures them again")
        for status, count in sorted(failed.items()):
            what = "measure" if count == 1 else "measures"
            retry = self.spell("retry", [status])
            self._say(f"skipped {count} {what} that ended as {status}; {retry} runs them again")
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
                patience_s=self.options.patience,
                save_weights=self.options.save_weights,
            )
            if self.options.cluster == "debug":
                run_job(job)
                follower.show_new()
            else:
                self._run_job(job, follower)

    def _run_job(self, job: Job, follower: "_Follower") -> None:
        """Start a job and follow it to its end; if it dies, the measure it was at becomes a record."""
        kills = oom_kills() or 0
        self.store.write_progress(job.key, {})
        with offered(job.cell.attn) as mechanism:
            self._job, self._running = job, start_local(job, self.store.log_folder(job.key), mechanism)
            in_time = self._wait(self._running, follower)
        log, self._running = self._running.log, None
        follower.show_new()
        missing = [measure for measure in job.attempts if measure not in follower.recorded]
        lease = holder(self.store.lease_path(job.key))
        if not missing or (lease and lease.state != "dead"):
            return
        if not in_time:
            limit = self.spell("time", [])
            status, reason = "timeout", f"stopped after {self.options.time:g} min, the limit that {limit} set"
        elif (oom_kills() or 0) > kills:
            status, reason = "oom", "the kernel killed the job for lack of memory"
        elif lease:
            status, reason = "killed", "the job's process was killed from outside"
        else:
            status, reason = "error", _tail(log) or "the job ended before it began to measure"
        current = self.store.read_progress(job.key).get("measure")
        measure = current if current in missing else missing[0]
        blank = blank_record(job, measure, place(self.device, job.cell.threads))
        record = replace(blank, status=status, error_type="JobDied", error_message=reason, log_path=str(log))
        self.store.write_record(job.key, record)
        self._free_lease(job.key)
        follower.show_new()

    def _wait(self, running: Running, follower: "_Follower") -> bool:
        """Show what a job does until it has ended; False if it was ended at its time limit."""
        deadline = time.monotonic() + 60 * (self.options.time or math.inf)
        while not running.is_done():
            follower.poll()
            if time.monotonic() > deadline:
                running.kill()
                return False
            time.sleep(POLL_S)
        return True

    def _free_lease(self, key: str) -> None:
        """Remove the lease that a dead job left."""
        lease = acquire(self.store.lease_path(key))
        if isinstance(lease, Lease):
            lease.release()


class _Follower:
    """Shows what happens to one cell: its progress, and the records that appear, whoever writes them."""

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
        said = False
        while (lease := holder(self.store.lease_path(self.key))) and lease.state != "dead":
            if not said and lease.state == "live":
                self.display.say(f"      pid {lease.pid} on {lease.host} works on this cell; waiting for it")
                said = True
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

    with _handler(signal.SIGTERM, interrupt):
        yield


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Handle a signal in another way; a thread, such as one of a notebook server, leaves it to the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
