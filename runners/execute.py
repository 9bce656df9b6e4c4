"""Run the measures of one cell, each into a record of its own; the payload of every job.

A failed measure is a record too: the next one still runs, and nothing that was recorded is lost.
"""

import functools
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ablations.study import Cell
from runners import ceilings, complexity, latency, peak_memory, train
from runners.build import build_baseline, build_model, counted_cell, first_core_macs, identity
from runners.datasets import make_data
from runners.environment import apply_threads, device_id, environment, memory_limit, pick_device
from runners.failures import status_of
from runners.lease import Held, acquire
from runners.plan import command_for
from runners.record import Record
from runners.store import Store, open_store

PROTOCOLS = {
    "flops": complexity.PROTOCOL,
    "throughput": latency.PROTOCOL,
    "memory": peak_memory.PROTOCOL,
    "accuracy": train.PROTOCOL,
}
PROGRESS_S = 0.5
"""Time between two writes of the progress file."""
SPEED_BUDGET_S = 6.0
"""Time for warm-up and samples of the throughput measure; seven interleaved pairs are taken even if it is short."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is asked for; plain data that any process can read.

    `attempts` names the measures, in order, and the number that each one's record should get: a measure whose next
    number is another has been done by somebody else in the meantime.
    """

    out: Path
    key: str
    cell: Cell
    attempts: Mapping[str, int]
    device: str = "auto"
    memory_limit_mib: int | None = None


def run_job(job: Job, log: Path | None = None) -> None:
    """Run the measures in order under the cell's lease; returns at once if another live process holds it.

    Raises:
        StoreError: the results folder can no longer be used.
    """
    store = open_store(job.out, create=False)
    lease = acquire(store.lease_path(job.key))
    if isinstance(lease, Held):
        return
    with lease:
        apply_threads(job.cell.threads)
        device = pick_device(job.device)
        for measure, attempt in job.attempts.items():
            blank = replace(blank_record(job, measure, device), log_path=str(log) if log else None)
            if store.next_attempt(job.key, measure, blank.device_id, blank.protocol) != attempt:
                continue
            record = _run_measure(store, job, blank, device)
            store.write_record(job.key, record)
            if device.type == "cuda" and record.status == "error" and "CUDA error" in (record.error_message or ""):
                # the process's CUDA context is lost; what is left stays pending for a fresh one
                return


def blank_record(job: Job, measure: str, device: torch.device) -> Record:
    """Everything of a record that is known before its measure has run."""
    return Record(
        measure=measure,
        protocol=PROTOCOLS[measure],
        device_id=device_id(device, job.cell.threads),
        status="ok",
        attempt=job.attempts[measure],
        values=_identity(job.cell),
        environment=environment(device),
        started_at=_now(),
        ended_at=_now(),
        command=command_for(job.cell, [measure]),
    )


def _identity(cell: Cell) -> dict[str, Any]:
    return {
        **identity(cell),
        "threads": cell.threads or torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _run_measure(store: Store, job: Job, blank: Record, device: torch.device) -> Record:
    """Measure, or say in the record why not; never raises for what a cell does wrong."""
    store.write_progress(job.key, {"measure": blank.measure, "pid": os.getpid(), "updated_at": _now()})
    blank = replace(blank, started_at=_now())
    try:
        # counting allocates nothing of the model's, and the memory measure hands the limit to its own processes
        limited = blank.measure in ("throughput", "accuracy")
        with memory_limit(device, job.memory_limit_mib if limited else None):
            values, samples = MEASURES[blank.measure](store, job, device)
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


def _flops(store: Store, job: Job, device: torch.device) -> Found:
    cell = job.cell
    counted = counted_cell(cell)
    executed = None if counted == cell else build_model(cell)
    model = build_model(counted)
    values = complexity.count(model, cell.height_px, cell.width_px, executed=executed)
    return values | {"first_core_gmacs": first_core_macs(model, cell.height_px, cell.width_px) / 1e9}, {}


def _throughput(store: Store, job: Job, device: torch.device) -> Found:
    cell = job.cell
    generator = torch.Generator().manual_seed(cell.seed)
    images = torch.randn(cell.batch_size, 3, cell.height_px, cell.width_px, generator=generator)
    model = build_model(cell)
    values, samples = latency.measure_speed(
        model,
        build_baseline(cell),
        images,
        device=device,
        precision=cell.precision,
        compile_model=cell.compile,
        budget_s=SPEED_BUDGET_S,
    )
    bounds: dict[str, Any] = {
        **ceilings.measure_ceilings(device, cell.precision),
        "traffic_mib": ceilings.forward_traffic_mib(model, images, device, cell.precision),
    }
    return values | bounds, samples


def _memory(store: Store, job: Job, device: torch.device) -> Found:
    cell = job.cell
    values = peak_memory.measure_memory(
        functools.partial(build_model, cell),
        (cell.batch_size, 3, cell.height_px, cell.width_px),
        num_classes=10,
        device=device,
        precision=cell.precision,
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=job.memory_limit_mib,
    )
    return values, {}


def _accuracy(store: Store, job: Job, device: torch.device) -> Found:
    cell = job.cell
    data = make_data(cell.data, cell.height_px, cell.width_px, cell.batch_size)
    last = 0.0

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            progress = {"measure": "accuracy", "step": step, "steps": steps, "loss": loss, "updated_at": _now()}
            store.write_progress(job.key, progress)

    values = train.train_and_evaluate(
        build_model(cell, data.num_classes),
        data,
        steps=cell.steps,
        seed=cell.seed,
        device=device,
        precision=cell.precision,
        compile_model=cell.compile,
        progress=report,
    )
    return values, {}


MEASURES = {"flops": _flops, "throughput": _throughput, "memory": _memory, "accuracy": _accuracy}
