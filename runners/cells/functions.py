"""What each measure does with a cell: the functions that a job runs."""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from ablations.study import Cell
from attention_zoo.hosts.pyramid import Pyramid
from runners.cells.job import Run
from runners.cells.models import (
    build_baseline,
    build_model,
    build_packed,
    counted_cell,
    first_core_macs,
    keys_per_query,
)
from runners.cells.registered import is_registered_here, pack
from runners.cells.source import code_of
from runners.cells.weights import save_checkpoint
from runners.data.datasets import Data
from runners.data.images import ImageData
from runners.data.loading import make_data
from runners.machine.conditions import Conditions
from runners.measure import macs as complexity
from runners.measure import memory as peak_memory
from runners.measure.energy import measure_energy
from runners.measure.largest_batch import measure_max_batch
from runners.measure.latency import measure_latency
from runners.measure.launches import count_launches
from runners.measure.rounds import Work
from runners.measure.speed import measure_speed
from runners.train import accuracy
from runners.train.recipe import make_recipe

PROGRESS_S = 0.5
"""Time between two writes of the progress file."""
SPEED_BUDGET_S = 12.0
"""Time for warm-up and rounds of the throughput measure; three rounds a process are taken even if it is short."""

Found = tuple[dict[str, Any], dict[str, Any]]
"""Columns of a measure, and the raw samples behind them."""


def _flops(run: Run) -> Found:
    cell = run.job.cell
    counted = counted_cell(cell)
    executed = None if counted == cell else build_model(cell)
    model = build_model(counted)
    values = complexity.count(model, cell.height_px, cell.width_px, executed=executed)
    more = {
        "first_core_gmacs": first_core_macs(model, cell.height_px, cell.width_px) / 1e9,
        "keys_per_query": keys_per_query(model, cell.height_px, cell.width_px),
    }
    return values | more, {}


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
    )


def _throughput(run: Run) -> Found:
    return measure_speed(_work(run), budget_s=SPEED_BUDGET_S, patience_s=run.job.patience_s)


def _builder(cell: Cell) -> Callable[[], Pyramid]:
    """What builds the model in a process that measures, which does not know a mechanism that was registered here."""
    if is_registered_here(cell.attn):
        return functools.partial(build_packed, pack(cell.attn), cell)
    return functools.partial(build_model, cell)


def _memory(run: Run) -> Found:
    cell = run.job.cell
    values = peak_memory.measure_memory(
        _builder(cell),
        (cell.batch_size, 3, cell.height_px, cell.width_px),
        num_classes=10,
        device=run.device,
        conditions=Conditions.of(cell),
        threads=cell.threads or torch.get_num_threads(),
        memory_limit_mib=run.job.memory_limit_mib,
    )
    return values, {}


def _accuracy(run: Run) -> Found:
    last = 0.0

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            run.say(measure="accuracy", step=step, steps=steps, loss=loss)

    run.group.lead(run.job.key)
    return train(run, report)


def train(run: Run, progress: accuracy.Progress | None) -> Found:
    """Train and evaluate the model of a cell, together with the other processes of the job."""
    cell = run.job.cell
    with run.group.joined(run.device):
        recipe = make_recipe(cell.recipe, cell.training)
        data = make_data(
            cell.data,
            cell.height_px,
            cell.width_px,
            cell.batch_size,
            recipe,
            smoothing=recipe.smoothing,
            strict=cell.strict_data,
        )
        model = build_model(cell, data.num_classes, recipe.drop_path)
        best = copy.deepcopy(model) if run.job.save_weights and recipe.eval_every else None
        values, samples = accuracy.train_and_evaluate(
            model,
            data,
            steps=cell.steps,
            seed=cell.seed,
            device=run.device,
            conditions=Conditions.of(cell),
            compile_model=cell.compile,
            recipe=recipe,
            progress=progress,
            state_path=run.store.state_path(run.job.key, run.place.device_id),
            code=code_of(cell.attn).hash,
            checkpoint_every_s=run.job.checkpoint_every_s,
            best=best,
            target_acc=cell.target_acc,
            group=run.group,
        )
    values |= {"num_classes": data.num_classes, **_tell_images(data)}
    if run.job.save_weights:
        values |= _keep_weights(run, model)
    if best is not None:
        values |= _keep_weights(run, best, "best")
    return values, samples


def _tell_images(data: Data) -> dict[str, Any]:
    """Columns of images of files; none for those that are drawn."""
    if not isinstance(data, ImageData):
        return {}
    return {
        "n_train": len(data.folders.train_indices),
        "data_hash": data.folders.fingerprint(),
        "broken_images": len(data.broken),
    }


def _keep_weights(run: Run, model: Pyramid, kind: str = "") -> dict[str, Any]:
    """Write trained weights; that they cannot be written costs them alone, not the accuracy."""
    cell, path = run.job.cell, run.store.weights_path(run.job.key, run.place.device_id, kind)
    try:
        save_checkpoint(path, model, cell.layout, attn=cell.attn, **dict(cell.settings))
    except ValueError as error:
        print(f"warning: {error}; the accuracy is recorded without them", flush=True)
        return {}
    return {f"weights_{kind}" if kind else "weights": str(path.relative_to(run.store.out))}


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
