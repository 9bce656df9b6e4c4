"""What became of the jobs of a results folder: who is alive, and for the dead a record or a reason.

Records on disk decide first, then SLURM, then the log. Whoever looks writes down what it finds, under the lease of
the cell, so that two who look at once write it once.
"""

import functools
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ablations.study import Cell
from runners.jobs import slurm, submissions
from runners.jobs.slurm import JobState, Task
from runners.jobs.submission import Submission, TaskNote, Work
from runners.store.files import StoreError, opened
from runners.store.lease import Lease, acquire
from runners.store.store import Store

TAIL_LINES = 4
LOG_BYTES = 20_000
# how long sbatch may take to be heard of when its caller was killed
SUBMIT_GRACE_S = 15.0

_OUT_OF_MEMORY = re.compile(r"oom[_-]kill|out.of.memory|exceeded (job )?memory limit", re.IGNORECASE)
_TIME_LIMIT = re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT")
_NODE_FAILURE = re.compile(r"DUE TO NODE FAILURE|error: Node failure on")
_CANCELLED = re.compile(r"\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT")
_KILLED = re.compile(r"error: \S+ tasks? \S+ (Killed|Terminated)|\bKilled\b")


class Fate(NamedTuple):
    """How a job ended: a status of a record, or `lost` where nobody knows; an error type and a sentence."""

    status: str
    error_type: str
    message: str


@dataclass
class Look:
    """What one look found; `alive` holds the tasks of jobs that wait or run."""

    submissions: list[Submission]
    alive: dict[Task, JobState] = field(default_factory=dict)

    def jobs(self, study: str | None, *, pending_only: bool = False) -> dict[Task, str]:
        """Tasks of a study, of all where it is None, that wait or run, and their numbers."""
        names = {submission.name for submission in self.submissions if study in (None, submission.study)}
        chosen = {task: state for task, state in self.alive.items() if task[0] in names}
        return {task: state.job for task, state in chosen.items() if state.is_pending or not pending_only}

    def alive_measures(self) -> dict[str, set[str]]:
        """Measures that a job which waits or runs is to make, by cell."""
        found: dict[str, set[str]] = {}
        for submission in self.submissions:
            for index, works in enumerate(submission.tasks):
                if (submission.name, index) in self.alive:
                    for work in works:
                        found.setdefault(work.key, set()).update(work.measures)
        return found


def look(store: Store) -> Look:
    """Ask SLURM once about all jobs that may be alive, and write down what became of the others.

    Raises:
        SlurmError: SLURM does not answer; nothing was written.
    """
    found = Look(submissions.read_all(store))
    open_tasks = {s.name: indices for s in found.submissions if (indices := submissions.unsettled(store, s))}
    unsettled = [submission for submission in found.submissions if submission.name in open_tasks]
    if not unsettled:
        return found
    # asked before the disk is read: a job that ends in between has written its records
    states = slurm.poll(open_tasks, min(submission.time for submission in unsettled))
    found.alive = {task: state for task, state in states.items() if state.is_alive}
    under_way = found.alive_measures()
    for submission in unsettled:
        if submission.job is None and not any(name == submission.name for name, _ in states):
            continue  # its submitter is at it, or was killed: `reconcile` knows
        for index in open_tasks[submission.name]:
            task = submission.name, index
            if task in found.alive:
                continue
            if _EndedTask(store, submission, index, states.get(task), under_way).write():
                submissions.settle(store, submission.name, index)
    return found


def reconcile(store: Store) -> None:
    """Complete or withdraw submissions whose submitter was killed at it; the caller holds the submitters' lease.

    Raises:
        SlurmError: SLURM does not answer.
    """
    for submission in submissions.read_all(store):
        if submission.job is not None:
            continue
        # a submission of the future has waited long enough, too
        deadline = min(submission.time.timestamp(), time.time()) + SUBMIT_GRACE_S
        while not (known := _number(store, submission)) and time.time() < deadline:
            time.sleep(1)
        if known:
            submissions.write(store, replace(submission, job=known))
        else:
            submissions.withdraw(store, submission)


def _number(store: Store, submission: Submission) -> str | None:
    """Number that SLURM gave an array, by its name or by the files of its tasks."""
    for state in slurm.poll([submission.name], submission.time).values():
        return state.job.partition("_")[0]
    for index in range(len(submission.tasks)):
        if log := submissions.log_path(store, submission, index):
            return log.name.partition("_")[0]
    return None


