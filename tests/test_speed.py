"""Times of a cell beside its baseline: rounds in one process under a clock that models move, and several processes."""

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import slow_but
from scipy import stats
from torch import nn

import attention_zoo
from ablations.study import Cell
from runners.cells.models import build_baseline, build_model
from runners.machine.conditions import Conditions
from runners.machine.failures import ChildFailed
from runners.machine.hardware import Hardware
from runners.measure import disturbance, rounds, speed
from runners.measure.rounds import Work, run_process
from runners.measure.speed import geometric_interval, measure_speed

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


def test_times_ratios_and_samples_follow_the_clock(clock, here):
    vanilla = Timed(clock, forward_s=0.04, backward_s=0.08)
    columns, samples = measure_speed(work(Timed(clock), vanilla))
    about = pytest.approx
    assert [columns["infer_latency_ms"], columns["infer_latency_ms_q25"]] == [about(10)] * 2
    assert columns["infer_samples_per_sec"] == about(200)
    assert columns["infer_first_call_ms"] == about(10)
    assert [columns[f"train_{name}"] for name in ("step_ms", "step_ms_q75", "first_step_ms")] == [about(30)] * 3
    parts = [columns[f"train_{part}_ms"] for part in ("forward", "backward", "optimizer")]
    assert parts == [about(10), about(20), about(0, abs=1e-9)]
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        assert [columns[ratio], columns[f"{ratio}_low"], columns[f"{ratio}_high"]] == [about(4)] * 3
        assert columns[f"{ratio}_reason"] is None
    assert len(samples["infer_ms"]) == len(samples["infer_vanilla_ms"]) == len(samples["infer_process"])
    assert samples["train_vanilla_ms"] == about([120] * len(samples["train_forward_ms"]))
    assert samples["train_backward_ms"] == about([20] * len(samples["train_forward_ms"]))
    assert columns["timing_processes"] == len(set(samples["infer_process"])) == speed.PROCESSES >= 3
    assert columns["gemm_gflops"] == 100


def test_processes_share_the_budget_and_every_second_begins_with_the_baseline(clock, here):
    measure_speed(work(Timed(clock), Timed(clock)), budget_s=8)
    each = 8 / speed.PROCESSES
    assert [asked for asked, _ in here] == [(each, i % 2 == 1, i == 0) for i in range(speed.PROCESSES)]


def test_one_process_works_at_a_time_while_at_most_one_more_waits(clock, here):
    measure_speed(work(Timed(clock)))
    expected = []
    for first in range(1, speed.PROCESSES, 2):
        pair = (first, first + 1)
        expected += [("ready", number) for number in pair]
        expected += [(what, number) for number in pair for what in ("begin", "answer")]
    assert expected == TURNS


def test_the_interval_is_that_of_the_processes(clock, here):
    luck = iter([1.0, 1.1, 1.25, 0.9] * 2)

    def build():
        cell = Timed(clock)
        cell.forward_s *= next(luck)
        return cell

    columns, _ = measure_speed(replace(work(None, Timed(clock)), build=build))
    ratios = [1 / factor for factor in (1.0, 1.1, 1.25, 0.9)]
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert columns["vs_vanilla"] == pytest.approx(stats.gmean(ratios))
    assert columns["vs_vanilla_low"] == pytest.approx(math.exp(low))
    assert columns["vs_vanilla_high"] == pytest.approx(math.exp(high))


def test_the_geometric_interval_holds_the_truth_as_often_as_it_says():
    draw, held = random.Random(3), 0
    for _ in range(2000):
        _, low, high = geometric_interval([draw.lognormvariate(0.2, 0.05) for _ in range(4)])
        held += low <= math.exp(0.2) <= high
    assert 0.93 < held / 2000 < 0.97
    assert geometric_interval([2.0]) == (pytest.approx(2.0), None, None)


