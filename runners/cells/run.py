"""Run the measures of one cell, each into a record of its own; the payload of every job.

A failed measure is a record too: the next one still runs, and nothing that was recorded is lost.
"""

import functools
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ablations.study import Cell
from attention_zoo.hosts.pyramid import Pyramid
from runners.cells.models import build_baseline, build_model, build_packed, counted_cell, describe, first_core_macs
from runners.cells.plan import command_for
from runners.cells.registered import is_registered_here, pack
from runners.cells.source import code_of
from runners.cells.weights import save_checkpoint
from runners.data.loading import make_data
from runners.machine.environment import apply_threads, device_id, environment, memory_limit, pick_device
from runners.machine.failures import status_of
from runners.measure import accuracy as train
from runners.measure import macs as complexity
from runners.measure import memory as peak_memory
from runners.measure.distributed import ALONE, Group
from runners.measure.rounds import Work
from runners.measure.speed import measure_speed
from runners.measures import MEASURES
from runners.store.lease import Held, acquire
from runners.store.record import Record
from runners.store.store import Store, open_store

PROGRESS_S = 0.5
"""Time between two writes of the progress file."""
SPEED_BUDGET_S = 12.0
"""Time for warm-up and rounds of the throughput measure; three rounds a process are taken even if it is short."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is asked for; plain data that any process can read.

    `attempts` names the measures, in order, and the number that each one's record should get: a measure whose next
    number is another has been done by somebody else in the meantime.
    `patience_s` is how long timing a disturbed cell again may take.
    `part` is set where two jobs of one cell run side by side and measure different things.
    """

    out: Path
    key: str
    cell: Cell
    attempts: Mapping[str, int]
    device: str = "auto"
    memory_limit_mib: int | None = None
    save_weights: bool = False
    part: str = ""
    patience_s: float = 60.0


@dataclass(frozen=True)
class Place:
    """Where a job runs: the name of its kind of device, and what can move a number there."""

    device_id: str
    environment: Mapping[str, Any]


class End(Enum):
    """How a job ended that was not killed: a fresh process must do what a `POISONED` one left."""

    DONE = "done"
    HELD = "another process holds the cell"
    POISONED = "the CUDA context of this process is lost"


@dataclass(frozen=True)
class _Run:
    """A job at work; of several processes `group.rank` 0 alone has runs, the others `follow`."""

    store: Store
    job: Job
    device: torch.device
    place: Place
    group: Group

    def say(self, **progress: Any) -> None:
        mine = {"slurm_job": self.place.environment.get("slurm_job"), "updated_at": _now()}
        self.store.write_progress(self.job.key, {**progress, **mine}, self.job.part)


def place(device: torch.device, threads: int | None, more: Mapping[str, Any] | None = None) -> Place:
    """Describe this process; `more` joins its environment."""
    return Place(device_id(device, threads), {**environment(device), **(more or {})})


def run_job(job: Job, log: Path | None = None, *, more: Mapping[str, Any] | None = None, group: Group = ALONE) -> End:
    """Run the measures in order under the cell's lease; returns at once if another live process holds it.

    `more` joins the environment of each record.

    Raises:
        StoreError: the results folder can no longer be used.
    """
    store = open_store(job.out, create=False)
    lease = acquire(store.lease_path(job.key, job.part))
    if isinstance(lease, Held):
        return End.HELD
    with lease:
        store.write_lost(job.key, None)
        apply_threads(job.cell.threads)
        device = pick_device(job.device)
        run = _Run(store, job, device, place(device, job.cell.threads, more), group)
        for measure, attempt in job.attempts.items():
            if store.next_attempt(job.key, measure, run.place.device_id, MEASURES[measure].protocol) != attempt:
                continue
            blank = replace(blank_record(job, measure, run.place), log_path=str(log) if log else None)
            record = _run_measure(run, blank)
            store.write_record(job.key, record)
            if device.type == "cuda" and record.status == "error" and "CUDA error" in (record.error_message or ""):
                return End.POISONED
    return End.DONE


def follow(out: Path, cells: Mapping[str, Cell], device: str, group: Group) -> None:
    """Help rank 0 to train, cell by cell as it asks for it, until it has no more; what it records is its own.

    Raises:
        RuntimeError: rank 0 is gone.
    """
    store = open_store(out, create=False)
    for key in group.orders():
        cell = cells[key]
        apply_threads(cell.threads)
        here = pick_device(device)
        run = _Run(store, Job(out=out, key=key, cell=cell, attempts={}), here, place(here, cell.threads), group)
        try:
            _train(run, None)
        except Exception:  # rank 0 makes a row of it
            print(traceback.format_exc(), flush=True)


