"""Run the measures of one cell, each into a record of its own; the payload of every job.

A failed measure is a record too: the next one still runs, and nothing that was recorded is lost.
"""

import os
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ablations.study import Cell
from runners.cells.functions import FUNCTIONS
from runners.cells.job import Job, Place, Run, now
from runners.cells.models import describe
from runners.cells.plan import command_for
from runners.cells.training import train
from runners.machine.conditions import Conditions, in_force
from runners.machine.environment import apply_threads, device_id, environment, memory_limit, pick_device
from runners.machine.failures import status_of
from runners.machine.hardware import give_back
from runners.measures import MEASURES
from runners.store.lease import Held, acquire
from runners.store.record import Record
from runners.store.states import forget_states
from runners.store.store import StoreError, open_store
from runners.train.distributed import ALONE, Group


class End(Enum):
    """How a job ended that was not killed: a fresh process must do what a `POISONED` one left."""

    DONE = "done"
    HELD = "another process holds the cell"
    POISONED = "the CUDA context of this process is lost"


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
        run = Run(store, job, device, place(device, job.cell.threads, more), group)
        for measure, attempt in job.attempts.items():
            if store.next_attempt(job.key, measure, run.place.device_id, MEASURES[measure].protocol) != attempt:
                continue
            blank = replace(blank_record(job, measure, run.place), log_path=str(log) if log else None)
            record = _run_measure(run, blank)
            store.write_record(job.key, record)
            if MEASURES[measure].can_resume and record.status == "ok":
                with suppress(StoreError):  # it costs disk alone, and `clean` removes it
                    forget_states(store, job.key, run.place.device_id)
            give_back(device)
            if device.type == "cuda" and record.status == "error" and "CUDA error" in (record.error_message or ""):
                return End.POISONED
    return End.DONE


def follow(
    out: Path,
    cells: Mapping[str, Cell],
    device: str,
    group: Group,
    workers: int | None = None,
    memory_limit_mib: int | None = None,
) -> None:
    """Help rank 0 to train, cell by cell as it asks for it, until it has no more; what it records is its own.

    Raises:
        RuntimeError: rank 0 is gone.
    """
    store = open_store(out, create=False)
    for key in group.orders():
        cell = cells[key]
        apply_threads(cell.threads)
        here = pick_device(device)
        job = Job(out=out, key=key, cell=cell, attempts={}, workers=workers)
        run = Run(store, job, here, place(here, cell.threads), group)
        try:
            with memory_limit(here, memory_limit_mib), Conditions.of(cell).applied(here):
                train(run, None)
        except Exception:  # rank 0 makes a row of it
            print(traceback.format_exc(), flush=True)


def blank_record(job: Job, measure: str, place: Place, *, described: bool = True) -> Record:
    """Everything of a record that is known before its measure has run; `described` imports the mechanism for it."""
    started = now()
    return Record(
        measure=measure,
        protocol=MEASURES[measure].protocol,
        device_id=place.device_id,
        status="ok",
        attempt=job.attempts[measure],
        values={
            **(describe(job.cell).columns if described else {}),
            "threads": job.cell.threads or place.environment.get("threads"),
        },
        environment=place.environment,
        started_at=started,
        ended_at=started,
        command=command_for(job.cell, [measure]),
    )


def died(job: Job, measure: str, place: Place, log: Path, *, status: str, reason: str) -> Record:
    """The record of a measure whose process has ended without one."""
    blank = blank_record(job, measure, place)
    return replace(blank, status=status, error_type="JobDied", error_message=reason, log_path=str(log))


def _run_measure(run: Run, blank: Record) -> Record:
    """Measure, or say in the record why not; never raises for what a cell does wrong."""
    run.say(measure=blank.measure, pid=os.getpid())
    blank = replace(blank, started_at=now())
    try:
        limited = MEASURES[blank.measure].limits_memory
        with memory_limit(run.device, run.job.memory_limit_mib if limited else None), _conditions(run, blank.measure):
            values, samples = FUNCTIONS[blank.measure](run)
            values = {**values, **in_force()} if MEASURES[blank.measure].depends_on_device else values
    except Exception as error:  # one bad measure must not lose the others
        print(traceback.format_exc(), flush=True)
        return replace(
            blank,
            status=status_of(error),
            error_type=type(error).__name__,
            error_message=str(error) or type(error).__name__,
            ended_at=now(),
        )
    return replace(blank, values={**blank.values, **values}, samples=samples, ended_at=now())


def _conditions(run: Run, measure: str) -> AbstractContextManager[None]:
    """Context in which a measure computes; what is counted is the same under all of them."""
    conditions = Conditions.of(run.job.cell)
    return conditions.applied(run.device) if MEASURES[measure].depends_on_device else nullcontext()