def test_cell_and_vanilla_take_turns_in_the_right_modes(clock):
    log = []
    process(Timed(clock, log=log), Timed(clock, log=log, name="vanilla"), budget_s=2)
    assert [name for name, *_ in log] == ["cell", "vanilla"] * (len(log) // 2)
    modes = [tuple(mode) for _, *mode in log]
    changes = modes.index((True, False))
    assert set(modes[:changes]) == {(False, True)} and set(modes[changes:]) == {(True, False)}


def test_against_itself_the_interval_holds_one(clock, here):
    noise = random.Random(0)
    jitter = lambda: noise.lognormvariate(0, 0.3)  # noqa: E731
    columns, samples = measure_speed(work(Timed(clock, noise=jitter), Timed(clock, noise=jitter)))
    quartiles = [columns[f"infer_latency_ms{end}"] for end in ("_q25", "", "_q75")]
    assert quartiles == pytest.approx(np.quantile(samples["infer_ms"], (0.25, 0.5, 0.75)))
    assert columns["vs_vanilla_low"] < 1 < columns["vs_vanilla_high"]
    assert columns["train_vs_vanilla_low"] < 1 < columns["train_vs_vanilla_high"]


@pytest.mark.parametrize(
    ("forward_s", "count"),
    [(0.001, rounds.MAX_ROUNDS), (0.03, 50), (0.5, rounds.MIN_ROUNDS), (1.4, rounds.MIN_ROUNDS), (1.6, 1)],
    ids=["fast", "budget spent", "slow", "a round just fits", "a round exceeds the budget"],
)
def test_the_budget_decides_how_many_rounds_are_timed(clock, forward_s, count):
    found = process(Timed(clock, forward_s, 0), Timed(clock, forward_s, 0), budget_s=10)
    assert len(found["infer"]["cell"]) == pytest.approx(count, abs=15 if count == 50 else 0)
    assert clock.seconds < 10 + (rounds.MIN_ROUNDS + 2) * 2 * 2 * forward_s


def test_warm_up_is_counted_and_timed(clock):
    log = []
    process(Timed(clock, 0.01, 0, log=log), budget_s=0.001 / rounds.INFER_SHARE)
    assert len([mode for mode in log if not mode[1]]) == 2  # the first call ate the budget: itself and one round
    for forward_s, expected in ((0.01, rounds.WARMUP_S / 0.01), (0.2, rounds.WARMUP_ROUNDS)):
        log.clear()
        found = process(Timed(clock, forward_s, 0, log=log), budget_s=10)
        warm_up = len([mode for mode in log if not mode[1]]) - len(found["infer"]["cell"]) - 1
        assert warm_up == pytest.approx(expected, abs=1 if expected > 3 else 0)


def test_without_a_baseline_the_reason_is_recorded(clock, here):
    columns, samples = measure_speed(work(Timed(clock)), baseline_reason="vanilla has 10^12 pairs")
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        assert columns[ratio] is columns[f"{ratio}_low"] is columns[f"{ratio}_high"] is None
        assert columns[f"{ratio}_reason"] == "vanilla has 10^12 pairs"
    assert columns["infer_latency_ms"] == pytest.approx(10) and samples["infer_vanilla_ms"] == []


@pytest.mark.parametrize("in_training", [False, True])
def test_a_baseline_that_runs_out_of_memory_is_left_out(clock, here, in_training):
    vanilla = Timed(clock, fail=(in_training, torch.OutOfMemoryError("no room")))
    columns, _ = measure_speed(work(Timed(clock), vanilla))
    assert columns["train_vs_vanilla"] is None and "no room" in columns["train_vs_vanilla_reason"]
    assert columns["train_step_ms"] == pytest.approx(30)
    if in_training:
        assert columns["vs_vanilla"] == pytest.approx(1) and columns["vs_vanilla_reason"] is None
    else:
        assert columns["vs_vanilla"] is None and "no room" in columns["vs_vanilla_reason"]


@pytest.mark.parametrize("who", ["cell", "vanilla"])
def test_other_failures_are_not_hidden(clock, who):
    models = {
        name: Timed(clock, fail=(True, RuntimeError("broken")) if name == who else None) for name in ("cell", "vanilla")
    }
    with pytest.raises(RuntimeError, match="broken"):
        process(models["cell"], models["vanilla"])


def test_compilation_is_the_first_call_of_both_and_outside_the_budget(clock, monkeypatch):
    compiled = []

    def compile_slowly(model):
        compiled.append(model)
        pending = [100.0]

        def run(x):
            clock.seconds += pending.pop() if pending else 0
            return model(x)

        return run

    monkeypatch.setattr(torch, "compile", compile_slowly)
    found = process(Timed(clock), Timed(clock), compile_model=True)
    assert found["infer"]["first_ms"] == pytest.approx(100_010)
    assert found["infer"]["cell"][0] == [pytest.approx(10)]
    assert len(compiled) == 4 and len(found["infer"]["cell"]) == rounds.MAX_ROUNDS


# --- disturbance


BUSY = {"others": 0.5, "switches": 90.0, "drift": 1.0}


def test_a_disturbed_measurement_says_so_and_by_what(clock, here):
    SEEN.extend([QUIET, BUSY, QUIET, QUIET | {"drift": 1.6}])
    columns, _ = measure_speed(work(Timed(clock)))
    assert columns["disturbed"] and not columns["measured_again"]
    second, fourth = columns["disturbance"].split("; ")
    assert second.startswith("process 2:") and "50%" in second and "90" in second
    assert fourth.startswith("process 4:") and "1.60" in fourth


def test_the_interval_of_a_disturbed_row_allows_for_what_others_took(clock, here):
    vanilla = Timed(clock, forward_s=0.04, backward_s=0.08)
    SEEN.extend([QUIET, {**QUIET, "others": 0.2}, {**QUIET, "others": 0.5}, QUIET])
    columns, _ = measure_speed(work(Timed(clock), vanilla))
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        found = [columns[ratio], columns[f"{ratio}_low"], columns[f"{ratio}_high"]]
        assert found == [pytest.approx(4), pytest.approx(2), pytest.approx(8)]
    # 5 % is what an idle machine shows
    SEEN.extend([{**QUIET, "others": 0.05}] * 4)
    columns, _ = measure_speed(work(Timed(clock), vanilla))
    assert columns["vs_vanilla_low"] == pytest.approx(4) and not columns["disturbed"]


@pytest.mark.parametrize(("again", "disturbed"), [([], False), ([BUSY] * 4, True), ([BUSY], True)])
def test_it_is_repeated_once_and_the_quieter_one_becomes_the_row(clock, here, again, disturbed):
    SEEN.extend([BUSY, BUSY, QUIET, QUIET, *again])
    columns, samples = measure_speed(work(Timed(clock)), patience_s=1000)
    assert columns["measured_again"] and columns["disturbed"] == disturbed
    assert len(here) == 2 * speed.PROCESSES
    assert len(samples["earlier_infer_ms"]) > 0


def test_what_does_not_fit_into_the_patience_is_not_repeated(clock, here, monkeypatch):
    ticks = iter([0.0, 31.0])
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(ticks))
    SEEN.extend([BUSY] * 4)
    columns, samples = measure_speed(work(Timed(clock)), patience_s=30)
    assert (columns["disturbed"], columns["measured_again"]) == (True, False)
    assert not any(name.startswith("earlier") for name in samples)