class _EndedTask:
    """A task whose job has ended: what of its cells is not on record gets a record, or a reason why there is none."""

    def __init__(
        self,
        store: Store,
        submission: Submission,
        index: int,
        state: JobState | None,
        under_way: Mapping[str, set[str]],
    ) -> None:
        """Read what the task left; `under_way` are the measures that other jobs are to make, by cell."""
        self.store, self.submission, self.under_way = store, submission, under_way
        self.works = submission.tasks[index]
        self.note = submissions.read_note(store, submission.name, index)
        self.log = submissions.log_path(store, submission, index)
        self._state, self._index = state, index

    @functools.cached_property
    def fate(self) -> Fate:
        """How the job ended."""
        cancelled = submissions.was_cancelled(self.store, self.submission.name, self._index)
        return judge(self._state, self.log, cancelled=cancelled)

    def write(self) -> bool:
        """Write down what became of its cells; False if one cannot be judged yet."""
        return all([self._write_cell(work) for work in self.works])

    def _write_cell(self, work: Work) -> bool:
        if not self._unrecorded(work):
            return True
        try:
            lease = acquire(self.store.lease_path(work.key, self.submission.part))
            if not isinstance(lease, Lease):
                # a later job has the cell, or the heartbeat of a process on a dead node is still young
                return bool(self.under_way.get(work.key))
            with lease:
                if measures := self._unrecorded(work):  # nobody else has written them by now
                    self._write_measures(work.key, measures)
        except StoreError as error:
            print(f"warning: {error}; what became of this cell is written down when it can be", file=sys.stderr)
            return False
        return True

    def _unrecorded(self, work: Work) -> list[str]:
        """Measures of a cell that the task was to make and that nobody has recorded."""
        if self.note is None or work.key not in self.note.attempts:
            return list(work.measures)
        device_id = self.note.device_ids[work.key]
        return [
            measure
            for measure, attempt in self.note.attempts[work.key].items()
            if self.store.next_attempt(work.key, measure, device_id, self.note.protocols[measure]) == attempt
        ]

    def _write_measures(self, key: str, measures: list[str]) -> None:
        """Record the measure that the job died at; say of those that it did not come to why they are lost."""
        progress, fate = self.store.read_progress(key, self.submission.part), self.fate
        current, message = str(progress.get("measure")), fate.message
        is_here = self.note and current in measures and progress.get("slurm_job") == self.note.job
        cell = self.store.cell(key)
        if self.note and cell and is_here and fate.status != "lost":
            self._record(self.note, key, cell, current)
            measures.remove(current)
            message = f"the job ended in {current} as {fate.status}, before it came to {', '.join(measures)}"
        if measures and key not in self.under_way:
            log = str(self.log) if self.log else None
            self.store.write_lost(key, {"error_type": fate.error_type, "error_message": message, "log_path": log})

    def _record(self, note: TaskNote, key: str, cell: Cell, measure: str) -> None:
        # torch, which a look that finds nothing does without
        from runners.cells.job import Job, Place
        from runners.cells.run import blank_record

        job = Job(out=self.store.out, key=key, cell=cell, attempts=note.attempts[key])
        place = Place(note.device_ids[key], note.environment)
        record = replace(
            blank_record(job, measure, place, described=_is_safe_to_describe(cell)),
            status=self.fate.status,
            started_at=note.started_at,
            error_type=self.fate.error_type,
            error_message=self.fate.message,
            log_path=str(self.log) if self.log else None,
        )
        self.store.write_record(key, record)


def _is_safe_to_describe(cell: Cell) -> bool:
    """Whether a cell can be described without importing a module that only a file names."""
    from runners.cells.models import describe

    if ":" in cell.attn:
        return False
    try:
        describe(cell)
    except (ValueError, TypeError):  # of another version, or of nobody's
        return False
    return True


def judge(state: JobState | None, log: Path | None, *, cancelled: bool = False) -> Fate:
    """Why a job ended, by SLURM's word if it has one that says so, else by its log; `cancelled`: we told it to end."""
    text = _end_of(log)
    tail = " | ".join(line.strip() for line in text.strip().splitlines()[-TAIL_LINES:])
    word = state.state if state else ""
    job = f"job {state.job}" if state else "the job"
    where = f" on {state.nodes}" if state and state.nodes else ""
    if word == "OUT_OF_MEMORY" or (word in ("FAILED", "CANCELLED", "") and _OUT_OF_MEMORY.search(text)):
        return Fate("oom", "OutOfMemory", f"{job}{where} ran out of the memory that --mem gave it")
    if word in ("TIMEOUT", "DEADLINE") or (not word and _TIME_LIMIT.search(text)):
        return Fate("timeout", "TimeLimit", f"{job}{where} was ended at its time limit")
    if word in ("NODE_FAIL", "BOOT_FAIL") or (not word and _NODE_FAILURE.search(text)):
        return Fate("killed", "NodeFailure", f"{job} lost its node{where}")
    if word == "PREEMPTED":
        return Fate("killed", "Preempted", f"{job}{where} was preempted and not run again")
    if word == "CANCELLED" or (not word and (cancelled or _CANCELLED.search(text))):
        return Fate("killed", "Cancelled", f"{job}{where} was cancelled")
    if word in ("COMPLETED", "") and not _KILLED.search(text) and "Traceback" not in text:
        what = "ended without a record" if word else "is not known to SLURM any more"
        return Fate("lost", "JobLost", f"{job}{where} {what}{': ' if tail else ''}{tail}")
    if _KILLED.search(text) or (state and not state.exit_code.endswith(":0") and ":" in state.exit_code):
        return Fate("killed", "Killed", f"a process of {job}{where} was killed from outside")
    code = f" with exit code {state.exit_code.partition(':')[0]}" if state and state.exit_code else ""
    return Fate("error", "JobDied", f"{job}{where} failed{code}: {tail or 'it wrote no log'}")


def _end_of(log: Path | None) -> str:
    """The last run's part of a log, its end."""
    if log is None:
        return ""
    try:
        with opened(str(log)) as descriptor:
            os.lseek(descriptor, max(0, os.fstat(descriptor).st_size - LOG_BYTES), os.SEEK_SET)
            text = os.read(descriptor, LOG_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ""
    return text[max(0, text.rfind("Starting with JobEnvironment")) :]
