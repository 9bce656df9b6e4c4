import contextlib
import functools
import sys
import time

import pytest
import torch
from torch import nn

from runners.machine.conditions import Conditions
from runners.machine.failures import OutOfMemory
from runners.measure import memory as peak_memory
from runners.measure.goal import CLASSES
from runners.measure.memory import measure_memory

CPU = torch.device("cpu")
MIB = 2**20
BATCH, FEATURES, OUT = 8, 3 * 4 * 6, 4096
FIRST_MIB, SCRATCH_MIB = 128, 48

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's process limits and signals")


class Known(nn.Module):
    """A matrix product with scratch memory in every call, and more of it in the first."""

    def __init__(self):
        super().__init__()
        torch.ones(200 * MIB // 4)  # only while it is built
        self.weight = nn.Parameter(torch.zeros(FEATURES, OUT))
        self.called = False

    def forward(self, x):
        torch.ones((SCRATCH_MIB if self.called else FIRST_MIB) * MIB // 4)
        self.called = True
        scratch = torch.ones(SCRATCH_MIB * MIB // 4)
        return (x.flatten(1) @ self.weight)[:, :10] + scratch[:10]


def build_known(threads):
    print("libraries print, too")
    assert torch.get_num_threads() == threads
    return Known()


def request(build, training=False, limit_mib=None):
    return peak_memory._Request(build, (BATCH, 3, 4, 6), "cpu", Conditions(), 1, limit_mib, CLASSES, training)


@pytest.fixture(scope="module")
def columns():
    return measure_memory(functools.partial(build_known, 2), (BATCH, 3, 4, 6), CPU, threads=2)


def test_peak_of_inference_is_known_to_the_byte(columns):
    weight, images, products = FEATURES * OUT * 4, BATCH * FEATURES * 4, BATCH * OUT * 4
    result = BATCH * 10 * 4
    assert columns["peak_infer_mib"] * MIB == weight + images + SCRATCH_MIB * MIB + products + result


def test_peak_of_training_holds_gradients_and_optimiser_state_too(columns):
    weight_mib = FEATURES * OUT * 4 / MIB
    # weights, gradients, two moments; the step's own scratch is freed before the optimiser's
    assert columns["peak_train_mib"] > columns["peak_infer_mib"] + 2 * weight_mib
    assert columns["peak_train_mib"] < columns["peak_infer_mib"] + 4 * weight_mib


@linux
def test_resident_peak_is_that_of_both_runs_over_the_loaded_model(columns):
    for name in ("peak_rss_mib", "peak_train_rss_mib"):
        assert FIRST_MIB * 0.95 < columns[name] < FIRST_MIB + 60


def test_without_a_device_allocator_nothing_is_reserved(columns):
    assert set(columns) == {"peak_infer_mib", "peak_train_mib", "peak_rss_mib", "peak_train_rss_mib"}


@linux
@pytest.mark.parametrize(("limit_mib", "enough"), [(100, False), (260, True)])
def test_a_limit_counts_what_the_model_needs_alone(limit_mib, enough):
    run = functools.partial(peak_memory._run, [request(functools.partial(build_known, 1), limit_mib=limit_mib)])
    if enough:
        assert run()["peak_infer_mib"] > SCRATCH_MIB
    else:
        with pytest.raises(OutOfMemory, match="DefaultCPUAllocator"):
            run()


@pytest.mark.parametrize(("limit_mib", "runs"), [(None, ["infer+train", "infer", "train"]), (100, ["infer+train"])])
def test_two_processes_that_do_not_fit_beside_each_other_run_alone(limit_mib, runs, monkeypatch):
    calls = []

    def run(requests):
        calls.append("+".join("train" if r.training else "infer" for r in requests))
        if len(requests) > 1:
            raise OutOfMemory("together")
        return {calls[-1]: 1.0}

    monkeypatch.setattr(peak_memory, "_run", run)
    expected = pytest.raises(OutOfMemory) if limit_mib else contextlib.nullcontext()
    with expected:
        found = measure_memory(Known, (1, 3, 4, 6), CPU, memory_limit_mib=limit_mib)
        assert found == {"infer": 1.0, "train": 1.0}
    assert calls == runs


def test_on_a_gpu_the_maxima_of_the_second_run_count_and_processes_run_alone(monkeypatch):
    log = []
    machine = peak_memory.Hardware(
        lambda: log.append("synchronize"), time.perf_counter, float, lambda: log.append("reset"), lambda: (5.0, 6.0)
    )
    monkeypatch.setattr(peak_memory, "_load", lambda request: lambda: log.append("run"))
    found = peak_memory._measure_twice(request(Known), CPU, machine)
    assert found[:2] == (5.0, 6.0)
    assert log == ["synchronize", "run", "synchronize", "reset", "run", "synchronize"]
    monkeypatch.setattr(
        peak_memory, "_run", lambda requests: {"train" if r.training else "infer": len(requests) for r in requests}
    )
    assert measure_memory(Known, (1, 3, 4, 6), torch.device("cuda")) == {"infer": 1, "train": 1}
