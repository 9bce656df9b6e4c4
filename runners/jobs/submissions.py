"""Submissions to SLURM as files, so that any later process knows which job is to measure which cell.

    <out>/jobs/<name>/submission.json   written before sbatch; <name> is also what SLURM calls the array
                      payload.pkl       what every task of the array starts from
                      task-<i>.json     written by task i when it begins: where it runs, which attempts it makes
                      cancelled-<i>     empty: `cancel` has told SLURM to end task i
                      settled-<i>       empty: task i has ended, and what became of its cells is on record
                      <job>_<i>_...     submitit's files and the logs

The name is unique and SLURM answers by name, so a submitter that is killed between sbatch and its next line loses
nothing: whoever comes next asks SLURM whether the name is known, and withdraws the submission if it is not.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runners.store.files import list_names, read_json, touch, write_json
from runners.store.store import Store

FILE = "submission.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an array asks of SLURM: options of sbatch by their long names, and how it goes on after a time limit.

    `time_min` is the limit of one run in minutes, `max_requeues` None stands for as long as a run gets further.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    time_min: int = 60
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    max_parallel: int | None = None
    cells_per_job: int = 1
    max_requeues: int | None = None
    exclusive: bool = False

    @property
    def world_size(self) -> int:
        """Processes of a job: one per GPU, or one per node."""
        return self.nodes * (self.gpus_per_node or 1)

    @property
    def target(self) -> tuple[str | int | None, ...]:
        """What decides on which kind of device a job runs."""
        chosen = (self.options.get(name) for name in ("partition", "constraint", "nodelist", "gres", "gpus"))
        return *chosen, self.gpus_per_node

    def sbatch_options(self, cpus: int | None = None, *, exclusive: bool = False) -> dict[str, str | int]:
        """All that sbatch is told beside names and files."""
        numbers = {
            "time": self.time_min,
            "nodes": self.nodes,
            "ntasks-per-node": self.world_size // self.nodes,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task or cpus,
            "exclusive": "" if exclusive else None,
        }
        return {**self.options, **{name: value for name, value in numbers.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Measures of one cell that a task is to make."""

    key: str
    measures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One array; task i does `tasks[i]`, one cell after another.

    `code` is `environment.code` of the process that submitted, `job` the number that SLURM gave, None until it did.
    """

    name: str
    study: str
    tasks: tuple[tuple[Work, ...], ...]
    request: Request
    part: str = ""
    device: str = "auto"
    memory_limit_mib: int | None = None
    patience_s: float = 60.0
    save_weights: bool = False
    retry: tuple[str, ...] = ()
    force: bool = False
    code: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: str = ""
    job: str | None = None

    @property
    def time(self) -> datetime:
        """When it was submitted."""
        return datetime.fromisoformat(self.submitted_at)

    @property
    def measures(self) -> dict[str, tuple[str, ...]]:
        """Measures by cell."""
        return {work.key: work.measures for task in self.tasks for work in task}


@dataclass(frozen=True, kw_only=True)
class TaskNote:
    """What a task says when it begins: where it runs, and the number that the record of each measure will get."""

    job: str
    restarts: int
    environment: Mapping[str, Any]
    device_ids: Mapping[str, str]
    attempts: Mapping[str, Mapping[str, int]]
    protocols: Mapping[str, int]
    started_at: str


def new_name(study: str) -> str:
    """Name of an array that no other has."""
    return f"{study}.{secrets.token_hex(4)}"


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def jobs_folder(store: Store) -> Path:
    """Where all submissions are."""
    return store.out / "jobs"


def folder(store: Store, name: str) -> Path:
    """Where the files of a submission are."""
    return jobs_folder(store) / name


def write(store: Store, submission: Submission) -> None:
    """Write a submission, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(folder(store, submission.name) / FILE, asdict(submission))


def read(store: Store, name: str) -> Submission | None:
    """Read a submission; None if it was withdrawn or cleaned, or if a newer version has written it."""
    content = read_json(folder(store, name) / FILE)
    try:
        if content is None:
            return None
        tasks = tuple(
            tuple(Work(key=work["key"], measures=tuple(work["measures"])) for work in task) for task in content["tasks"]
        )
        request = Request(**content["request"])
        return Submission(**{**content, "tasks": tasks, "request": request, "retry": tuple(content["retry"])})
    except (TypeError, KeyError):
        return None


def read_all(store: Store, study: str | None = None) -> list[Submission]:
    """All submissions, of one study where it is named, the oldest first."""
    found = [read(store, name) for name in list_names(str(jobs_folder(store)))]
    chosen = [submission for submission in found if submission and study in (None, submission.study)]
    return sorted(chosen, key=lambda submission: (submission.submitted_at, submission.name))


def withdraw(store: Store, submission: Submission) -> None:
    """Take back a submission that SLURM never got; should its job turn up after all, it finds nothing to do."""
    hidden = jobs_folder(store) / f".{submission.name}"
    os.replace(folder(store, submission.name), hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def write_note(store: Store, name: str, index: int, note: TaskNote) -> None:
    """Write what a task says when it begins.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(folder(store, name) / f"task-{index}.json", asdict(note))


def read_note(store: Store, name: str, index: int) -> TaskNote | None:
    """What a task said when it began, None if it has not."""
    content = read_json(folder(store, name) / f"task-{index}.json")
    try:
        return TaskNote(**content) if content else None
    except TypeError:
        return None


def note_cancel(store: Store, name: str, index: int) -> None:
    """Note that a task is to be cancelled: of an array's task that never started SLURM may keep no trace.

    Raises:
        StoreError: it cannot be written.
    """
    touch(folder(store, name) / f"cancelled-{index}")


def was_cancelled(store: Store, name: str, index: int) -> bool:
    """Whether `note_cancel` was called for a task."""
    return (folder(store, name) / f"cancelled-{index}").exists()


def settle(store: Store, name: str, index: int, *, settled: bool = True) -> None:
    """Note that what became of a task's cells is on record, or that the task has begun again."""
    path = folder(store, name) / f"settled-{index}"
    if settled:
        touch(path)
    else:
        path.unlink(missing_ok=True)


def unsettled(store: Store, submission: Submission) -> list[int]:
    """Tasks that may still run, or whose end nobody has looked at."""
    names = set(list_names(str(folder(store, submission.name))))
    return [index for index in range(len(submission.tasks)) if f"settled-{index}" not in names]


def log_path(store: Store, submission: Submission, index: int) -> Path | None:
    """Log of a task's first process, None if it has written none."""
    pattern = f"*_{index}_0_log.out" if len(submission.tasks) > 1 else "*_0_log.out"
    return next(iter(sorted(folder(store, submission.name).glob(pattern))), None)


def leftovers(store: Store, submission: Submission) -> list[Path]:
    """Files of a submission that nobody needs once its jobs have ended and its cells are done."""
    return [
        path
        for path in folder(store, submission.name).iterdir()
        if path.name != FILE and not path.name.startswith(("task-", "settled-"))
    ]
