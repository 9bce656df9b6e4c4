"""Latency of one image: the measure `latency`.

Protocol 1. A fresh process runs the model on one image again and again: 20 forwards or 1 s of warm-up, then up to 2000
forwards within 20 s. A percentile is given only if at least 10 forwards lie above it: 100 for the 90th, 1000 for the
99th.
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
ABOVE = 10
"""Forwards above a percentile that make it one."""


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
    return {
        f"infer_latency_ms_p{percent}": float(np.percentile(times, percent))
        if len(times) * (100 - percent) >= 100 * ABOVE
        else None
        for percent in (50, 90, 99)
    }


def _time(work: Work) -> dict[str, Any]:
    with work.at_work():
        model = work.contender(work.build(), *work.batch())
        _run(model, WARMUP_FORWARDS, WARMUP_S)
        return {"ms": _run(model, FORWARDS, BUDGET_S)}


def _run(model: Contender, most: int, budget_s: float) -> list[float]:
    started, times = time.perf_counter(), list[float]()
    while not times or (len(times) < most and time.perf_counter() < started + budget_s):
        times += model.infer()
    return times
