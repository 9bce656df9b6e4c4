"""Training and evaluation: the accuracy measure.

Protocol: AdamW with a linear warm-up and a cosine decay (`Recipe`) on the data's training stream, then one pass over
its fixed test set with the weights of the last step; nothing is selected on the test set. Step s draws its images and
its dropout from (seed, s) alone, so a run that is interrupted goes on from a saved state (runners/measure/resume.py)
to the same bits. `train_seconds` is the wall time of the steps, with the first and any wait for data, of all parts of
the run; the next batch is drawn in a background thread. With `compile_model` the training steps are compiled and the
evaluation is not. Several processes (runners/measure/distributed.py) share out the batch, and the learning rate stays.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runners.data.datasets import Data
from runners.measure.distributed import ALONE, Group
from runners.measure.resume import Checkpoint, Training, identify
from runners.measures import MEASURES

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss of the last one


class Diverged(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is optimised. The learning rate is decisive on the probes: 2e-3 makes learning a lottery."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    final_share: float = 0.02
    clip_norm: float = 1.0

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step (from 0): linear to the peak, then a cosine that the last step ends."""
        warmup = int(self.warmup_share * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - 1 - warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    def learning_rate_rule(self) -> str:
        """Say the learning rate of every step, and that the batch does not move it."""
        return (
            f"{self.learning_rate:g} at any batch size, linear warm-up over {self.warmup_share:g} of the steps, "
            f"cosine to {self.final_share:g} of it"
        )


RECIPE = Recipe()


def make_optimizer(model: nn.Module, recipe: Recipe = RECIPE) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions, not biases, norms and other parameters of at most one axis."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which a forward pass has the given precision, `fp32` or `bf16`.

    Raises:
        ValueError: another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    precision: str = "fp32",
    clip_norm: float = RECIPE.clip_norm,
    share: float = 1.0,
) -> Tensor:
    """One forward, backward and optimiser step on a batch of the model's device; return the loss, detached.

    The gradient, not the loss returned, is that of `share` times the loss.
    """
    with autocast(images.device, precision):
        loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    (loss if share == 1 else share * loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()


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
    precision: str = "fp32",
    compile_model: bool = False,
    recipe: Recipe = RECIPE,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    group: Group = ALONE,
) -> None:
    """Advance a run, in place, from its own step to step `steps` of a schedule of that length.

    Raises:
        Diverged: the loss is not finite.
        ValueError: an unknown precision, or fewer images in a batch than processes.
    """
    training.model.train()
    network = group.wrap(training.model, device)
    if compile_model:
        network = cast(nn.Module, torch.compile(network))
    with closing(prefetch(data, seed, training.step, steps)) as batches, checkpoint or contextlib.nullcontext():
        started = time.perf_counter()
        for images, labels in batches:
            # dropout must follow from (seed, step) too, or a resumed run would differ; a trailing 0 changes nothing
            entropy = np.random.SeedSequence((seed, training.step, group.rank))
            torch.manual_seed(int(entropy.generate_state(1)[0]))
            rate = recipe.learning_rate_at(training.step, steps)
            for parameters in training.optimizer.param_groups:
                parameters["lr"] = rate
            images, labels, share = group.shard(images, labels)
            part = train_step(
                network,
                training.optimizer,
                images.to(device),
                labels.to(device),
                precision=precision,
                clip_norm=recipe.clip_norm,
                share=share,
            )
            loss = group.mean(part, share)
            if not math.isfinite(loss):
                if checkpoint is not None:
                    checkpoint.remove()  # from there it would diverge again
                raise Diverged(f"training loss is {loss} at step {training.step + 1} of {steps}, lr {rate:.2g}")
            training.step += 1
            training.losses.append(loss)
            training.seconds += time.perf_counter() - started
            if progress is not None:
                progress(training.step, steps, loss)
            if checkpoint is not None:
                checkpoint.after_step(training)
            started = time.perf_counter()


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Data, *, device: torch.device, precision: str = "fp32", group: Group = ALONE
) -> dict[str, float | int]:
    """Measure `acc1`, `acc5` (percent), `val_loss` (mean cross-entropy) over the `n_eval` test images.

    Leaves the model in evaluation mode. With fewer than five classes, `acc5` is 100.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    for images, labels in itertools.islice(data.eval_batches(), group.rank, None, group.world_size):
        with autocast(device, precision):
            logits = model(images.to(device))
        logits = logits.float().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        found = [len(labels), best[:, 0].sum().item(), best.sum().item(), loss.item()]
        totals += torch.tensor(found, dtype=torch.float64)
    count, first, five, summed = group.total(totals).tolist()
    return {"acc1": 100 * first / count, "acc5": 100 * five / count, "n_eval": int(count), "val_loss": summed / count}


def train_and_evaluate(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    precision: str = "fp32",
    compile_model: bool = False,
    recipe: Recipe = RECIPE,
    progress: Progress | None = None,
    state_path: Path | None = None,
    code: str | None = None,
    checkpoint_every_s: float = 30.0,
    group: Group = ALONE,
) -> tuple[dict[str, float | int | str | None], dict[str, list[float]]]:
    """Train a freshly initialised model and return the accuracy columns of its row, and the loss of every step.

    `train_loss` is the mean over the last 5 % of the steps, at least one; `ceiling_percent` may be None. With
    `state_path` the run goes on from that file, if a process that died has left it, and the file is gone at the end;
    not from one of other `code`, a hash of what this program does not contain.
    Several processes call this within `group.joined`, each with the same arguments and its own `group`.

    Raises:
        Diverged: the loss is not finite, in training or on the test set.
        ValueError: fewer than one step, an unknown precision, or fewer images in a batch than processes.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    model.to(device)
    training = Training(model, make_optimizer(model, recipe))
    checkpoint = None
    if state_path is not None:
        run = identify(
            model,
            protocol=MEASURES["accuracy"].protocol,
            recipe=asdict(recipe),
            steps=steps,
            seed=seed,
            batch_size=data.batch_size,
            device=device.type,
            precision=precision,
            compile_model=compile_model,
            world_size=group.world_size,
            code=code,
        )
        checkpoint = Checkpoint(state_path, run, every_s=checkpoint_every_s, group=group)
        checkpoint.restore(training)
    train(
        training,
        data,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        compile_model=compile_model,
        recipe=recipe,
        progress=progress,
        checkpoint=checkpoint,
        group=group,
    )
    quality = evaluate(model, data, device=device, precision=precision, group=group)
    if checkpoint is not None:
        checkpoint.remove()
    if not math.isfinite(quality["val_loss"]):
        raise Diverged(f"test loss is {quality['val_loss']} after {steps} steps")
    recent = training.losses[-max(1, round(0.05 * steps)) :]
    row = {
        **quality,
        "train_loss": sum(recent) / len(recent),
        "steps": steps,
        "train_seconds": training.seconds,
        "train_samples_per_sec": data.batch_size * steps / training.seconds,
        "resumed": training.resumed,
        "world_size": group.world_size,
        "learning_rate_rule": recipe.learning_rate_rule(),
        "ceiling_percent": data.ceiling_percent,
        "chance_percent": data.chance_percent,
    }
    return row, {"loss": training.losses}
