"""Time of a forward pass and of a training step, alone and against the vanilla baseline.

Protocol 2. Four fresh processes, two of them started together and then at work one after the other, time the cell and
the baseline (same layout, resolution, batch, precision, compilation) in turns, inference and then training, each in a
quarter of the budget: see rounds.py. Every second process builds the baseline before the cell. On Linux the C library
keeps what a process frees (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_), as the caching allocator of a GPU does, unless
the environment says otherwise; `allocator` records it. Inference runs in evaluation and inference mode. A training step
is forward and cross entropy; backward; gradient clipping and AdamW at a learning rate that leaves the weights where
they are. CUDA is timed with events, other devices with the host's clock. Times are medians over all rounds, so the
parts of a step need not add up to the whole; first calls are those of the first process.

`vs_vanilla` is baseline time / cell time: above 1 the cell is faster. The model has two levels, log ratio = truth +
luck of the process (where its tensors lie) + noise of the round. Each process gives the median over its rounds;
`vs_vanilla` is their geometric mean, and `_low` and `_high` its 95 % t-interval over processes, which holds both kinds
of noise. A process alone gives no interval.

`disturbed` says that something else was at work during the rounds of a process, `disturbance` what: disturbance.py has
the thresholds. Where others took a share s of the processors, they may have met one of the two alone, in every process,
which no spread tells: the interval of a disturbed row goes on by the factor 1 / (1 - s) at both ends, the largest s of
its processes. A disturbed measurement is repeated once where that fits into `patience_s`; the one with fewer disturbed
processes becomes the row, and the samples of both are kept.
"""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
from scipy.special import stdtrit

from runners.machine.environment import ALLOCATOR, KEEP_FREED
from runners.measure.children import Task, child
from runners.measure.disturbance import reasons
from runners.measure.rounds import TRAIN_PARTS, Phase, Work, run_process

PROCESSES = 4
TOGETHER = 2
"""Processes that exist at a time: each holds torch from its imports on, and a job has the memory it asked for."""
IMPORTS = ("torch._dynamo",)
"""What the first step of an optimiser imports, for seconds."""
CONFIDENCE = 0.95

Columns = dict[str, Any]
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Process:
    """What one process measured: two phases, what disturbed it, and the ceilings if it was asked for them."""

    infer: Phase
    train: Phase
    seen: Mapping[str, float]
    bounds: Mapping[str, float | None]

    @property
    def reasons(self) -> list[str]:
        """What disturbed it."""
        return reasons(self.seen)


def measure_speed(
    work: Work,
    *,
    budget_s: float = 10.0,
    patience_s: float = 0.0,
    baseline_reason: str = "no baseline was given",
) -> tuple[Columns, Samples]:
    """Measure the speed columns of a model, and the raw samples behind them in ms.

    Args:
        work: what is timed.
        budget_s: seconds for warm-up and rounds of all processes together; what they take to start comes on top.
        patience_s: seconds that measuring again may take, where others were at work.
        baseline_reason: why there is no baseline.

    Raises:
        OutOfMemory: a process ran out of memory; carries its message.
        ChildFailed: a process failed otherwise; carries its traceback and its status.
    """
    started = time.monotonic()
    processes, earlier = _measure(work, budget_s), list[Process]()
    if _disturbed(processes) and time.monotonic() - started <= patience_s:
        again = _measure(work, budget_s)
        processes, earlier = sorted((again, processes), key=_disturbed)
    samples = _samples(processes)
    samples |= {f"earlier_{name}": values for name, values in _samples(earlier).items()} if earlier else {}
    return _columns(work, processes, baseline_reason) | {"measured_again": bool(earlier)}, samples


def _measure(work: Work, budget_s: float) -> list[Process]:
    tasks = [partial(run_process, work, budget_s / PROCESSES, index % 2 == 1, index == 0) for index in range(PROCESSES)]
    return [
        process for first in range(0, PROCESSES, TOGETHER) for process in _in_turns(tasks[first : first + TOGETHER])
    ]


def _in_turns(tasks: Sequence[Task]) -> Iterator[Process]:
    """Start a process for each task, and let them work one after the other."""
    with ExitStack() as waiting:
        children = [waiting.enter_context(child(task, allocator_variables(), IMPORTS)) for task in tasks]
        for process in children:
            process.wait_until_ready()  # one that still imports would disturb the first
        for process in children:
            process.begin()
            answer = process.answer()
            infer, train = (Phase(**answer[name]) for name in ("infer", "train"))
            yield Process(infer, train, answer["seen"], answer["bounds"])


