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

import contextlib
import os
import secrets
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from runners.jobs.submission import Request, Submission, TaskNote, Work, check, is_sound
from runners.store.files import check_inside, is_file_or_link, list_names, read_json, remove, touch, write_json
from runners.store.store import Store

FILE = "submission.json"


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
    """Where the files of a submission are.

    Raises:
        StoreError: the results folder is gone, or the folder would be reached through a link.
    """
    place = jobs_folder(store) / name
    check_inside(store.out, place)
    return place


def write(store: Store, submission: Submission) -> None:
    """Write a submission, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(folder(store, submission.name) / FILE, asdict(submission), root=store.out)


def read(store: Store, name: str) -> Submission | None:
    """Read a submission; None if it was withdrawn or cleaned, is of a newer version, or says what none can say."""
    try:
        content = read_json(folder(store, name) / FILE)
        if content is None:
            return None
        tasks = tuple(
            tuple(Work(key=work["key"], measures=tuple(work["measures"])) for work in task) for task in content["tasks"]
        )
        request = Request(**content["request"])
        submission = Submission(**{**content, "tasks": tasks, "request": request, "retry": tuple(content["retry"])})
        check(submission, name)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return submission


def read_all(store: Store, study: str | None = None) -> list[Submission]:
    """All submissions, of one study where it is named, the oldest first."""
    found = [read(store, name) for name in list_names(str(jobs_folder(store)))]
    chosen = [submission for submission in found if submission and study in (None, submission.study)]
    return sorted(chosen, key=lambda submission: (submission.submitted_at, submission.name))


def foreign(store: Store) -> list[Path]:
    """Submissions that are not read: of a newer version, damaged, or not written in this folder."""
    names = list_names(str(jobs_folder(store)))
    files = (jobs_folder(store) / name / FILE for name in names if read(store, name) is None)
    return [file for file in files if os.path.lexists(file)]


def withdraw(store: Store, submission: Submission) -> None:
    """Take back a submission that SLURM never got; should its job turn up after all, it finds nothing to do."""
    hidden = jobs_folder(store) / f".{submission.name}"
    with contextlib.suppress(FileNotFoundError):  # nothing was written
        os.replace(folder(store, submission.name), hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def write_note(store: Store, name: str, index: int, note: TaskNote) -> None:
    """Write what a task says when it begins.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(folder(store, name) / f"task-{index}.json", asdict(note), root=store.out)


def read_note(store: Store, name: str, index: int) -> TaskNote | None:
    """What a task said when it began, None if it has not."""
    try:
        content = read_json(folder(store, name) / f"task-{index}.json")
        note = TaskNote(**content) if content else None
        if note and not is_sound(note):
            return None
    except (ValueError, TypeError, AttributeError):
        return None
    return note


def note_cancel(store: Store, name: str, index: int) -> None:
    """Note that a task is to be cancelled: of an array's task that never started SLURM may keep no trace.

    Raises:
        StoreError: it cannot be written.
    """
    touch(folder(store, name) / f"cancelled-{index}", root=store.out)


def was_cancelled(store: Store, name: str, index: int) -> bool:
    """Whether `note_cancel` was called for a task."""
    return (folder(store, name) / f"cancelled-{index}").exists()


def settle(store: Store, name: str, index: int, *, settled: bool = True) -> None:
    """Note that what became of a task's cells is on record, or that the task has begun again."""
    path = folder(store, name) / f"settled-{index}"
    if settled:
        touch(path, root=store.out)
    else:
        remove(path, root=store.out)


def unsettled(store: Store, submission: Submission) -> list[int]:
    """Tasks that may still run, or whose end nobody has looked at."""
    names = set(list_names(str(folder(store, submission.name))))
    return [index for index in range(len(submission.tasks)) if f"settled-{index}" not in names]


def log_path(store: Store, submission: Submission, index: int) -> Path | None:
    """Log of a task's first process, None if it has written none."""
    place = folder(store, submission.name)
    end = f"_{index}_0_log.out" if len(submission.tasks) > 1 else "_0_log.out"
    return next((place / name for name in sorted(list_names(str(place))) if name.endswith(end)), None)


def leftovers(store: Store, submission: Submission) -> list[Path]:
    """Files of a submission that nobody needs once its jobs have ended and its cells are done."""
    place = folder(store, submission.name)
    names = list_names(str(place), hidden=True)  # submitit leaves a hidden link to its script
    names = [name for name in names if name != FILE and not name.startswith(("task-", "settled-"))]
    return [place / name for name in names if is_file_or_link(place / name)]
