"""A cell's training: its data, its model from a seed or from weights, its learning rate, and what is kept of it."""

import copy
import functools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ablations.study import Cell
from runners.cells.job import Run
from runners.cells.models import build_model
from runners.cells.objectives import Evaluated, objective_of
from runners.cells.predictions import keep_pictures
from runners.cells.source import code_of_cell, code_of_module
from runners.cells.starting import Start, find_start, read_start, start_from
from runners.cells.task_data import CLASSIFY, make_data_of
from runners.cells.teachers import load_teacher
from runners.cells.weights import save_checkpoint
from runners.data.datasets import Data, SharedData
from runners.data.image_specs import own_class
from runners.data.images import ImageData
from runners.data.token_labels import LabelMaps
from runners.machine.conditions import Conditions
from runners.measures import MEASURES
from runners.store.curve import board_folder, curve_path
from runners.store.names import cell_name
from runners.train import accuracy
from runners.train.curve import Board, Curve
from runners.train.distillation import weights_hash
from runners.train.recipe import Recipe
from runners.train.recipes import make_recipe
from runners.train.token_labels import map_size
from runners.train.tuning import SEED, Trial, choose_rate

NAMED = 100
"""Broken images that a record names."""

Found = tuple[dict[str, Any], dict[str, Any]]
"""Columns of a measure, and the raw samples behind them."""


def train(run: Run, progress: accuracy.Progress | None) -> Found:
    """Train and evaluate the model of a cell, together with the other processes of the job."""
    cell = run.job.cell
    with run.group.joined(run.device):
        recipe = make_recipe(cell.recipe, cell.training)
        data = _data(run, recipe)
        told = _tell_images(cell, data)
        start = _start(run)
        model = _build(cell, data, recipe, start)
        evaluated = Evaluated(model) if run.job.save_predictions else None
        objective = objective_of(cell, evaluated)
        teacher = load_teacher(recipe, data.num_classes)
        if recipe.has_label_maps and isinstance(data, ImageData):
            size = map_size(model, cell.height_px, cell.width_px)
            data.label_maps = LabelMaps(Path(recipe.token_labels), data.num_classes, size)
        # of other images, or from other weights, nothing that was interrupted can go on
        code = " ".join([code_of_cell(cell).hash, *filter(None, [told.get("data_hash"), start and start.sha256])])
        recipe, tuned = _tuned(run, data, recipe, start, teacher, code)
        best = copy.deepcopy(model) if run.job.save_weights and recipe.eval_every else None
        with nullcontext() if run.group.rank else _curve(run, data, objective.metric) as curve:
            values, curves = accuracy.train_and_evaluate(
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
                code=code,
                checkpoint_every_s=run.job.checkpoint_every_s,
                target_acc=cell.target_acc,
                frozen=cell.freeze,
                teacher=teacher,
                curve=curve,
                best=best,
                group=run.group,
                objective=objective,
            )
        # each process has read others
        parts = run.group.gather(data.broken) if isinstance(data, SharedData) else []
    values |= {"num_classes": data.num_classes, "init_hash": start.sha256 if start else None, **told}
    values |= {} if teacher is None else {"teacher_hash": weights_hash(teacher)}
    samples: dict[str, Any] = dict(curves)
    if isinstance(data, SharedData):
        broken = sorted({f"{name}: {why}" for part in parts for name, why in part.items()})
        values["broken_images"] = len(broken)
        samples["broken_images"] = broken[:NAMED]
    if curve is not None and curve.is_whole:
        values["curve"] = str(curve.path.relative_to(run.store.out))
    if tuned:
        values |= {"tuned_lr": tuned[0].lr}
        samples |= {"tune_lr": [trial.lr for trial in tuned], "tune_acc1": [trial.acc1 for trial in tuned]}
    if evaluated is not None:
        values |= keep_pictures(run, data, evaluated)
    if run.job.save_weights:
        values |= _keep_weights(run, model)
    if best is not None:
        values |= _keep_weights(run, best, "best")
    return values, samples


def _data(run: Run, recipe: Recipe) -> Data:
    """Images that the cell is trained and tested on."""
    cell = run.job.cell
    size = cell.height_px, cell.width_px
    workers, strict = run.job.workers, cell.strict_data
    return make_data_of(cell.task, cell.data, *size, cell.batch_size, recipe, workers=workers, strict=strict)