def test_a_quiet_measurement_is_not_marked(clock, here):
    columns, _ = measure_speed(work(Timed(clock)), patience_s=1000)
    assert (columns["disturbed"], columns["disturbance"], columns["measured_again"]) == (False, None, False)


def readings(wall_s=0.0, own_s=0.0, busy_s=0.0, switches=0, throttled=0, clock_mhz=2000.0):
    return disturbance.Readings(wall_s, own_s, busy_s, switches, throttled, clock_mhz)


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (readings(10, 20, 20, 10), None),
        (readings(10, 12, 20, 10), "40%"),
        (readings(10, 20, 20, 2000), "100"),
        (readings(10, 20, 20, 0, throttled=2), "2 times"),
        (readings(10, 20, 20, 0, clock_mhz=1500.0), "75%"),
    ],
)
def test_counters_tell_what_disturbed(after, word, monkeypatch):
    monkeypatch.setattr(disturbance, "usable_processors", lambda: [0, 1])
    found = disturbance.reasons(disturbance.summary([(readings(), after)], threads=2))
    assert len(found) == (word is not None) and (word is None or word in found[0])


def test_counters_of_spans_add_up(monkeypatch):
    monkeypatch.setattr(disturbance, "usable_processors", lambda: [0, 1])
    span = readings(), readings(1, 1, 1.4, 30)
    found = disturbance.summary([span, span], threads=2)
    assert found["others"] == pytest.approx(0.2) and found["switches"] == pytest.approx(15)


