"""Run a planned sweep on this machine: what is missing, one job at a time, and what becomes of a job that dies."""

import contextlib
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from rich.console import Console

from ablations.study import Cell, cell_key
from runners.cells.job import Job
from runners.cells.plan import Plan, estimate_seconds
from runners.cells.plan_training import Spelling
from runners.cells.registered import offered
from runners.cells.run import died, place, run_job
from runners.cells.source import code_of_cell
from runners.jobs.executors import Running, start_local
from runners.jobs.follow import POLL_S, Follower, Todo
from runners.jobs.local_sweeps import announced
from runners.jobs.options import RunOptions
from runners.jobs.pending import Pending, pending
from runners.jobs.progress import Display, count, format_seconds
from runners.machine.environment import device_id, pick_device, usable_cores
from runners.machine.failures import oom_kills
from runners.measures import MEASURES
from runners.store.files import StoreError, check_inside, is_gone, make_folder
from runners.store.lease import Lease, acquire, holder
from runners.store.names import cell_name
from runners.store.states import forget_states
from runners.store.store import Store

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
        estimates = [estimate_seconds(item.cell, item.measures) for item in todo]
        self._say(f"{len(todo)} cells to run, about {format_seconds(sum(estimates))}; results in {self.store.out}")
        self._warn_of_threads()
        try:
            announcement = announced(self.store, self.study)
            with _sigterm_as_interrupt(), announcement, Display(self.console, estimates) as display:
                for index in range(len(todo)):
                    # what another process works on comes last: it may be done by then
                    free = (i for i, item in enumerate(todo) if not self._is_held(item.key))
                    item = todo.pop(next(free, 0))
                    display.begin(index, cell_name(item.cell))
                    try:
                        self._run_cell(item, display)
                    except StoreError as error:
                        self._skip(error)
                display.finish()
        except BaseException:  # Ctrl-C, or a reader of the output that has gone: a job does not outlive its sweep
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

    def _warn_of_threads(self) -> None:
        """Say so if the processes of a training have more threads than there are processors."""
        count, cores = self.options.processes, usable_cores()
        threads = max(cell.threads or torch.get_num_threads() for cell in self.plan.cells)
        if count > 1 and self.device.type == "cpu" and cores and count * threads > cores:
            fewer = self.spell("threads", [str(max(1, cores // count))])
            self._say(f"warning: {count} processes of {threads} threads on {cores} processors; {fewer} may be faster")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _device_id(self, cell: Cell) -> str:
        return device_id(self.device, cell.threads)

    def _pending(self, cell: Cell, *, retry: tuple[str, ...] = (), force: bool = False) -> Pending:
        """What of a cell is to be measured; a mechanism whose code has changed is measured anew."""
        code = code_of_cell(cell)
        device = self._device_id(cell)
        return pending(self.store, cell_key(cell), self.measures, device, retry=retry, force=force, code=code)

    def _skip(self, error: StoreError) -> None:
        """Go on with the other cells after one that cannot be written; there are none if the whole folder is gone."""
        if is_gone(self.store.out):
            raise error
        self._say(f"error: {error}")

    def _is_held(self, key: str) -> bool:
        lease = self.store.holder(key)
        return lease is not None and lease.state != "dead"

    def _enter_cells(self) -> list[Todo]:
        """Enter all cells into the store; say which are done, which failed before, and how to retry those."""
        todo, failed, done, changed = list[Todo](), Counter[str](), 0, 0
        for cell in self.plan.cells:
            device, options = self._device_id(cell), self.options
            try:
                key = self.store.add_cell(cell, self.study, self.measures, device)
                if options.force:
                    forget_states(self.store, key)
            except StoreError as error:
                self._skip(error)
                continue
            # before it is decided what to measure: what appears after it is another process's, and need not be again
            names = frozenset(self.store.record_names(key))
            state = self._pending(cell, retry=options.retry, force=options.force)
            failed.update(record.status for record in state.failed)
            done += not state.run and not state.failed
            changed += bool(state.changed)
            if state.run:
                todo.append(Todo(cell, key, state.run, names))
        again = self.spell("force", ["on"])
        if done:
            self._say(f"skipped {done} of {len(self.plan.cells)} cells, they are done; {again} measures them again")
        if changed:
            self._say(f"{count(changed, 'cell')} measured before the code of the mechanism changed: measured again")
        for status, number in sorted(failed.items()):
            retry = self.spell("retry", [status])
            self._say(f"skipped {count(number, 'measure')} that ended as {status}; {retry} runs them again")
        return todo

    def _run_cell(self, item: Todo, display: Display) -> None:
        """Run a cell's measures, in further jobs if one dies; each measure once, whoever measures it."""
        cell, device = item.cell, self._device_id(item.cell)
        follower = Follower(self.store, item, device, display)
        while True:
            follower.wait_for_others()
            measures = [measure for measure in item.measures if measure not in follower.recorded]
            if not measures:
                return
            if self.options.processes > 1:
                # what is no training has a job of one process, before
                measures = [m for m in measures if not MEASURES[m].can_resume] or measures
            job = Job(
                out=self.store.out,
                key=follower.key,
                cell=cell,
                # of the records that the follower has seen: one that appears now takes the number, and the job sees it
                attempts={m: follower.next_attempt(m) for m in measures},
                device=self.options.device,
                memory_limit_mib=self.options.memory_limit,
                patience_s=self.options.patience,
                workers=self.options.workers,
                checkpoint_every_s=self.options.checkpoint_every,
                save_weights=self.options.save_weights,
                tensorboard=self.options.tensorboard,
                save_predictions=self.options.save_predictions,
            )
            if self.options.cluster == "debug":
                with follower.in_background():
                    run_job(job)
                follower.show_new()
            else:
                self._run_job(job, follower)

    def _run_job(self, job: Job, follower: Follower) -> None:
        """Start a job and follow it to its end; if it dies, the measure it was at becomes a record."""
        kills = oom_kills() or 0
        self.store.write_progress(job.key, {})
        with offered(job.cell.attn) as mechanism:
            logs = self.store.log_folder(job.key)
            make_folder(self.store.out, logs)
            processes = self.options.processes if all(MEASURES[m].can_resume for m in job.attempts) else 1
            self._job, self._running = job, start_local(job, logs, mechanism, processes)
            in_time = self._wait(self._running, follower)
        log, self._running = self._running.log, None
        check_inside(self.store.out, logs)
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
        here = place(self.device, job.cell.threads)
        self.store.write_record(job.key, died(job, measure, here, log, status=status, reason=reason))
        self._free_lease(job.key)
        follower.show_new()

    def _wait(self, running: Running, follower: Follower) -> bool:
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
        with contextlib.suppress(StoreError):  # the folder may be gone, and the lease with it
            lease = acquire(self.store.lease_path(key))
            if isinstance(lease, Lease):
                lease.release()


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
