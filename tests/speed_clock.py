"""A clock that only models move, for tests of times, and measurements that stay in this process."""

import pytest
import torch
from torch import nn

from runners.machine.hardware import Hardware
from runners.measure import rounds, speed
from runners.measure.rounds import Work, run_process

SHAPE = (2, 3, 4, 6)
QUIET = {"others": 0.01, "switches": 1.0, "drift": 1.0}


class Clock:
    """A clock that only models move."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    seam = Hardware(lambda: None, clock.perf_counter, lambda a, b: (b - a) * 1e3, lambda: None, lambda: (None, None))
    monkeypatch.setattr(rounds, "hardware", lambda device: seam)
    monkeypatch.setattr(rounds, "time", clock)
    return clock


class Slow(torch.autograd.Function):
    """Takes its time in the backward pass."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.model = model
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.model.spend("backward_s")
        return grad, None


class Timed(nn.Module):
    """A classifier that takes exactly as long as it is told."""

    def __init__(self, clock, forward_s=0.01, backward_s=0.02, name="cell", log=None, noise=None, fail=None):
        super().__init__()
        self.forward_s, self.backward_s, self.name, self.fail = forward_s, backward_s, name, fail
        self.shared = {"clock": clock, "log": log, "noise": noise}
        self.linear = nn.Linear(72, 4)

    def __deepcopy__(self, memo):
        copy = Timed(**{k: self.shared[k] for k in ("clock", "log", "noise")}, name=self.name, fail=self.fail)
        copy.forward_s, copy.backward_s = self.forward_s, self.backward_s
        return copy

    def spend(self, part):
        noise = self.shared["noise"]
        self.shared["clock"].seconds += getattr(self, part) * (noise() if noise else 1)

    def forward(self, x):
        if self.shared["log"] is not None:
            self.shared["log"].append((self.name, self.training, torch.is_inference_mode_enabled()))
        self.spend("forward_s")
        if self.fail is not None and self.training == self.fail[0]:
            raise self.fail[1]
        return Slow.apply(self.linear(x.flatten(1)), self)


def process(cell, vanilla=None, budget_s=10.0, **changes):
    """Phases of one process, here, as `run_process` gives them."""
    baseline = None if vanilla is None else lambda: vanilla
    work = Work(build=lambda: cell, build_baseline=baseline, input_shape=SHAPE, **changes)
    return run_process(work, budget_s, baseline_first=False, with_bounds=False)


@pytest.fixture
def here(monkeypatch):
    """Make `measure_speed` work in this process, and remember what each process was asked."""
    calls = []
    TURNS.clear()

    class Here:
        def __init__(self, task, variables, imports):
            calls.append((task.args[1:], variables))
            self.task, self.number = task, len(calls)

        def wait_until_ready(self):
            TURNS.append(("ready", self.number))

        def begin(self):
            TURNS.append(("begin", self.number))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def answer(self):
            TURNS.append(("answer", self.number))
            return self.task() | {"seen": SEEN.pop(0) if SEEN else QUIET}

    monkeypatch.setattr(speed, "child", Here)
    monkeypatch.setattr(rounds, "_bounds", lambda *_: {"gemm_gflops": 100.0})
    SEEN.clear()
    return calls


TURNS: list[tuple[str, int]] = []
"""What was asked of which process, in order."""
SEEN: list[dict[str, float]] = []
"""What disturbed the processes to come."""


def work(cell, vanilla=None, **changes):
    return Work(
        build=lambda: cell,
        build_baseline=None if vanilla is None else lambda: vanilla,
        input_shape=SHAPE,
        **changes,
    )
