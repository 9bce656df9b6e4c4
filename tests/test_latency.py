import random

import numpy as np
import pytest
import torch
from torch import nn

from runners.machine.environment import Hardware
from runners.measure import speed as latency
from runners.measure.speed import measure_speed, median_interval

CPU = torch.device("cpu")
IMAGES = torch.zeros(2, 3, 4, 6)


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
    monkeypatch.setattr(latency, "hardware", lambda device: seam)
    monkeypatch.setattr(latency, "time", clock)
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


def test_times_ratios_and_samples_follow_the_clock(clock):
    vanilla = Timed(clock, forward_s=0.04, backward_s=0.08)
    columns, samples = measure_speed(Timed(clock), vanilla, IMAGES, device=CPU)
    about = pytest.approx
    assert columns["infer_latency_ms"] == columns["infer_latency_ms_q25"] == about(10)
    assert columns["infer_samples_per_sec"] == about(200)
    assert columns["infer_first_call_ms"] == about(10)
    assert columns["train_step_ms"] == columns["train_step_ms_q75"] == columns["train_first_step_ms"] == about(30)
    assert [columns[f"train_{part}_ms"] for part in ("forward", "backward", "optimizer")] == [about(10), about(20), 0]
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        assert [columns[ratio], columns[f"{ratio}_low"], columns[f"{ratio}_high"]] == [about(4)] * 3
        assert columns[f"{ratio}_reason"] is None
    assert len(samples["infer_ms"]) == len(samples["infer_vanilla_ms"])
    assert samples["train_vanilla_ms"] == about([120] * len(samples["train_forward_ms"]))
    assert samples["train_backward_ms"] == about([20] * len(samples["train_forward_ms"]))