def allocator_variables() -> dict[str, str]:
    """Variables of the C library's allocator that the measuring processes get; none if the user has set some."""
    if sys.platform != "linux" or any(name.startswith(ALLOCATOR) for name in os.environ):
        return {}
    return KEEP_FREED


def _allocator() -> str:
    """Variables that hold for the measuring processes, for the row."""
    variables = {**os.environ, **allocator_variables()}
    chosen = {name: value for name, value in variables.items() if name.startswith(ALLOCATOR)}
    return ";".join(f"{name}={value}" for name, value in sorted(chosen.items())) or "default"


def _disturbed(processes: Sequence[Process]) -> int:
    return sum(bool(process.reasons) for process in processes)


def _columns(work: Work, processes: Sequence[Process], baseline_reason: str) -> Columns:
    infer, train = ([getattr(process, name) for process in processes] for name in ("infer", "train"))
    latency = list(chain.from_iterable(phase.totals for phase in infer))
    by_process = {number: process.reasons for number, process in enumerate(processes, 1) if process.reasons}
    taken = max((process.seen.get("others", 0.0) for process in processes), default=0.0) if by_process else 0.0
    return {
        "infer_samples_per_sec": 1e3 * work.input_shape[0] / median(latency),
        **_quartiles("infer_latency_ms", latency),
        "infer_first_call_ms": infer[0].first_ms,
        **_step(train),
        **_ratio("vs_vanilla", infer, baseline_reason, taken),
        **_ratio("train_vs_vanilla", train, baseline_reason, taken),
        "timing_processes": len(processes),
        "allocator": _allocator(),
        "disturbed": bool(by_process),
        "disturbance": "; ".join(f"process {i}: {', '.join(why)}" for i, why in by_process.items()) or None,
        **processes[0].bounds,
    }


def _step(train: Sequence[Phase]) -> Columns:
    """Times of a training step and of its parts; empty if nothing could be trained."""
    times = [parts for phase in train for parts in phase.cell]
    if not times:
        return {}
    by_part = zip(TRAIN_PARTS, zip(*times, strict=True), strict=True)
    return {
        **_quartiles("train_step_ms", [sum(step) for step in times]),
        **{f"train_{name}_ms": median(column) for name, column in by_part},
        "train_first_step_ms": train[0].first_ms,
    }


def _samples(processes: Sequence[Process]) -> Samples:
    """Every round, and beside it the number of its process, from 1."""
    samples: Samples = {}
    for name in ("infer", "train"):
        phases: list[Phase] = [getattr(process, name) for process in processes]
        samples[f"{name}_process"] = [float(i) for i, phase in enumerate(phases, 1) for _ in phase.cell]
        samples[f"{name}_vanilla_ms"] = [value for phase in phases for value in phase.vanilla]
        parts = ("",) if name == "infer" else tuple(f"_{part}" for part in TRAIN_PARTS)
        for index, part in enumerate(parts):
            samples[f"{name}{part}_ms"] = [times[index] for phase in phases for times in phase.cell]
    return samples


def _quartiles(name: str, values: Sequence[float]) -> Columns:
    low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}


def _ratio(name: str, phases: Sequence[Phase], reason: str, taken: float) -> Columns:
    """Median ratio of each process, their geometric mean and its interval; empty if any process had no baseline.

    `taken` is the share of the processors that others took, if that counts.
    """
    missing = next((phase.dropped or reason for phase in phases if not phase.vanilla), None)
    if missing is not None:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_reason": missing}
    mean, low, high = geometric_interval([_median_ratio(phase) for phase in phases])
    if low is not None and high is not None:
        # a process that got nothing would have had no rounds
        low, high = low * (1 - min(taken, 0.99)), high / (1 - min(taken, 0.99))
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_reason": None}


def _median_ratio(phase: Phase) -> float:
    return median(theirs / ours for ours, theirs in zip(phase.totals, phase.vanilla, strict=True))


def geometric_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Geometric mean of independent positive values, and the t-interval that holds its expectation; None of one."""
    logs = np.log(values)
    mean = float(logs.mean())
    if len(logs) < 2:
        return math.exp(mean), None, None
    reach = float(stdtrit(len(logs) - 1, (1 + CONFIDENCE) / 2) * logs.std(ddof=1) / len(logs) ** 0.5)
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)
