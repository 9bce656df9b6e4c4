"""Training and evaluation: the accuracy measure.

Protocol: AdamW with a linear warm-up and a cosine decay (`Recipe`) on the data's training stream, then one pass over
its fixed test set with the weights of the last step. `acc1_best` of a recipe that evaluates in between (`eval_every`)
is selected on the test set; nothing else is. Step s draws its images and its dropout from (seed, s) alone, so a run
that is interrupted goes on from a saved state (runners/train/resume.py) to the same bits. `train_seconds` is the wall
time of the steps, with the first and any wait for data, of all parts of the run; the next batch is drawn in a
background thread, and `data_wait_frac` is the share of waiting for it. What is looked at in between, these evaluations
and a stated accuracy (`--target-acc`), takes none of these times and changes no bit (runners/train/looks.py). With
`compile_model` the training steps are compiled and the evaluation is not. With autocast to fp16 the loss is scaled, and
a step whose gradients overflow is left out, as torch's GradScaler does it. Several processes
(runners/train/distributed.py) share out the batch, and the learning rate stays.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from runners.data.datasets import Data, SharedData
from runners.data.images import Batch
from runners.machine.conditions import Conditions
from runners.measures import MEASURES
from runners.train.curve import Curve
from runners.train.distillation import as_teacher, weights_hash
from runners.train.distributed import ALONE, Group
from runners.train.freezing import freeze, set_training
from runners.train.looks import Looks, best_columns, curves, score_of
from runners.train.objective import CLASSIFY, Objective
from runners.train.optim import Schedule, make_average, make_optimizer
from runners.train.recipe import FROM_TEACHER, PROBE, Recipe
from runners.train.resume import Checkpoint, Evaluation, Training, identify
from runners.train.step import PLAIN, recompute, train_step
from runners.train.token_labels import Dense

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss of the last one


class Diverged(RuntimeError):
    """The loss is no longer finite."""


def batches(data: Data, seed: int, start: int, stop: int, group: Group = ALONE) -> Generator[Batch, None, None]:
    """Yield this process's part of the batches of the steps start .. stop - 1.

    The next batch is read while the one before is in use: by processes, or where a batch is drawn by a thread.
    """
    if isinstance(data, SharedData):
        yield from data.train_batches(seed, start, stop, group.rank, group.world_size)
    else:
        with closing(prefetch(data, seed, start, stop)) as drawn:
            for images, labels in drawn:
                yield Batch(*group.shard(images, labels))


def prefetch(data: Data, seed: int, start: int, stop: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches of the steps start .. stop - 1 in order, each drawn in a thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        upcoming = thread.submit(data.batch, seed, start)
        for step in range(start, stop):
            batch = upcoming.result()
            if step + 1 < stop:
                upcoming = thread.submit(data.batch, seed, step + 1)
            yield batch


def train(
    training: Training,
    data: Data,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    conditions: Conditions = PLAIN,
    compile_model: bool = False,
    recipe: Recipe = PROBE,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    look: Callable[[], None] | None = None,
    frozen: bool = False,
    teacher: nn.Module | None = None,
    curve: Curve | None = None,
    group: Group = ALONE,
    objective: Objective = CLASSIFY,
) -> None:
    """Advance a run, in place, from its own step to step `steps` of a schedule of that length; `look` after each.

    `frozen` is a model of which only the classifier is trained: the rest computes as in evaluation. A `teacher` is
    frozen, on the device, and `Dense` where the recipe wants labels of places from it.

    Raises:
        Diverged: the loss is not finite.
        ValueError: fewer images in a batch than processes.
    """
    set_training(training.model, frozen=frozen)
    network = group.wrap(Dense(training.model) if recipe.token_labels else training.model, device)
    if compile_model:
        network = cast(nn.Module, torch.compile(network))
    schedule = Schedule(training.optimizer, recipe, steps, data.steps_per_epoch, data.batch_size)
    criterion = objective.criterion(recipe, teacher)
    if curve is not None:
        curve.resume(training.losses, schedule.set)
    parts = batches(data, seed, training.step, steps, group)
    with closing(parts), checkpoint or contextlib.nullcontext():
        if look is not None:
            look()  # a signal may have saved a state before its look
        started = time.perf_counter()
        for images, targets, share, tokens in parts:
            training.waited += time.perf_counter() - started
            # dropout must follow from (seed, step) too, or a resumed run would differ; a trailing 0 changes nothing
            entropy = np.random.SeedSequence((seed, training.step, group.rank))
            torch.manual_seed(int(entropy.generate_state(1)[0]))
            rate = schedule.set(training.step)
            part = train_step(
                network,
                training.optimizer,
                conditions.place_images(images, device),
                targets.to(device),
                conditions=conditions,
                scaler=training.scaler,
                clip_norm=recipe.clip_norm,
                criterion=criterion,
                token_targets=None if tokens is None else tokens.to(device),
                accumulate=recipe.accumulate,
                share=share,
            )
            loss = group.mean(part, share)
            if not math.isfinite(loss):
                if checkpoint is not None and group.rank == 0:
                    print(f"training diverges at step {training.step + 1}: {checkpoint.kept()}", flush=True)
                raise Diverged(f"training loss is {loss} at step {training.step + 1} of {steps}, lr {rate:.2g}")
            if training.average is not None:
                training.average.update(training.model)
            training.step += 1
            training.losses.append(loss)
            seconds = time.perf_counter() - started
            training.seconds += seconds
            if curve is not None:
                curve.step(training.step, loss, rate, seconds)
            if progress is not None:
                progress(training.step, steps, loss)
            if look is not None:
                look()
            if checkpoint is not None:
                checkpoint.after_step(training)
            started = time.perf_counter()


def train_and_evaluate(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    conditions: Conditions = PLAIN,
    compile_model: bool = False,
    recipe: Recipe = PROBE,
    progress: Progress | None = None,
    state_path: Path | None = None,
    code: str | None = None,
    checkpoint_every_s: float = 30.0,
    target_acc: float | None = None,
    frozen: bool = False,
    teacher: nn.Module | None = None,
    curve: Curve | None = None,
    best: nn.Module | None = None,
    group: Group = ALONE,
    objective: Objective = CLASSIFY,
) -> tuple[dict[str, float | int | str | None], dict[str, list[float] | list[float | None]]]:
    """Train a freshly initialised model and return the accuracy columns of its row, and the loss of every step.

    `train_loss` is the mean over the last 5 % of the steps, at least one; `ceiling_percent` may be None. With
    `state_path` the run goes on from what a process that died has left there, and its states stay until its caller has
    recorded the row; not from one of other `code`, hashes of what this program does not contain.
    Of a `frozen` model the classifier alone is trained. Where the recipe has a teacher, `teacher` is it, and becomes
    frozen; its time is part of `train_seconds`. `curve` writes each step and evaluation. `best` gets the weights of the
    first evaluation with the highest metric of the `objective`, where there are several.
    Several processes call this within `group.joined`, each with the same arguments and its own `group`.

    Raises:
        Diverged: the loss is not finite, in training or on the test set.
        Unsupported: the device cannot train under these conditions.
        ValueError: fewer than one step, fewer images in a batch than processes, or epochs of data that have none.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if recipe.eval_every and data.steps_per_epoch is None:
        raise ValueError(f"eval_every={recipe.eval_every} counts epochs; an endless stream has none")
    conditions.check(device, training=True)
    conditions.place(model, device)
    if recipe.checkpointing:
        recompute(model, recipe.recomputed_stages)
    if frozen:
        freeze(model)
    if teacher is not None:
        teacher = conditions.place(as_teacher(teacher), device)
    optimizer = make_optimizer(model, recipe, data.batch_size)
    average = make_average(model, recipe)
    training = Training(model, optimizer, conditions.scaler(device), average)
    if isinstance(data, SharedData):
        training.broken = data.broken
    checkpoint = None
    if state_path is not None:
        run = identify(
            model,
            protocol=MEASURES["accuracy"].protocol,
            recipe=recipe.to_dict(),
            steps=steps,
            seed=seed,
            batch_size=data.batch_size,
            device=device.type,
            compile_model=compile_model,
            **asdict(conditions),
            world_size=group.world_size,
            target_acc=target_acc,
            frozen=frozen,
            code=code,
            teacher=None if teacher is None else weights_hash(teacher),
        )
        checkpoint = Checkpoint(state_path, run, every_s=checkpoint_every_s, group=group)
        checkpoint.restore(training)
    measure = partial(objective.evaluate, data=data, device=device, conditions=conditions, group=group)
    every = recipe.eval_every * (data.steps_per_epoch or 0)
    look = Looks(
        training,
        measure,
        metric=objective.metric,
        steps=steps,
        every=every,
        target_acc=target_acc,
        checkpoint=checkpoint,
        tell=curve.evaluation if curve is not None else None,
    )
    train(
        training,
        data,
        steps=steps,
        seed=seed,
        device=device,
        conditions=conditions,
        compile_model=compile_model,
        recipe=recipe,
        progress=progress,
        checkpoint=checkpoint,
        look=look,
        frozen=frozen,
        teacher=Dense(teacher) if teacher is not None and recipe.token_labels == FROM_TEACHER else teacher,
        curve=curve,
        group=group,
        objective=objective,
    )
    quality, metric = measure(model), objective.metric
    last = Evaluation(steps, score_of(quality, metric), quality.get("val_loss"))
    if curve is not None:
        curve.evaluation(*last)
    averaged = measure(average.module)[metric] if average is not None else None
    if last.val_loss is not None and not math.isfinite(last.val_loss):
        raise Diverged(f"test loss is {last.val_loss} after {steps} steps")
    if recipe.eval_every:
        training.note(last)
    if best is not None and training.best is not None:
        best.load_state_dict(training.best)
    recent = training.losses[-max(1, round(0.05 * steps)) :]
    row = {
        **quality,
        f"{metric}_ema": averaged,
        **best_columns(training.evaluations, metric),
        "train_loss": sum(recent) / len(recent),
        "steps": steps,
        "train_seconds": training.seconds,
        "train_samples_per_sec": data.batch_size * steps / training.seconds,
        "data_wait_frac": training.waited / training.seconds,
        **dict(zip(("steps_to_acc", "seconds_to_acc"), training.reached or (None, None), strict=True)),
        "resumed": training.resumed,
        "world_size": group.world_size,
        "learning_rate_rule": recipe.learning_rate_rule(),
        "ceiling_percent": data.ceiling_percent,
        "chance_percent": data.chance_percent,
    }
    return row, {"loss": training.losses, **curves(training.evaluations, metric)}