def blank_record(job: Job, measure: str, place: Place, *, described: bool = True) -> Record:
    """Everything of a record that is known before its measure has run; `described` imports the mechanism for it."""
    now = _now()
    return Record(
        measure=measure,
        protocol=MEASURES[measure].protocol,
        device_id=place.device_id,
        status="ok",
        attempt=job.attempts[measure],
        values={
            **(describe(job.cell).columns if described else {}),
            "threads": job.cell.threads or place.environment.get("threads"),
            "deterministic": place.environment.get("deterministic"),
        },
        environment=place.environment,
        started_at=now,
        ended_at=now,
        command=command_for(job.cell, [measure]),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _run_measure(run: _Run, blank: Record) -> Record:
    """Measure, or say in the record why not; never raises for what a cell does wrong."""
    run.say(measure=blank.measure, pid=os.getpid())
    blank = replace(blank, started_at=_now())
    try:
        limited = MEASURES[blank.measure].limits_memory
        with memory_limit(run.device, run.job.memory_limit_mib if limited else None):
            values, samples = FUNCTIONS[blank.measure](run)
    except Exception as error:  # one bad measure must not lose the others
        print(traceback.format_exc(), flush=True)
        return replace(
            blank,
            status=status_of(error),
            error_type=type(error).__name__,
            error_message=str(error) or type(error).__name__,
            ended_at=_now(),
        )
    return replace(blank, values={**blank.values, **values}, samples=samples, ended_at=_now())


Found = tuple[dict[str, Any], dict[str, Any]]
"""Columns of a measure, and the raw samples behind them."""


def _flops(run: _Run) -> Found:
    cell = run.job.cell
    counted = counted_cell(cell)
    executed = None if counted == cell else build_model(cell)
    model = build_model(counted)
    values = complexity.count(model, cell.height_px, cell.width_px, executed=executed)
    return values | {"first_core_gmacs": first_core_macs(model, cell.height_px, cell.width_px) / 1e9}, {}


def _throughput(run: _Run) -> Found:
    cell = run.job.cell
    work = Work(
        build=_builder(cell),
        build_baseline=functools.partial(build_baseline, cell),
        input_shape=(cell.batch_size, 3, cell.height_px, cell.width_px),
        seed=cell.seed,
        device=str(run.device),
        precision=cell.precision,
        compile_model=cell.compile,
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=run.job.memory_limit_mib,
    )
    return measure_speed(work, budget_s=SPEED_BUDGET_S, patience_s=run.job.patience_s)


def _builder(cell: Cell) -> Callable[[], Pyramid]:
    """What builds the model in a process that measures, which does not know a mechanism that was registered here."""
    if is_registered_here(cell.attn):
        return functools.partial(build_packed, pack(cell.attn), cell)
    return functools.partial(build_model, cell)


def _memory(run: _Run) -> Found:
    cell = run.job.cell
    values = peak_memory.measure_memory(
        _builder(cell),
        (cell.batch_size, 3, cell.height_px, cell.width_px),
        num_classes=10,
        device=run.device,
        precision=cell.precision,
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=run.job.memory_limit_mib,
    )
    return values, {}


def _accuracy(run: _Run) -> Found:
    last = 0.0

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            run.say(measure="accuracy", step=step, steps=steps, loss=loss)

    run.group.lead(run.job.key)
    return _train(run, report)


def _train(run: _Run, progress: train.Progress | None) -> Found:
    cell = run.job.cell
    with run.group.joined(run.device):
        data = make_data(cell.data, cell.height_px, cell.width_px, cell.batch_size)
        model = build_model(cell, data.num_classes)
        values, samples = train.train_and_evaluate(
            model,
            data,
            steps=cell.steps,
            seed=cell.seed,
            device=run.device,
            precision=cell.precision,
            compile_model=cell.compile,
            progress=progress,
            state_path=run.store.state_path(run.job.key, run.place.device_id),
            code=code_of(cell.attn).hash,
            group=run.group,
        )
    return values | (_keep_weights(run, model) if run.job.save_weights else {}), samples


def _keep_weights(run: _Run, model: Pyramid) -> dict[str, Any]:
    """Write the trained weights; that they cannot be written costs them alone, not the accuracy."""
    cell, path = run.job.cell, run.store.weights_path(run.job.key, run.place.device_id)
    try:
        save_checkpoint(path, model, cell.layout, attn=cell.attn, **dict(cell.settings))
    except ValueError as error:
        print(f"warning: {error}; the accuracy is recorded without them", flush=True)
        return {}
    return {"weights": str(path.relative_to(run.store.out))}


FUNCTIONS = {"flops": _flops, "throughput": _throughput, "memory": _memory, "accuracy": _accuracy}
