"""Each mechanism alone on maps of many sizes: `pytest benchmarks --benchmark-enable -k modules`."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attention_zoo import create, names
from benchmarks.twins import run_module

SIDES = (14, 28, 56, 112)
BATCH, DIM, HEADS = 2, 96, 3
MAX_GMACS = 80
"""What a round may cost, or the rounds of one benchmark would take minutes; `-k` reaches what is left."""


@pytest.mark.parametrize("work", ["forward", "forward_backward"])
@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side}x{side}")
@pytest.mark.parametrize("name", names())
def test_mechanism(benchmark: BenchmarkFixture, name: str, side: int, work: str) -> None:
    if benchmark.disabled and side > SIDES[0]:
        pytest.skip("large maps are for --benchmark-enable")
    training = work == "forward_backward"
    attention = create(name, dim=DIM, num_heads=HEADS)
    gmacs = BATCH * attention.macs(side, side).total * (3 if training else 1) / 1e9
    if gmacs > MAX_GMACS:
        pytest.skip(f"{gmacs:.0f} GMACs a round are above the bound of {MAX_GMACS}")
    benchmark.group = f"{side}x{side}, {work}"
    benchmark.extra_info["gmacs"] = gmacs
    x = torch.randn(BATCH, side, side, DIM)
    result = benchmark(run_module(attention, x, training))
    assert result.shape == x.shape
