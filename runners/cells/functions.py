"""What each measure does with a cell: the functions that a job runs."""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ablations.study import Cell
from attention_zoo.hosts.pyramid import Pyramid
from runners.cells.job import Run
from runners.cells.models import (
    COST_CLASSES,
    build_baseline,
    build_counted,
    build_model,
    build_packed,
    first_core_macs,
    keys_per_query,
)
from runners.cells.registered import is_registered_here, pack
from runners.cells.shares import least_images
from runners.cells.task_data import CLASSIFY
from runners.cells.training import train
from runners.machine.conditions import Conditions
from runners.measure import macs as complexity
from runners.measure import memory as peak_memory
from runners.measure.energy import measure_energy
from runners.measure.goal import CLASSES, Goal
from runners.measure.largest_batch import measure_max_batch
from runners.measure.latency import measure_latency
from runners.measure.launches import count_launches
from runners.measure.rounds import Work
from runners.measure.speed import measure_speed

if TYPE_CHECKING:
    from attention_zoo.dense import DenseModel

PROGRESS_S = 0.5
"""Time between two writes of the progress file."""
SPEED_BUDGET_S = 12.0
"""Time for warm-up and rounds of the throughput measure; three rounds a process are taken even if it is short."""

Found = tuple[dict[str, Any], dict[str, Any]]
"""Columns of a measure, and the raw samples behind them."""


def _flops(run: Run) -> Found:
    cell = run.job.cell
    ran, counted = build_model(cell), build_counted(cell)
    model, executed = (ran, None) if counted is None else (counted, ran)
    size = cell.height_px, cell.width_px
    if cell.task == CLASSIFY:
        values, network = complexity.count(model, *size, executed=executed), model
    else:
        values, network = _dense_flops(cast(Any, model), cast(Any, executed), *size)
    if not isinstance(network, Pyramid):
        return values, {}
    more = {
        "first_core_gmacs": first_core_macs(network, *size) / 1e9,
        "keys_per_query": keys_per_query(network, *size),
    }
    return values | more, {}


def _dense_flops(
    model: "DenseModel", executed: "DenseModel | None", height_px: int, width_px: int
) -> tuple[dict[str, Any], nn.Module]:
    """MACs of backbone and head apart, with how many boxes and masks are in the head's; and the backbone's network."""
    size = height_px, width_px
    values = complexity.count(model.counted(), *size, executed=None if executed is None else executed.counted())
    head = model.head_macs(*size) / 1e9
    fixed = {name: getattr(model.head, name, None) for name in ("proposals", "masks")}
    return values | {"backbone_gmacs": values["gmacs"] - head, "head_gmacs": head, **fixed}, model.backbone.model


def _work(run: Run) -> Work:
    """What a process is to time."""
    cell = run.job.cell
    return Work(
        build=_builder(cell),
        build_baseline=functools.partial(build_baseline, cell),
        input_shape=(cell.batch_size, 3, cell.height_px, cell.width_px),
        seed=cell.seed,
        device=str(run.device),
        conditions=Conditions.of(cell),
        compile_model=cell.compile,
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=run.job.memory_limit_mib,
        goal=_goal(cell),
    )


def _goal(cell: Cell) -> Goal:
    """What a measured training step learns."""
    if cell.task == CLASSIFY:
        return CLASSES
    from runners.dense.examples import example_targets
    from runners.dense.losses import make_dense_criterion

    targets = functools.partial(example_targets, cell.task, num_classes=COST_CLASSES[cell.task])
    return Goal(targets, make_dense_criterion(cell.task), least_images(cell))


def _throughput(run: Run) -> Found:
    return measure_speed(_work(run), budget_s=SPEED_BUDGET_S, patience_s=run.job.patience_s)


def _builder(cell: Cell) -> Callable[[], nn.Module]:
    """What builds the model in a process that measures, which does not know a mechanism that was registered here."""
    if is_registered_here(cell.attn):
        return functools.partial(build_packed, pack(cell.attn), cell)
    return functools.partial(build_model, cell)


def _memory(run: Run) -> Found:
    cell = run.job.cell
    values = peak_memory.measure_memory(
        _builder(cell),
        (cell.batch_size, 3, cell.height_px, cell.width_px),
        device=run.device,
        conditions=Conditions.of(cell),
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=run.job.memory_limit_mib,
        goal=_goal(cell),
    )
    return values, {}


def _accuracy(run: Run) -> Found:
    last, first = 0.0, None

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last, first
        now = time.monotonic()
        # from the end of this process's first step on, which compiles and fills caches
        first = first or (step, now)
        if now - last > PROGRESS_S:
            last = now
            pace = {"seconds_per_step": (now - first[1]) / (step - first[0])} if step > first[0] else {}
            run.say(measure="accuracy", step=step, steps=steps, loss=loss, **pace)

    run.group.lead(run.job.key)
    return train(run, report)


def _launches(run: Run) -> Found:
    cell = run.job.cell
    shape = (3, cell.height_px, cell.width_px)
    return count_launches(build_model(cell), shape, run.device, Conditions.of(cell)), {}


FUNCTIONS: dict[str, Callable[[Run], Found]] = {
    "flops": _flops,
    "throughput": _throughput,
    "memory": _memory,
    "accuracy": _accuracy,
    "launches": _launches,
    "latency": lambda run: measure_latency(_work(run)),
    "max_batch": lambda run: measure_max_batch(_work(run)),
    "energy": lambda run: measure_energy(_work(run)),
}
