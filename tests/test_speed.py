"""Times of a cell beside its baseline: rounds in one process under a clock that models move."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from speed_clock import TURNS, Timed, clock, here, process, work

from runners.measure import rounds, speed
from runners.measure.speed import geometric_interval, measure_speed

__all__ = ["clock", "here"]  # fixtures


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
