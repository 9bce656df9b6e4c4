"""The contract, for every registered mechanism in every setting of conftest.py: the checks of `attention_zoo.check`."""

import pytest
import torch
from conftest import Mechanism, subject_of

from attention_zoo.base import attend, softmax_weights
from attention_zoo.check import oracle
from attention_zoo.check.contract import CHECKS
from attention_zoo.check.subject import NotApplicable


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] if check.is_slow else [], id=check.name) for check in CHECKS],
)
def test_the_contract_holds(mechanism, check):
    try:
        check.run(subject_of(mechanism))
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    "check", [oracle.notices_a_dropped_key, oracle.notices_a_shifted_bias], ids=lambda c: c.__name__
)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vanilla", {}),
        ("swin", {"window": 3, "shift": 1}),
        ("maxvit", {"window": 3, "kind": "block", "padding": "official"}),
        ("maxvit", {"window": 3, "kind": "grid"}),
        ("cswin", {"stripe": 2}),
        ("crossformer", {"group": 2, "interval": 3, "kind": "long"}),
        ("bra", {"regions": 3, "topk": 2}),
        ("sliding", {"kernel": 3}),
        ("crisscross", {}),
        ("sep", {"window": 3, "kind": "local"}),
    ],
    ids=str,
)
def test_mistakes_in_the_parts_of_one_masked_softmax_are_looked_for(name, config, check):
    # NotApplicable would skip them in silence
    check(subject_of(Mechanism(name, config)))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vanilla", {}),
        ("swin", {"window": 3}),
        ("swin", {"window": (2, 3)}),
        ("maxvit", {"window": 3, "kind": "block"}),
        ("maxvit", {"window": 3, "kind": "grid"}),
        ("cswin", {"stripe": 3}),
        ("crossformer", {"group": 3, "kind": "short"}),
        ("crossformer", {"group": 2, "interval": 3, "kind": "long"}),
        ("bra", {"regions": 3, "topk": 2}),
        ("bra", {"region_size": 2, "topk": 3}),
        ("sep", {"window": 3, "kind": "local"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(6, 6), (6, 12), (6, 42), (12, 36)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_core_macs_are_the_pairs_that_connectivity_allows(name, config, size):
    subject = subject_of(Mechanism(name, config))
    attention, tokens = subject.build(), size[0] * size[1]
    assert attention.geometry(*size)["pad_ratio"] == 0
    allowed = attention.connectivity(subject.images(size, batch=1)).expand(1, attention.num_heads, tokens, tokens)
    assert attention.macs(*size).core == int(allowed.sum()) * 2 * attention.dim // attention.num_heads


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0)])
def test_a_map_without_tokens_is_refused(small, mechanism, height, width):
    attention, x = small(mechanism.name, 5, 7, **mechanism.config)
    if not type(attention).__module__.startswith("attention_zoo."):
        pytest.skip("a user's class need not refuse it")
    with pytest.raises(ValueError, match=f"needs a token at least, got {height}x{width}"):
        attention(x[:, :height, :width])


def test_a_query_that_may_read_nothing_gets_zero():
    q, k, v = torch.randn(3, 1, 2, 4, 6, dtype=torch.float64).requires_grad_()
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[1] = False
    bias = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    for y in (attend(q, k, v, 0.4, bias[None, None]), softmax_weights(q, k, 0.4, None, allowed) @ v):
        assert torch.equal(y[0, :, 1], torch.zeros(2, 6, dtype=torch.float64))
        gradients = torch.autograd.grad(y.square().sum(), (q, k, v))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert torch.equal(gradients[0][0, :, 1], torch.zeros(2, 6, dtype=torch.float64))
