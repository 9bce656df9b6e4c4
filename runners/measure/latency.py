"""Latency of one image: the measure `latency`.

Protocol 1. A fresh process runs the model on one image again and again: 20 forwards or 1 s of warm-up, then up to 2000
forwards within 20 s, and 6 in any case. The 90th and the 99th percentile are given only if at least 10 forwards lie
above them, that is from 100 and from 1000 on. The median is always given: if forwards are independent, the true median
lies between the fastest and the slowest of 6 with a probability of 97 %.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from runners.measure.children import child
from runners.measure.rounds import Contender, Work
from runners.measure.speed import allocator_variables

WARMUP_FORWARDS, WARMUP_S = 20, 1.0
FORWARDS, BUDGET_S = 2000, 20.0
FEWEST = 6
"""Forwards of a model so slow that the budget ends before; enough for a median."""
ABOVE = 10
"""Forwards above a higher percentile that make it one."""


def measure_latency(work: Work) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Columns of the latency of one image, and the milliseconds behind them; the batch of `work` does not count.

    Raises:
        OutOfMemory: the process ran out of memory; carries its message.
        ChildFailed: it failed otherwise; carries its traceback and its status.
    """
    task = partial(_time, replace(work, input_shape=(1, *work.input_shape[1:]), build_baseline=None))
    with child(task, allocator_variables()) as process:
        process.begin()
        times = process.answer()["ms"]
    return {**percentiles(times), "latency_samples": len(times)}, {"latency_ms": times}


def percentiles(times: list[float]) -> dict[str, float | None]:
    """Median, 90th and 99th percentile in ms; None of too few."""
    enough = {50: FEWEST, 90: 10 * ABOVE, 99: 100 * ABOVE}
    return {
        f"infer_latency_ms_p{percent}": float(np.percentile(times, percent)) if len(times) >= least else None
        for percent, least in enough.items()
    }


def _time(work: Work) -> dict[str, Any]:
    with work.at_work():
        model = work.contender(work.build(), *work.batch())
        _run(model, 1, WARMUP_FORWARDS, WARMUP_S)
        return {"ms": _run(model, FEWEST, FORWARDS, BUDGET_S)}


def _run(model: Contender, fewest: int, most: int, budget_s: float) -> list[float]:
    started, times = time.perf_counter(), list[float]()
    while len(times) < fewest or (len(times) < most and time.perf_counter() < started + budget_s):
        times += model.infer()
    return times
