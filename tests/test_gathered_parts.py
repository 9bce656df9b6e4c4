"""In inference regions are attended to a few at a time; what that computes does not depend on how many."""

import pytest
import torch

from attention_zoo import create, routing


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
