"""Times of real models, in this process and in others: models stay as they were, and failures are told."""

from functools import partial

import pytest
import torch
from conftest import slow_but
from speed_clock import SHAPE, process
from torch import nn

import attention_zoo
from ablations.study import Cell
from runners.cells.models import build_baseline, build_model
from runners.machine.conditions import Conditions
from runners.machine.failures import ChildFailed
from runners.measure import rounds, speed
from runners.measure.rounds import Work, run_process
from runners.measure.speed import measure_speed

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
    assert columns["disturbed"] == (columns["disturbance"] is not None)


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
