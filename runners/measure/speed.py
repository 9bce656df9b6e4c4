"""Time of a forward pass and of a training step, alone and against the vanilla baseline.

Protocol 1. Cell and baseline (same layout, resolution, batch, precision, compilation) run in turns in one process,
A B A B, so that both meet the same disturbances. Each phase, inference and then training, has
- the first call of each, timed apart: torch.compile does its work there;
- warm-up: at least 3 rounds and 0.3 s, unless that takes a quarter of the phase's budget;
- pairs until the budget is spent: at least 7, at least 1 if a single pair exceeds the budget, at most 300.
Inference gets 40 % of the budget and training the rest; compilation comes on top.
Inference runs in evaluation and inference mode. A training step is forward and cross entropy; backward; gradient
clipping and AdamW at a learning rate that leaves the weights where they are. bf16 is autocast. CUDA is timed with
events, other devices with the host's clock. Values are medians, so the parts of a step need not add up to the whole.
`vs_vanilla` is the median over pairs of baseline time / cell time: above 1 the cell is faster. `_low` and `_high`
hold the true median with at least 95 % confidence, whatever the distribution of the noise (sign test: they are
order statistics of the ratios); fewer than 6 pairs cannot give that, and leave them empty.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import comb
from statistics import median
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runners.machine.environment import hardware
from runners.machine.failures import is_out_of_memory
from runners.measure.accuracy import RECIPE, autocast, make_optimizer

INFER_SHARE = 0.4
WARMUP_ROUNDS = 3
WARMUP_S = 0.3
WARMUP_SHARE = 0.25
MIN_PAIRS = 7
MAX_PAIRS = 300
CONFIDENCE = 0.95

# a batch learned by heart has gradients so small that the CPU computes them slowly
STILL = replace(RECIPE, learning_rate=1e-7)

Columns = dict[str, float | str | None]
Run = Callable[[], list[float]]  # runs once and returns the milliseconds of each part


def measure_speed(
    model: nn.Module,
    baseline: nn.Module | None,
    batch: Tensor,
    labels: Tensor | None = None,
    *,
    device: torch.device,
    precision: str = "fp32",
    compile_model: bool = False,
    budget_s: float = 10.0,
    baseline_reason: str = "no baseline was given",
) -> tuple[Columns, dict[str, list[float]]]:
    """Measure the speed columns of a model on a batch (B, 3, height_px, width_px); also return the raw samples in ms.

    Copies are timed: the models, their modes and the RNG stay as they are. A baseline that runs out of memory is
    left out, and `vs_vanilla_reason` says so.

    Args:
        model: what is measured.
        baseline: the vanilla model, or None.
        batch: images.
        labels: their classes (B,); class 0 by default.
        device: where the copies run.
        precision: `fp32` or `bf16`.
        compile_model: compile both models.
        budget_s: seconds for warm-up and samples.
        baseline_reason: why there is no baseline.
    """
    images = batch.to(device)
    targets = (torch.zeros(len(batch), dtype=torch.int64) if labels is None else labels).to(device)

    def measure(run: Callable[[_Contender], list[float]], against: nn.Module | None, share: float) -> _Phase:
        # fresh copies for each phase: what a model caches in inference mode cannot be trained with
        models = [model] if against is None else [model, against]
        runs = [partial(run, _Contender(m, images, targets, precision, compile_model)) for m in models]
        return _measure(*runs, budget_s=budget_s * share, compiled=compile_model)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        infer = measure(_Contender.infer, baseline, INFER_SHARE)
        if infer.dropped:
            baseline, baseline_reason = None, infer.dropped
        train = measure(_Contender.train, baseline, 1 - INFER_SHARE)
    reasons = [None if phase.vanilla else phase.dropped or baseline_reason for phase in (infer, train)]
    columns: Columns = {
        "infer_samples_per_sec": 1e3 * len(batch) / median(infer.totals),
        **_quartiles("infer_latency_ms", infer.totals),
        "infer_first_call_ms": infer.first_ms,
        **_quartiles("train_step_ms", train.totals),
        **{f"train_{part}_ms": median(train.part(i)) for i, part in enumerate(_Contender.TRAIN_PARTS)},
        "train_first_step_ms": train.first_ms,
        **_ratio("vs_vanilla", infer, reasons[0]),
        **_ratio("train_vs_vanilla", train, reasons[1]),
    }
    samples = {"infer_ms": infer.totals, "infer_vanilla_ms": infer.vanilla, "train_vanilla_ms": train.vanilla}
    return columns, samples | {f"train_{part}_ms": train.part(i) for i, part in enumerate(_Contender.TRAIN_PARTS)}


class _Contender:
    """A copy of a model, ready to run on a batch."""

    TRAIN_PARTS = ("forward", "backward", "optimizer")

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, precision: str, compiled: bool) -> None:
        self.model = copy.deepcopy(model).to(images.device)
        self.network = cast(nn.Module, torch.compile(self.model)) if compiled else self.model
        self.images, self.labels, self.precision = images, labels, precision
        self.optimizer = make_optimizer(self.model, STILL)
        self.hardware = hardware(images.device)

    def infer(self) -> list[float]:
        """Run one forward pass; returns its milliseconds."""
        self.model.eval()
        start = self.hardware.stamp()
        with torch.inference_mode(), autocast(self.images.device, self.precision):
            self.network(self.images)
        return [self.hardware.elapsed_ms(start, self.hardware.stamp())]

    def train(self) -> list[float]:
        """Run one training step; returns the milliseconds of `TRAIN_PARTS`."""
        self.model.train()
        stamps = [self.hardware.stamp()]
        with autocast(self.images.device, self.precision):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        stamps.append(self.hardware.stamp())
        self.optimizer.zero_grad()
        loss.backward()
        stamps.append(self.hardware.stamp())
        nn.utils.clip_grad_norm_(self.model.parameters(), STILL.clip_norm)
        self.optimizer.step()
        stamps.append(self.hardware.stamp())
        return [self.hardware.elapsed_ms(start, end) for start, end in pairwise(stamps)]


@dataclass
class _Phase:
    first_ms: float
    cell: list[list[float]]
    vanilla: list[float]
    dropped: str | None

    @property
    def totals(self) -> list[float]:
        """Milliseconds of each sample of the cell."""
        return [sum(parts) for parts in self.cell]

    def part(self, index: int) -> list[float]:
        """Milliseconds of one part of each sample of the cell."""
        return [parts[index] for parts in self.cell]


def _measure(cell: Run, vanilla: Run | None = None, *, budget_s: float, compiled: bool) -> _Phase:
    started = time.perf_counter()
    phase = _Phase(first_ms=sum(cell()), cell=[], vanilla=[], dropped=None)
    if vanilla is not None:
        try:
            vanilla()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            vanilla, phase.dropped = None, f"vanilla ran out of memory: {error}"
    if compiled:
        started = time.perf_counter()
    _warm_up([cell] if vanilla is None else [cell, vanilla], started + budget_s * WARMUP_SHARE)
    wanted = 1
    while len(phase.cell) < wanted or (time.perf_counter() < started + budget_s and len(phase.cell) < MAX_PAIRS):
        before = time.perf_counter()
        phase.cell.append(cell())
        if vanilla is not None:
            phase.vanilla.append(sum(vanilla()))
        if time.perf_counter() - before <= budget_s:
            wanted = MIN_PAIRS
    return phase


def _warm_up(runs: Sequence[Run], deadline: float) -> None:
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() < deadline and (rounds < WARMUP_ROUNDS or time.perf_counter() < started + WARMUP_S):
        for run in runs:
            run()
        rounds += 1


def _quartiles(name: str, values: Sequence[float]) -> Columns:
    low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}


def _ratio(name: str, phase: _Phase, reason: str | None) -> Columns:
    ratios = [theirs / ours for ours, theirs in zip(phase.totals, phase.vanilla, strict=bool(phase.vanilla))]
    low, high = median_interval(ratios)
    middle = median(ratios) if ratios else None
    return {name: middle, f"{name}_low": low, f"{name}_high": high, f"{name}_reason": reason}


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Interval that holds the median of the values' distribution with at least this confidence, by the sign test.

    Its ends are the k-th smallest and the k-th largest value: the median lies below the k-th smallest of n values
    with the probability that fewer than k of n fair coins show heads. (None, None) if n is too small for any k.
    """
    ordered, tail, k = sorted(values), 0, 0
    for heads in range(len(ordered) // 2):
        tail += comb(len(ordered), heads)
        if 2 * tail > (1 - confidence) * 2 ** len(ordered):
            break
        k = heads + 1
    return (ordered[k - 1], ordered[-k]) if k else (None, None)
