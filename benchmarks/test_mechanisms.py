"""Forward and training step of each mechanism on one map: `pytest benchmarks --benchmark-enable`.

Timings of one run compare mechanisms with each other on this machine; they are no results in themselves.
"""

import pytest
import torch

from attention_zoo import create, names

SIDES = (14, 28, 56)


@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side}x{side}")
@pytest.mark.parametrize("name", names())
def test_forward(benchmark, name, side):
    attention = create(name, dim=96, num_heads=3).eval()
    x = torch.randn(2, side, side, 96)
    with torch.inference_mode():
        y = benchmark(attention, x)
    assert y.shape == x.shape


@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side}x{side}")
@pytest.mark.parametrize("name", names())
def test_forward_and_backward(benchmark, name, side):
    attention = create(name, dim=96, num_heads=3)
    x = torch.randn(2, side, side, 96, requires_grad=True)

    def step():
        attention(x).sum().backward()
        return x.grad

    assert benchmark(step).shape == x.shape