def _curve(run: Run, data: Data, metric: str) -> Curve:
    """What is written of the steps of a training while it runs."""
    key, device_id = run.job.key, run.place.device_id
    board = None
    if run.job.tensorboard:
        board = Board(board_folder(run.store, key, device_id), cell_name(run.job.cell))
    path = curve_path(run.store, key, device_id)
    return Curve(path, batch_size=data.batch_size, steps_per_epoch=data.steps_per_epoch, board=board, metric=metric)


def _tell_images(cell: Cell, data: Data) -> dict[str, Any]:
    """Columns of images of files; none for those that are drawn."""
    if cell.task != CLASSIFY:
        dense: Any = data
        return {"n_train": dense.n_train, "data_hash": dense.fingerprint()}
    if not isinstance(data, ImageData):
        return {}
    own = own_class(cell.data)
    code = code_of_module(own.partition(":")[0]) if own else ""
    return {
        "n_train": len(data.folders.train_indices),
        "data_hash": data.folders.fingerprint(code),
        "norm_mean": "/".join(f"{value:g}" for value in data.pixels.mean),
        "norm_std": "/".join(f"{value:g}" for value in data.pixels.std),
    }


def _start(run: Run) -> Start | None:
    """Weights that the training starts from, if it does."""
    cell = run.job.cell
    path = find_start(cell.init_from, run.store, run.place.device_id) if cell.init_from else None
    return read_start(path) if path else None


def _build(cell: Cell, data: Data, recipe: Recipe, start: Start | None) -> nn.Module:
    """Build the model that is trained, from its seed or from earlier weights."""
    model = build_model(cell, data.num_classes, recipe.drop_path)
    if start:
        start_from(model, start, reset_classes=cell.reset_classes, published=cell.model)
    return model


def _tuned(
    run: Run, data: Data, recipe: Recipe, start: Start | None, teacher: nn.Module | None, code: str
) -> tuple[Recipe, list[Trial]]:
    """Choose the learning rate by short trainings, if the cell asks for it; they are kept as the saved states are."""
    cell = run.job.cell
    if not cell.tune_lr:
        return recipe, []
    drawn_alike = replace(cell, seed=SEED)

    def short(model: nn.Module, part: Data, tried: Recipe, steps: int, seed: int) -> tuple[float, float] | None:
        if run.group.rank == 0:
            run.say(measure="accuracy", step=0, steps=steps)
        try:
            found, _ = accuracy.train_and_evaluate(
                model,
                part,
                steps=steps,
                seed=seed,
                device=run.device,
                conditions=Conditions.of(cell),
                compile_model=cell.compile,
                recipe=tried,
                frozen=cell.freeze,
                teacher=teacher,
                group=run.group,
            )
        except accuracy.Diverged:
            return None
        return float(found["acc1"] or 0), float(found["val_loss"] or 0)

    state = run.store.state_path(run.job.key, run.place.device_id)
    trials = choose_rate(
        [float(rate) for rate in cell.tune_lr.split(",")],
        data,
        recipe,
        cell.steps,
        build=functools.partial(_build, drawn_alike, data, recipe, start),
        train=short,
        kept=state.with_name(f"{state.name}.rates"),
        run=f"{run.job.key} {code} {MEASURES['accuracy'].protocol}",
        group=run.group,
    )
    return replace(recipe, lr=trials[0].lr), trials


def _keep_weights(run: Run, model: nn.Module, kind: str = "") -> dict[str, Any]:
    """Write trained weights; that they cannot be written costs them alone, not the accuracy."""
    cell, path = run.job.cell, run.store.weights_path(run.job.key, run.place.device_id, kind)
    try:
        dense = None if cell.task == CLASSIFY else (cell.task, cell.head)
        arch, settings = cell.model or cell.layout, dict(cell.settings)
        save_checkpoint(path, model, arch, attn=cell.attn or None, dense=dense, **settings)
    except ValueError as error:
        print(f"warning: {error}; the accuracy is recorded without them", flush=True)
        return {}
    return {f"weights_{kind}" if kind else "weights": str(path.relative_to(run.store.out))}
