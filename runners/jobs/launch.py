"""From planned cells to job arrays: what is missing, how it is cut, and every refusal before anything is submitted."""

import contextlib
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ablations.study import Cell
from runners.cells.plan import estimate_seconds
from runners.cells.source import code_of_cell
from runners.jobs import slurm, submissions
from runners.jobs.executors import start_array
from runners.jobs.outcomes import Look, look, reconcile
from runners.jobs.pending import Pending, pending
from runners.jobs.slurm import SlurmError
from runners.jobs.submission import Asked, Request, Submission, Work
from runners.jobs.task import ArrayTask, signal_delay_s
from runners.measures import MEASURES
from runners.store.files import StoreError, make_folder, read_json, remove, write_json
from runners.store.lease import Lease, acquire
from runners.store.states import forget_states
from runners.store.store import Store

# Python, torch and the zoo, from a shared file system
START_S = 15.0
NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
WAIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Order(Asked):
    """Cells and measures to bring to SLURM under the name of a study."""

    study: str
    cells: Mapping[str, tuple[Cell, tuple[str, ...]]]
    request: Request


@dataclass
class Outcome:
    """What came of an order: arrays that were submitted, and cells that needed none."""

    submitted: list[Submission] = field(default_factory=list)
    done: int = 0
    changed: int = 0
    under_way: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def launch(store: Store, order: Order, say: Callable[[str], None]) -> Outcome:
    """Submit what nobody has measured and no job is to measure; submits nothing if anything is wrong.

    Raises:
        ValueError: SLURM is not here or refuses, the folder cannot be used or is not shared, or the study exists with
            other cells. One line that says what to do.
    """
    slurm.require()
    check_plain(store.out)
    if warning := short_time(order):
        say(warning)
    cpus = max((cell.threads or 0 for cell, _ in order.cells.values()), default=0) or None
    slurm.check(order.request.sbatch_options(cpus, exclusive=order.request.exclusive))
    check_shared(store.out, slurm.node_hosts(order.request.options.get("partition")))
    largest = slurm.max_array_size()
    with _alone(store, say):
        is_new = _check_study(store, order)
        reconcile(store)
        outcome, missing = _missing(store, order, look(store))
        arrays = list(_arrays(order, missing, largest))
        after: str | None = None
        try:
            for part, threads, tasks in arrays:
                submission = _submit(store, order, part, threads, tasks, after if order.request.max_parallel else None)
                outcome.submitted.append(submission)
                after = submission.job
        except ValueError:
            if is_new and not outcome.submitted:
                remove(_study_path(store, order.study), root=store.out)
            raise
    return outcome


def check_plain(out: Path, signs: Sequence[str] = ("%",)) -> None:
    """Refuse a results folder with signs that SLURM, or submitit, replaces by numbers in the names of logs.

    Raises:
        StoreError: its path has one.
    """
    path = os.path.abspath(out)
    if found := [sign for sign in signs if sign in path]:
        raise StoreError(f"results folder {path}: {found[0]} stands for a number in names of logs; give another --out")


def short_time(order: Order) -> str | None:
    """Warn of a time limit within which some measure can hardly be made in one go; a training goes on in a further run.

    It is a guess from two CPU cores. On a GPU there is none, and the job's own message will tell.
    """
    limit_min = order.request.time_min
    asks_gpu = order.request.gpus_per_node or any("gpu" in f"{k}{v}" for k, v in order.request.options.items())
    if asks_gpu or order.device not in ("auto", "cpu"):
        return None
    estimates = {}
    for cell, measures in order.cells.values():
        whole = [measure for measure in measures if not MEASURES[measure].can_resume]
        estimates[cell, measures] = START_S + (estimate_seconds(cell, whole) if whole else 0)
    (cell, measures), seconds = max(estimates.items(), key=lambda item: item[1])
    needed_min = math.ceil((seconds + signal_delay_s(limit_min)) / 60)
    if seconds <= 60 * limit_min - signal_delay_s(limit_min):
        return None
    subject = cell.model or f"{cell.attn} {cell.layout}"
    return (
        f"warning: --time {limit_min} min may be too short: {', '.join(measures)} of {subject} "
        f"{cell.height_px}x{cell.width_px} takes about {needed_min} min on two CPU cores"
    )


def check_shared(out: Path, hosts: set[str], here: str | None = None) -> None:
    """Refuse a results folder in a place that every machine has of its own, if jobs run on other machines.

    Raises:
        StoreError: the nodes cannot see it.
    """
    others = sorted(host for host in hosts if host != (here or socket.gethostname()))
    place = next((place for place in NODE_LOCAL if Path(place) in [out.resolve(), *out.resolve().parents]), None)
    if others and place:
        raise StoreError(
            f"results folder {out} is not shared: {place} of {others[0]} is another folder; "
            "give --out on a file system that the nodes share"
        )


