"""Ceilings are rates of real work, and traffic is what operators read and write."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runners.measure import ceilings
from runners.measure.ceilings import forward_traffic_mib, measure_ceilings

CPU = torch.device("cpu")


@pytest.fixture
def small_operands(monkeypatch):
    monkeypatch.setattr(ceilings, "MAX_SIDE", 256)
    monkeypatch.setattr(ceilings, "MIN_COPY_MIB", 1)
    monkeypatch.setattr(ceilings, "MAX_COPY_MIB", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_measured(small_operands, dtype):
    found = measure_ceilings(CPU, dtype)
    assert 0.01 < found["gemm_gflops"] < 1e5
    assert 0.01 < found["copy_gb_s"] < 1e5


def test_a_rate_is_work_over_the_best_time(small_operands, monkeypatch):
    monkeypatch.setattr(ceilings, "_best_ms", lambda run, device: 2.0)
    # 2 x 256^3 operations, and 1 MiB read and written, in 2 ms
    assert measure_ceilings(CPU) == {"gemm_gflops": 2 * 256**3 / 2e-3 / 1e9, "copy_gb_s": 2 * 2**20 / 2e-3 / 1e9}


def test_without_memory_there_is_no_ceiling(small_operands, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(torch, "empty_like", refuse)
    assert measure_ceilings(CPU) == {"gemm_gflops": None, "copy_gb_s": None}


class Body(nn.Module):
    """Runs a function of an image of 1 MiB, (1, 1, 512, 512)."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


IMAGE = torch.zeros(1, 1, 512, 512)


@pytest.mark.parametrize(
    "run, mib",
    [
        (lambda x: x + 1, 2),
        (lambda x: x + x, 3),
        (lambda x: x.relu_(), 2),
        (lambda x: x.transpose(2, 3).flatten(1, 2).unsqueeze(0), 0),
        (lambda x: x.transpose(2, 3).reshape(-1), 2),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x[:, :, :1].expand(-1, -1, 512, -1).sigmoid(), 1 + 1 / 512),
        (lambda x: (x + 1).mul(2), 4),
        # q, k and v are x; the output and a logarithm for each of the 512 rows
        (lambda x: F.scaled_dot_product_attention(x, x, x), 4 + 512 * 4 / 2**20),
    ],
    ids=["add", "add twice", "in place", "views", "copy", "allocation", "expanded", "two", "attention"],
)
def test_traffic_counts_each_tensor_once_per_operator(run, mib):
    assert forward_traffic_mib(Body(run), IMAGE.clone(), CPU) == pytest.approx(mib, abs=1e-9)


def test_traffic_has_the_weights_once_and_the_batch_as_often_as_it_is():
    linear = nn.Sequential(nn.Flatten(0, 2), nn.Linear(512, 512, bias=False))
    one, two = (forward_traffic_mib(linear, IMAGE.repeat(n, 1, 1, 1), CPU) for n in (1, 2))
    assert (one, two) == (1 + 2, 1 + 4)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    forward_traffic_mib(model, IMAGE, CPU)
    assert model.training and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
