"""What became of the jobs of a results folder: who is alive, and for the dead a record or a reason.

Records on disk decide first, then SLURM, then the log. Whoever looks writes down what it finds, under the lease of
the cell, so that two who look at once write it once.
"""

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
from runners.jobs.submissions import Submission, TaskNote, Work
from runners.store.files import StoreError
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
    asked = [submission for submission in found.submissions if submission.name in open_tasks]
    if not asked:
        return found
    # asked before the disk is read: a job that ends in between has written its records
    states = slurm.poll(open_tasks, min(submission.time for submission in asked))
    found.alive = {task: state for task, state in states.items() if state.is_alive}
    busy = found.alive_measures()
    for submission in asked:
        if submission.job is None and not any(name == submission.name for name, _ in states):
            continue  # its submitter is at it, or was killed: `reconcile` knows
        for index in open_tasks[submission.name]:
            task = submission.name, index
            if task not in found.alive and _write_down(store, submission, index, states.get(task), busy):
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
        deadline = submission.time.timestamp() + SUBMIT_GRACE_S
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


def _write_down(
    store: Store, submission: Submission, index: int, state: JobState | None, busy: Mapping[str, set[str]]
) -> bool:
    """Record what became of a task's cells; False if one cannot be judged yet."""
    note = submissions.read_note(store, submission.name, index)
    log = submissions.log_path(store, submission, index)
    fate: Fate | None = None
    done = True
    for work in submission.tasks[index]:
        if not _left(store, work, note):
            continue
        try:
            lease = acquire(store.lease_path(work.key, submission.part))
            if not isinstance(lease, Lease):
                # a later job has the cell, or the heartbeat of a process on a dead node is still young
                done = done and bool(busy.get(work.key))
                continue
            with lease:
                if left := _left(store, work, note):
                    fate = fate or judge(state, log, told=submissions.was_cancelled(store, submission.name, index))
                    _write_cell(store, submission, work, left, note, fate, log, busy=work.key in busy)
        except StoreError as error:
            print(f"warning: {error}; what became of this cell is written down when it can be", file=sys.stderr)
            done = False
    return done


def _left(store: Store, work: Work, note: TaskNote | None) -> list[str]:
    """Measures of a cell that its task was to make and that nobody has recorded."""
    if note is None:
        return list(work.measures)
    here = note.device_ids[work.key]
    return [
        measure
        for measure, attempt in note.attempts[work.key].items()
        if store.next_attempt(work.key, measure, here, note.protocols[measure]) == attempt
    ]


def _write_cell(
    store: Store,
    submission: Submission,
    work: Work,
    left: list[str],
    note: TaskNote | None,
    fate: Fate,
    log: Path | None,
    *,
    busy: bool,
) -> None:
    """Record the measure that a job died at; say of what it did not come to why that is lost."""
    progress = store.read_progress(work.key, submission.part)
    at = progress.get("measure")
    message = fate.message
    if note and at in left and progress.get("slurm_job") == note.job and fate.status != "lost":
        from runners.cells.run import Job, Place, blank_record

        cell = Cell.from_dict(store.read_cell(work.key) or {})
        job = Job(out=store.out, key=work.key, cell=cell, attempts=note.attempts[work.key])
        blank = blank_record(job, at, Place(note.device_ids[work.key], note.environment))
        store.write_record(
            work.key,
            replace(
                blank,
                status=fate.status,
                started_at=note.started_at,
                error_type=fate.error_type,
                error_message=message,
                log_path=str(log) if log else None,
            ),
        )
        left.remove(at)
        message = f"the job ended in {at} as {fate.status}, before it came to {', '.join(left)}"
    if left and not busy:
        reason = {"error_type": fate.error_type, "error_message": message, "log_path": str(log) if log else None}
        store.write_lost(work.key, reason)


def judge(state: JobState | None, log: Path | None, *, told: bool = False) -> Fate:
    """Why a job ended, by SLURM's word if it has one that says so, else by its log; `told`: we told it to end."""
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
    if word == "CANCELLED" or (not word and (told or _CANCELLED.search(text))):
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
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text[max(0, text.rfind("Starting with JobEnvironment")) :]
