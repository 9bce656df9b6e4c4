"""Energy of a forward pass and of a training step: the measure `energy`.

Protocol 1. A fresh process builds the model, waits for 5 s in which nothing runs (idle), then repeats inference for at
least 5 s and training steps for as long, and reads the device's counter of energy before and after each. Energy is all
that was drawn, idle included; idle power stands beside it. `energy_kind` says of what: `board` (NVML, an NVIDIA device
with its memory) or `package` (RAPL, the processors of the machine, whoever uses them). Without a counter the columns
are empty, and `energy_reason` says why.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from runners.machine.accelerator import Meter
from runners.machine.hardware import hardware
from runners.measure.children import child
from runners.measure.rounds import Work

WINDOW_S = 5.0
WARMUP_RUNS = 3


def measure_energy(work: Work) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Columns of energy, for the batch of `work`.

    Raises:
        OutOfMemory: the process ran out of memory; carries its message.
        ChildFailed: it failed otherwise; carries its traceback and its status.
    """
    with child(partial(read_energy, work)) as process:
        process.begin()
        return process.answer(), {}


def read_energy(work: Work) -> dict[str, Any]:
    """Columns of energy, measured in this process."""
    machine = hardware(torch.device(work.device))
    meter = machine.meter()
    names = ("energy_mj_per_image", "train_energy_j_per_step", "idle_power_w", "energy_kind")
    if meter is None:
        return {**dict.fromkeys(names), "energy_reason": machine.why_no_meter()}
    with work.at_work():
        images, labels = work.batch()
        built = work.build()
        model = work.contender(built, images, labels)
        machine.synchronize()
        idle_w, _ = _window(meter, lambda: time.sleep(0.1), machine.synchronize)
        infer_w, infer_s = _warm_window(meter, model.infer, machine.synchronize)
        training = None
        if work.why_untrained is None:
            # a copy of its own: what a model caches in inference mode cannot be trained with
            model = work.contender(built, images, labels)
            train_w, train_s = _warm_window(meter, model.train, machine.synchronize)
            training = train_w * train_s
    values = (1e3 * infer_w * infer_s / len(images), training, idle_w, meter.kind)
    return {**dict(zip(names, values, strict=True)), "energy_reason": None}


def _warm_window(meter: Meter, run: Callable[[], object], synchronize: Callable[[], None]) -> tuple[float, float]:
    for _ in range(WARMUP_RUNS):
        run()
    return _window(meter, run, synchronize)


def _window(meter: Meter, run: Callable[[], object], synchronize: Callable[[], None]) -> tuple[float, float]:
    """Mean power in W over at least `WINDOW_S` of runs, and seconds of one run."""
    synchronize()
    before, started, runs = meter.joules(), time.perf_counter(), 0
    while time.perf_counter() < started + WINDOW_S:
        run()
        runs += 1
    synchronize()
    seconds = time.perf_counter() - started
    return (meter.joules() - before) / seconds, seconds / runs
