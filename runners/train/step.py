"""One step of a training: forward, backward, optimiser."""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from runners.machine.conditions import Conditions
from runners.train.criterion import LABELS, BatchLoss
from runners.train.recipe import PROBE

PLAIN = Conditions()


def recompute(model: nn.Module, stages: Sequence[int] | None = None) -> None:
    """Make a model recompute the activations of its blocks in backward, of these stages (from 0) or of all.

    Raises:
        ValueError: it does not know how to.
    """
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(f"{type(model).__name__} has no set_grad_checkpointing, which recipe.checkpointing=on needs")
    if stages is None:
        switch(True)
    else:
        switch(True, stages)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Any,
    *,
    conditions: Conditions = PLAIN,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = PROBE.clip_norm,
    criterion: BatchLoss = LABELS,
    token_targets: Tensor | None = None,
    accumulate: int = 1,
    share: float = 1.0,
) -> Tensor:
    """One forward, backward and optimiser step on a batch of the model's device; return the loss, detached.

    The gradient, not the loss returned, is that of `share` times the loss. With `accumulate` the batch is taken in
    that many parts, one after another, whose gradients are added. `targets` are a tensor, or a list with one entry for
    each image; the model sees them where the criterion is `in_model`. `token_targets` are labels of places, see
    `Criterion`.
    """
    scaler = scaler or conditions.scaler(images.device)
    given = (images, targets) if token_targets is None else (images, targets, token_targets)
    pieces = list(zip(*(_split(part, accumulate) for part in given), strict=True))
    pieces = [piece for piece in pieces if len(piece[0])]
    losses = []
    optimizer.zero_grad()  # frees the last step's gradients before this one's activations need memory
    for number, (some, wanted, *tokens) in enumerate(pieces, 1):
        weight = len(some) / len(images)
        alone = getattr(model, "no_sync", None) if number < len(pieces) else None
        with alone() if alone else contextlib.nullcontext():  # processes add up their gradients once
            with conditions.autocast(images.device):
                output = model(some, wanted) if criterion.in_model else model(some)
                loss = criterion(output, wanted, some, *tokens)
            factor = share * weight
            scaler.scale(loss if factor == 1 else factor * loss).backward()
        losses.append(loss.detach() * weight if weight != 1 else loss.detach())
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _split(batch: Any, count: int) -> Sequence[Any]:
    """Split a batch as `Tensor.tensor_split` does; a list knows no such thing and is cut at the same places."""
    if hasattr(batch, "tensor_split"):
        split: Sequence[Any] = batch.tensor_split(count)
        return split
    size, larger = divmod(len(batch), count)
    bounds = [number * size + min(number, larger) for number in range(count + 1)]
    return [batch[start:stop] for start, stop in pairwise(bounds)]
