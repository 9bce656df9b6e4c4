"""What a task of an array does on its node: the cells that its submission gives it, again after a preemption.

SLURM runs a job again after a preemption, a failed node or `scontrol requeue`; the task asks for that itself when its
time limit is near. A further run does what is left: records on disk stay, and a training goes on from its saved state.
"""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.study import Cell
from runners.jobs import slurm, submissions
from runners.jobs.submission import Submission, TaskNote, Work
from runners.measures import MEASURES
from runners.store.files import StoreError, list_names
from runners.store.states import states
from runners.store.store import Store, open_store

# SLURM sends the signal up to a minute early, and reads clocks of its own
SIGNAL_SLACK_S = 75.0
# longer than the heartbeat of a process that died on another node counts as live
PATIENCE_S = 180.0
POLL_S = 2.0


def signal_delay_s(time_min: int) -> int:
    """Seconds before the time limit at which a task is told of it."""
    return min(90, 60 * time_min // 4)


class ArrayTask:
    """One task of a submission; submitit pickles it, so it holds names alone.

    `requeues` counts the time limits after which it went on.
    """

    def __init__(self, out: Path, name: str, requeues: int = 0) -> None:
        """Name the results folder and the submission."""
        self.out, self.name, self.requeues = out, name, requeues
        self._started = 0.0
        self._before: dict[str, float] = {}

    def __call__(self) -> None:
        """Run this task's cells; the processes of a job that are not its first help it to train."""
        self._started = time.monotonic()
        store = open_store(self.out, create=False)
        submission = submissions.read(store, self.name)
        if submission is None:
            print(f"submission {self.name} was withdrawn; there is nothing to do", flush=True)
            return
        works = submission.tasks[_index()]
        self._before = _traces(store, works)

        from runners.cells import run as execute
        from runners.jobs.executors import export_distributed
        from runners.train.distributed import setup

        cells = {work.key: cell for work in works if (cell := store.cell(work.key))}
        for work in works:
            if work.key not in cells:
                print(f"error: {store.out}/cells/{work.key}/cell.json cannot be read; sweep again", flush=True)
        if submission.request.world_size > 1:
            export_distributed()
        with setup(submission.request.world_size) as group:
            _use_allocated_threads(cells)
            if group.rank:
                limit = submission.memory_limit_mib
                execute.follow(self.out, cells, submission.device, group, submission.workers, limit)
            else:
                run_tasks(store, submission, cells, group)

    def checkpoint(self) -> Any:
        """What the job is to do when it runs again; submitit calls this on SIGUSR2, in the middle of the work.

        Raises:
            TimeoutError: the time limit is near, and a further run would not get any further, or is not wanted.
        """
        from runners.jobs.executors import delayed

        store = open_store(self.out, create=False)
        submission = submissions.read(store, self.name)
        if submission is None or not self._is_time_up(submission.request.time_min):
            return delayed(ArrayTask(self.out, self.name, self.requeues))
        limit, allowed = submission.request.time_min, submission.request.max_requeues
        if _traces(store, submission.tasks[_index()]) == self._before:
            raise TimeoutError(f"the time limit of {limit} min is too short for this measure; give a longer --time")
        if allowed is not None and self.requeues >= allowed:
            raise TimeoutError(
                f"stopped at the time limit of {limit} min; --max-requeues {allowed} allows no further run"
            )
        return delayed(ArrayTask(self.out, self.name, self.requeues + 1))

    def _is_time_up(self, limit_min: int) -> bool:
        """Whether the signal announces the time limit, not a preemption."""
        left = 60 * limit_min - (time.monotonic() - self._started)
        near = left < signal_delay_s(limit_min) + SIGNAL_SLACK_S
        preempted = slurm.describe(job_number()).get("PreemptTime", "None")
        return near and preempted in ("None", "Unknown")


def run_tasks(store: Store, submission: Submission, cells: Mapping[str, Cell], group: Any) -> None:
    """Run the cells of this process's task, those that another process holds last.

    Raises:
        StoreError: the folder of some cell cannot be written; the other cells have been run.
    """
    from runners.cells.job import Job
    from runners.cells.run import End, run_job
    from runners.jobs.executors import job_log

    index = _index()
    more = _circumstances(submission)
    submissions.settle(store, submission.name, index, settled=False)
    note = _begin(store, submission, index, cells, more)
    waiting = [work for work in submission.tasks[index] if work.key in cells]
    deadline = time.monotonic() + PATIENCE_S
    failed: StoreError | None = None
    while waiting:
        held = []
        for work in waiting:
            job = Job(
                out=store.out,
                key=work.key,
                cell=cells[work.key],
                attempts=note.attempts[work.key],
                device=submission.device,
                memory_limit_mib=submission.memory_limit_mib,
                patience_s=submission.patience_s,
                workers=submission.workers,
                checkpoint_every_s=submission.checkpoint_every_s,
                save_weights=submission.save_weights,
                tensorboard=submission.tensorboard,
                save_predictions=submission.save_predictions,
                part=submission.part,
            )
            try:
                end = run_job(job, job_log(), more=more, group=group)
            except StoreError as error:  # the folder of one cell may be full, or gone, and the others not
                print(f"error: {error}", flush=True)
                failed = error
                continue
            if end is End.POISONED:
                # records are on disk, so the same command goes on behind them
                os.execv(sys.executable, sys.orig_argv)
            if end is End.HELD:
                held.append(work)
        if len(held) < len(waiting):
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            print(f"another process works on {', '.join(work.key for work in held)}; left to it", flush=True)
            break
        waiting = held
        if waiting:
            time.sleep(POLL_S)
    if failed:
        raise failed


def _begin(
    store: Store, submission: Submission, index: int, cells: Mapping[str, Cell], more: Mapping[str, Any]
) -> TaskNote:
    """Settle which attempts this task makes, in the first of its runs on a kind of device, and say so."""
    from runners.cells.source import code_of_cell
    from runners.jobs.pending import pending
    from runners.machine.environment import device_id, environment, pick_device

    device = pick_device(submission.device)
    device_ids = {key: device_id(device, cell.threads) for key, cell in cells.items()}
    before = submissions.read_note(store, submission.name, index)
    attempts: dict[str, Mapping[str, int]] = {}
    for work in submission.tasks[index]:
        if work.key not in cells:
            continue
        here = device_ids[work.key]
        try:
            store.add_cell(cells[work.key], submission.study, work.measures, here)
        except StoreError as error:  # the others' folders may be writable; of this one `run_job` will say the same
            print(f"warning: {error}", flush=True)
        if before and before.device_ids.get(work.key) == here:
            attempts[work.key] = before.attempts[work.key]
            continue
        again: dict[str, Any] = {
            "retry": submission.retry,
            "force": submission.force,
            "code": code_of_cell(cells[work.key]),
        }
        todo = pending(store, work.key, work.measures, here, **again).run
        attempts[work.key] = {m: store.next_attempt(work.key, m, here, MEASURES[m].protocol) for m in todo}
    note = TaskNote(
        job=job_number(),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        environment={**environment(device), **more},
        device_ids=device_ids,
        attempts=attempts,
        protocols={name: measure.protocol for name, measure in MEASURES.items()},
        started_at=submissions.now(),
    )
    submissions.write_note(store, submission.name, index, note)
    return note


def _circumstances(submission: Submission) -> dict[str, Any]:
    """What SLURM adds to the environment of a record; a warning if this is not the code that was submitted."""
    from runners.machine.environment import code

    here = code()
    changed = here["source_sha256"] != submission.code.get("source_sha256")
    if changed:
        shown = " -> ".join(
            f"{str(state.get('git_sha'))[:12]}{' with changes' if state.get('git_dirty') else ''}"
            for state in (submission.code, here)
        )
        print(f"warning: the code is not the one that was submitted ({shown}); rows say code_changed", flush=True)
    job = job_number()
    sharing = slurm.describe(job).get("OverSubscribe")
    return {"slurm_job": job, "node_shared": None if sharing is None else sharing != "NO", "code_changed": changed}


def _use_allocated_threads(cells: Mapping[str, Cell]) -> None:
    """A cell that names no number of threads takes the processors that SLURM gave, not all of the node."""
    import torch

    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        torch.set_num_threads(int(cpus))


def _traces(store: Store, works: tuple[Work, ...]) -> dict[str, float]:
    """Files by which a run shows that it got further: records, and saved states with their times."""
    found = {}
    for work in works:
        cell = store.folder(work.key)
        # what is half written is no progress
        saved = [path for path in states(store, work.key) if not path.name.startswith(".")]
        for path in [*saved, *(cell / "records" / name for name in list_names(str(cell / "records")))]:
            with contextlib.suppress(FileNotFoundError):  # replaced at this moment
                found[str(path)] = path.lstat().st_mtime
    return found


def job_number() -> str:
    """Number of this job, as 12_3 in an array: SLURM_JOB_ID of one of its tasks is the number of the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{_index()}" if array else os.environ["SLURM_JOB_ID"]


def _index() -> int:
    return int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