def test_cell_and_vanilla_take_turns_in_the_right_modes(clock):
    log = []
    measure_speed(Timed(clock, log=log), Timed(clock, log=log, name="vanilla"), IMAGES, device=CPU, budget_s=2)
    assert [name for name, *_ in log] == ["cell", "vanilla"] * (len(log) // 2)
    modes = [tuple(mode) for _, *mode in log]
    changes = modes.index((True, False))
    assert set(modes[:changes]) == {(False, True)} and set(modes[changes:]) == {(True, False)}


def test_against_itself_the_interval_holds_one(clock):
    noise = random.Random(0)
    jitter = lambda: noise.lognormvariate(0, 0.3)  # noqa: E731
    columns, samples = measure_speed(Timed(clock, noise=jitter), Timed(clock, noise=jitter), IMAGES, device=CPU)
    quartiles = [columns[f"infer_latency_ms{end}"] for end in ("_q25", "", "_q75")]
    assert quartiles == pytest.approx(np.quantile(samples["infer_ms"], (0.25, 0.5, 0.75)))
    assert columns["vs_vanilla_low"] < 1 < columns["vs_vanilla_high"]
    assert columns["train_vs_vanilla_low"] < 1 < columns["train_vs_vanilla_high"]


@pytest.mark.parametrize(
    ("forward_s", "pairs"),
    [(0.001, latency.MAX_PAIRS), (0.03, 50), (0.3, latency.MIN_PAIRS), (1.9, latency.MIN_PAIRS), (2.1, 1)],
    ids=["fast", "budget spent", "slow", "a pair just fits", "a pair exceeds the budget"],
)
def test_the_budget_decides_how_many_pairs_are_timed(clock, forward_s, pairs):
    cell, vanilla = Timed(clock, forward_s, 0), Timed(clock, forward_s, 0)
    columns, samples = measure_speed(cell, vanilla, IMAGES, device=CPU, budget_s=10)
    assert len(samples["infer_ms"]) == pytest.approx(pairs, abs=15 if pairs == 50 else 0)
    assert (columns["vs_vanilla_low"] is None) == (pairs == 1)
    assert clock.seconds < 10 + (latency.MIN_PAIRS + 2) * 2 * 2 * forward_s


def test_warm_up_is_counted_and_timed(clock):
    log = []
    measure_speed(Timed(clock, 0.01, 0, log=log), None, IMAGES, device=CPU, budget_s=0.001 / 0.4)
    assert len([mode for mode in log if not mode[1]]) == 2  # the first call ate the budget: itself and one sample
    log.clear()
    _, samples = measure_speed(Timed(clock, 0.01, 0, log=log), None, IMAGES, device=CPU, budget_s=10)
    warm_up = len([mode for mode in log if not mode[1]]) - len(samples["infer_ms"]) - 1
    assert warm_up == pytest.approx(latency.WARMUP_S / 0.01, abs=1)
    log.clear()
    _, samples = measure_speed(Timed(clock, 0.2, 0, log=log), None, IMAGES, device=CPU, budget_s=10)
    assert len([mode for mode in log if not mode[1]]) - len(samples["infer_ms"]) - 1 == latency.WARMUP_ROUNDS


def test_without_a_baseline_the_reason_is_recorded(clock):
    columns, samples = measure_speed(Timed(clock), None, IMAGES, device=CPU, baseline_reason="vanilla has 10^12 pairs")
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        assert columns[ratio] is columns[f"{ratio}_low"] is columns[f"{ratio}_high"] is None
        assert columns[f"{ratio}_reason"] == "vanilla has 10^12 pairs"
    assert columns["infer_latency_ms"] == pytest.approx(10) and samples["infer_vanilla_ms"] == []


@pytest.mark.parametrize("in_training", [False, True])
def test_a_baseline_that_runs_out_of_memory_is_left_out(clock, in_training):
    vanilla = Timed(clock, fail=(in_training, torch.OutOfMemoryError("no room")))
    columns, _ = measure_speed(Timed(clock), vanilla, IMAGES, device=CPU)
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
        measure_speed(models["cell"], models["vanilla"], IMAGES, device=CPU)


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
    columns, samples = measure_speed(Timed(clock), Timed(clock), IMAGES, device=CPU, compile_model=True)
    assert columns["infer_first_call_ms"] == pytest.approx(100_010)
    assert columns["infer_latency_ms"] == pytest.approx(10)
    assert len(compiled) == 4 and len(samples["infer_ms"]) > 100


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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_real_model_is_timed_and_stays_as_it_was(precision, dtype):
    DTYPES.clear()
    model = Real()
    state, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    labels = torch.tensor([0, 4])
    columns, _ = measure_speed(model, model, IMAGES, labels, device=CPU, precision=precision, budget_s=0.2)
    assert all(value > 0 for name, value in columns.items() if not name.endswith("reason"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and not model.cache and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert set(DTYPES) == {(False, dtype), (True, dtype)}


def test_weights_stay_where_they_are_while_steps_are_timed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    contender = latency._Contender(model, torch.ones(2, 3, 4, 6), torch.tensor([0, 0]), "fp32", False)
    for _ in range(20):
        contender.train()
    torch.testing.assert_close(contender.model[1].weight, model[1].weight, atol=1e-5, rtol=0)
    assert not torch.equal(contender.model[1].weight, model[1].weight)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (7, 1), (9, 2), (20, 6), (100, 40)])
def test_the_interval_ends_at_the_ranks_of_the_sign_test(n, k):
    assert median_interval(random.Random(1).sample(range(n), n)) == (k - 1, n - k)


@pytest.mark.parametrize("n", range(6))
def test_few_values_give_no_interval(n):
    assert median_interval([1.0] * n) == (None, None)


def test_the_interval_holds_the_median_as_often_as_it_says():
    draw = random.Random(2)
    intervals = [median_interval([draw.expovariate(1) for _ in range(15)]) for _ in range(2000)]
    held = sum(low <= 0.6931 <= high for low, high in intervals) / 2000
    assert 0.95 <= held < 0.985