@pytest.mark.parametrize(
    ("values", "drift"), [([1.0] * 11, None), ([1, 1, 9, 1, 1, 1, 1, 1, 2, 2, 2, 2], 2.0), ([3.0] * 12, 1.0)]
)
def test_drift_compares_the_last_third_with_the_first(values, drift):
    assert disturbance.drift(values) == drift


def test_counters_that_a_system_lacks_are_left_out():
    none = disturbance.Readings(0, 0, None, None, None, None)
    found = disturbance.summary([(none, replace(none, wall_s=1.0))], threads=1)
    assert "others" not in found and "clock" not in found and not disturbance.reasons(found)


# --- real models and processes


class Real(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5))
        self.cache = {}

    def forward(self, x):
        # made under inference mode, it could not be multiplied with a gradient in training
        self.cache.setdefault("scale", torch.ones(1, device=x.device) * 2)
        self.cache["dtype"] = self.body[0](x).dtype
        DTYPES.add((self.training, self.cache["dtype"]))
        return self.body(x) * self.cache["scale"]


DTYPES: set[tuple[bool, torch.dtype]] = set()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("amp-bf16", torch.bfloat16)])
def test_a_real_model_is_timed_and_stays_as_it_was(precision, dtype):
    DTYPES.clear()
    model = Real()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = process(model, model, conditions=Conditions(precision=precision), budget_s=0.2)
    assert all(value > 0 for phase in ("infer", "train") for times in found[phase]["cell"] for value in times)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and not model.cache and all(p.grad is None for p in model.parameters())
    assert set(DTYPES) == {(False, dtype), (True, dtype)}


def test_weights_stay_where_they_are_while_steps_are_timed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    contender = rounds.Contender(model, torch.ones(SHAPE), torch.tensor([0, 0]), Conditions(), False)
    for _ in range(20):
        contender.train()
    torch.testing.assert_close(contender.model[1].weight, model[1].weight, atol=1e-5, rtol=0)
    assert not torch.equal(contender.model[1].weight, model[1].weight)


def build_real():
    return Real()


def build_broken():
    raise ValueError("no such model")


@pytest.mark.slow
def test_real_processes_time_a_real_model():
    given = Work(build=build_real, build_baseline=build_real, input_shape=SHAPE, threads=1)
    columns, samples = measure_speed(given, budget_s=0.4)
    assert 0.3 < columns["vs_vanilla"] < 3 and columns["vs_vanilla_low"] < columns["vs_vanilla_high"]
    assert len(set(samples["train_process"])) == columns["timing_processes"]
    assert columns["traffic_mib"] > 0 and columns["gemm_gflops"] > 0
    assert columns["disturbed"] in (True, False)


@pytest.mark.skipif(not speed.allocator_variables(), reason="needs glibc, and no allocator variables of one's own")
def test_freed_memory_is_kept_and_recorded(monkeypatch):
    assert "MALLOC_MMAP_MAX_=0" in speed._allocator()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert speed.allocator_variables() == {} and speed._allocator() == "MALLOC_ARENA_MAX=2"


def test_a_process_that_fails_fails_the_measurement(monkeypatch):
    monkeypatch.setattr(speed, "PROCESSES", 1)
    given = Work(build=build_broken, build_baseline=None, input_shape=SHAPE)
    with pytest.raises(ChildFailed, match="no such model"):
        measure_speed(given)


@pytest.mark.parametrize("name", slow_but("bra", "sliding", of=attention_zoo.names()))
def test_every_mechanism_is_timed_on_a_size_that_no_default_window_divides(name):
    cell = Cell(attn=name, height_px=40, width_px=72, batch_size=2)
    builders = {"build": partial(build_model, cell), "build_baseline": partial(build_baseline, cell)}
    given = Work(**builders, input_shape=(2, 3, 40, 72), threads=1)
    found = run_process(given, 0.1, baseline_first=False, with_bounds=False)
    for phase in ("infer", "train"):
        assert found[phase]["vanilla"] and all(part > 0 for times in found[phase]["cell"] for part in times)