@contextlib.contextmanager
def _alone(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the submitters' lease of a results folder, after whoever has it."""
    folder = submissions.jobs_folder(store)
    make_folder(store.out, folder)
    deadline, said = time.monotonic() + WAIT_S, False
    while not isinstance(lease := acquire(folder / "lease.json"), Lease):
        if time.monotonic() > deadline:
            raise StoreError(f"pid {lease.pid} on {lease.host} submits to {store.out} at this moment; try again later")
        if not said:
            say(f"pid {lease.pid} on {lease.host} submits to {store.out}; waiting for it")
            said = True
        time.sleep(0.5)
    with lease:
        yield


def _study_path(store: Store, study: str) -> Path:
    return submissions.jobs_folder(store) / "studies" / f"{study}.json"


def _check_study(store: Store, order: Order) -> bool:
    """Remember the cells and measures of a study, or refuse others under its name; whether it is a new one."""
    path = _study_path(store, order.study)
    asked = {key: sorted(measures) for key, (_, measures) in order.cells.items()}
    known = read_json(path)
    if known is None:
        write_json(path, {"cells": asked}, root=store.out)
    elif not order.retry and known.get("cells") != asked:
        before = known.get("cells")
        before = before if isinstance(before, dict) else {}
        raise StoreError(
            f"study {order.study!r} exists in {store.out} with other settings: it has {len(before)} cells, of these "
            f"{len(asked)} it has {len(asked.keys() & before.keys())}; give another --name or --out"
        )
    return known is None


def _missing(store: Store, order: Order, jobs: Look) -> tuple[Outcome, dict[str, tuple[Cell, tuple[str, ...]]]]:
    """Enter the cells, and find for each the measures that are neither on record nor under way."""
    outcome, missing = Outcome(), {}
    under_way = jobs.alive_measures()
    devices = _devices(store, order, jobs)
    for key, (cell, measures) in order.cells.items():
        store.add_cell(cell, order.study, measures)
        state = _pending(store, order, key, measures, devices.get(key, set()))
        running = under_way.get(key, set())
        outcome.failed.update(record.status for record in state.failed)
        outcome.under_way += bool(running & set(state.run))
        outcome.done += not state.run and not state.failed
        outcome.changed += bool(state.changed)
        if to_submit := tuple(measure for measure in state.run if measure not in running):
            if order.force and not running:
                forget_states(store, key)
            store.write_lost(key, None)
            missing[key] = (cell, to_submit)
    return outcome, missing


def _devices(store: Store, order: Order, jobs: Look) -> dict[str, set[str]]:
    """Kinds of device on which earlier jobs that asked for the same nodes have run each cell."""
    devices: dict[str, set[str]] = {}
    for submission in jobs.submissions:
        if (submission.request.target, submission.device) != (order.request.target, order.device):
            continue
        notes = (submissions.read_note(store, submission.name, index) for index in range(len(submission.tasks)))
        for note in filter(None, notes):
            for key, device_id in note.device_ids.items():
                devices.setdefault(key, set()).add(device_id)
    return devices


def _pending(store: Store, order: Order, key: str, measures: tuple[str, ...], devices: set[str]) -> Pending:
    """Measures to run, and failed ones, on the kind of device where fewest are to run.

    Where no job has run yet only a node can tell; a job that finds nothing to do ends at once.
    """
    code = code_of_cell(order.cells[key][0])
    states = (
        pending(store, key, measures, device_id, retry=order.retry, force=order.force, code=code)
        for device_id in sorted(devices) or [""]
    )
    return min(states, key=lambda state: len(state.run))


def _arrays(
    order: Order, missing: Mapping[str, tuple[Cell, tuple[str, ...]]], largest: int
) -> Iterator[tuple[str, int | None, list[tuple[Work, ...]]]]:
    """Cut work into arrays of at most `largest` tasks of `cells_per_job` cells; one number of threads to an array."""
    groups: dict[tuple[str, int | None], list[Work]] = {}
    for key, (cell, measures) in missing.items():
        timing = tuple(measure for measure in measures if MEASURES[measure].is_timing and order.request.exclusive)
        others = tuple(measure for measure in measures if measure not in timing)
        for part, chosen in (("timing", timing), ("", others)):
            if chosen:
                groups.setdefault((part, cell.threads), []).append(Work(key=key, measures=chosen))
    size = order.request.cells_per_job
    for (part, threads), works in groups.items():
        tasks = [tuple(works[start : start + size]) for start in range(0, len(works), size)]
        for start in range(0, len(tasks), largest):
            yield part, threads, tasks[start : start + largest]


def _submit(
    store: Store, order: Order, part: str, threads: int | None, tasks: list[tuple[Work, ...]], after: str | None
) -> Submission:
    """Write a submission, hand it to sbatch, and add the number that it got."""
    from runners.machine.environment import code

    submission = Submission(
        name=submissions.new_name(order.study),
        study=order.study,
        tasks=tuple(tasks),
        request=order.request,
        part=part,
        code=code(),
        submitted_at=submissions.now(),
        **{asked.name: getattr(order, asked.name) for asked in fields(Asked)},
    )
    try:
        submissions.write(store, submission)
        submission = replace(submission, job=_start(store, order, submission, threads, after))
        submissions.write(store, submission)
    except (RuntimeError, OSError, ValueError) as error:
        _take_back(store, submission)
        if isinstance(error, RuntimeError):
            raise SlurmError(f"sbatch refuses: {' '.join(str(error).split())}") from error
        if isinstance(error, OSError):
            raise StoreError(f"cannot submit to {store.out}: {error.strerror or error}") from error
        raise
    return submission


def _start(store: Store, order: Order, submission: Submission, threads: int | None, after: str | None) -> str:
    """Hand a submission to sbatch; return the number of its job."""
    options = order.request.sbatch_options(threads, exclusive=submission.part == "timing")
    if after:  # the limit holds for all arrays of a study together
        options["dependency"] = f"afterany:{after}"
    return start_array(
        ArrayTask(Path(os.path.abspath(store.out)), submission.name),
        len(submission.tasks),
        submissions.folder(store, submission.name).absolute(),
        name=submission.name,
        options=options,
        signal_delay_s=signal_delay_s(order.request.time_min),
        max_parallel=order.request.max_parallel,
    )


def _take_back(store: Store, submission: Submission) -> None:
    """Leave nothing of a submission that could not be made or noted: neither files nor a job."""
    jobs = {submission.job} - {None}
    with contextlib.suppress(SlurmError):
        jobs |= {state.job.partition("_")[0] for state in slurm.poll([submission.name], submission.time).values()}
        slurm.cancel(sorted(filter(None, jobs)))
    submissions.withdraw(store, submission)
