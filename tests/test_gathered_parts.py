"""In inference regions are attended to a few at a time; what that computes does not depend on how many."""

import pytest
import torch

from attention_zoo import create
from attention_zoo.kernels import routing


@pytest.mark.parametrize("height", [12, 13])
@pytest.mark.parametrize("limit", [1, 30_000, 10**9])
def test_the_size_of_a_part_changes_no_output(monkeypatch, height, limit):
    generator = torch.Generator().manual_seed(0)
    attention = create("bra", dim=16, num_heads=2, regions=3, topk=2, impl="gather").double()
    x = torch.randn(2, height, 12, 16, generator=generator, dtype=torch.float64)
    whole = attention(x).detach()
    calls = []
    attend = routing.attend
    monkeypatch.setattr(routing, "attend", lambda q, *rest: calls.append(len(q)) or attend(q, *rest))
    monkeypatch.setattr(routing, "GATHERED_BYTES", limit)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), whole, atol=1e-12, rtol=1e-12)
    assert sum(calls) == 2 * 9
    assert calls == [1] * 18 if limit == 1 else calls == [18] if limit == 10**9 else 1 < len(calls) < 18


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_gathers_once_whatever_the_size_of_a_part(monkeypatch):
    monkeypatch.setattr(routing, "GATHERED_BYTES", 1)
    attention = create("bra", dim=16, num_heads=2, regions=3, topk=2, impl="gather").eval()
    with torch.no_grad():
        traced = torch.jit.trace(attention, torch.randn(2, 12, 12, 16))
    assert str(traced.inlined_graph).count("aten::scaled_dot_product_attention") == 1
