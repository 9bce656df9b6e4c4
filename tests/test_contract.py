"""The contract, for every registered mechanism in every setting of conftest.py."""

import copy
import dataclasses
import functools

import pytest
import torch
from conftest import counted, is_one_softmax, reads_padding
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.base import attend, masked_softmax

SIZES = [(6, 12), (5, 7), (7, 4)]  # the first divides most partitions, the others need padding
PADDED = (5, 7)
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


def assert_agrees(evaluate, fast, slow, x):
    """Compare the forward of `fast` with the reference of `slow`, its gradients included."""
    expected, found = evaluate(slow, x, "reference"), evaluate(fast, x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        message = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=message)


@each_size
def test_forward_equals_the_dense_reference(small, evaluate, mechanism, size):
    attention, x = small(mechanism.name, *size, **mechanism.config)
    assert_agrees(evaluate, attention, attention, x)


def test_reference_never_reaches_forward(small, mechanism, monkeypatch):
    attention, x = small(mechanism.name, *PADDED, **mechanism.config)

    def unreachable(self, x):
        raise AssertionError("the oracle called what it judges")

    monkeypatch.setattr(type(attention), "forward", unreachable)
    assert attention.reference(x).shape == x.shape


def a_pair_that_counts(attention, x):
    """A query of the first image and one of the several keys that it reads, so that the key has a share to change."""
    tokens = x.shape[1] * x.shape[2]
    reads = attention.connectivity(x[:1]).expand(1, attention.num_heads, tokens, tokens)[0, 0]
    query = int((reads.sum(1) > 1).nonzero()[0])
    return query, int(reads[query].nonzero()[-1])


def drop_one_key(attention, x):
    query, key = a_pair_that_counts(attention, x)
    connectivity, tokens = attention.connectivity, x.shape[1] * x.shape[2]

    def mutated(x):
        allowed = connectivity(x).expand(len(x), attention.num_heads, tokens, tokens).clone()
        allowed[0, 0, query, key] = False
        return allowed

    attention.connectivity = mutated


def shift_one_bias(attention, x):
    query, key = a_pair_that_counts(attention, x)
    logit_bias, tokens = attention.logit_bias, x.shape[1] * x.shape[2]

    def mutated(height, width):
        bias = logit_bias(height, width)
        bias = x.new_zeros(attention.num_heads, tokens, tokens) if bias is None else bias.clone()
        bias[0, query, key] += 0.1
        return bias

    attention.logit_bias = mutated


def roll_one_query(attention, x):
    query, _ = a_pair_that_counts(attention, x)
    project = attention.project

    def mutated(x):
        q, k, v = project(x)
        q = q.clone()
        q[0, 0, query] = q[0, 0, query].roll(1)
        return q, k, v

    attention.project = mutated


def dividing(small, mechanism):
    """Sizes of maps that the mechanism needs not pad."""
    attention, _ = small(mechanism.name, 6, 6, **mechanism.config)
    sizes = [(6, 6), (6, 12), (6, 42), (9, 18), (12, 36)]
    found = [size for size in sizes if attention.geometry(*size)["pad_ratio"] == 0]
    assert found
    return found


@pytest.mark.parametrize("mutate", [drop_one_key, shift_one_bias, roll_one_query], ids=lambda m: m.__name__)
def test_a_mutated_reference_is_noticed(small, evaluate, mechanism, mutate):
    # where padding is read, connectivity is not asked about the map itself
    size = dividing(small, mechanism)[0] if reads_padding(mechanism) else PADDED
    attention, x = small(mechanism.name, *size, **mechanism.config)
    if not is_one_softmax(attention) and mutate is not roll_one_query:
        pytest.skip("has a reference of its own, which its own tests mutate")
    mutant = copy.deepcopy(attention)
    mutate(mutant, x)
    with pytest.raises(AssertionError, match=r"(?s)output: .*not close"):
        assert_agrees(evaluate, attention, mutant, x)


@each_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_shape_and_dtype_are_kept(small, mechanism, size, dtype):
    attention, x = small(mechanism.name, *size, **mechanism.config)
    exact = attention(x)
    y = attention.to(dtype)(x.to(dtype))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_view_of_a_channels_first_map_gives_the_same(small, mechanism):
    attention, x = small(mechanism.name, *PADDED, **mechanism.config)
    view = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not view.is_contiguous()
    torch.testing.assert_close(attention(view), attention(x), rtol=0, atol=1e-12)


@each_size
def test_connectivity_of_some_queries_is_rows_of_the_whole(small, mechanism, size):
    attention, x = small(mechanism.name, *size, **mechanism.config)
    tokens = size[0] * size[1]
    queries = torch.tensor([tokens - 1, 0, tokens // 2, 0])
    whole, asked = attention.connectivity(x), attention.connectivity(x, queries)
    assert whole.dtype == asked.dtype == torch.bool
    whole = whole.broadcast_to(len(x), attention.num_heads, tokens, tokens)
    asked = asked.broadcast_to(len(x), attention.num_heads, len(queries), tokens)
    assert torch.equal(asked, whole[:, :, queries])
    assert whole.any(-1).all(), "a token of the map reads nothing"


def test_images_of_a_batch_do_not_mix(small, mechanism):
    attention, x = small(mechanism.name, *PADDED, **mechanism.config)
    alone = torch.cat([attention(image[None]) for image in x])
    torch.testing.assert_close(attention(x), alone, rtol=0, atol=1e-12)
    tokens = PADDED[0] * PADDED[1]
    whole = attention.connectivity(x).expand(len(x), -1, tokens, tokens)
    assert torch.equal(whole, torch.cat([attention.connectivity(image[None]) for image in x]).expand_as(whole))


@each_size
def test_runs_on_the_meta_device(small, mechanism, size):
    attention, x = small(mechanism.name, *size, **mechanism.config)
    attention, x = attention.to("meta"), x.to("meta")
    y = attention(x)
    assert (y.shape, y.device.type) == (x.shape, "meta")
    assert attention.connectivity(x).device.type == "meta"
    y.sum().backward()


@each_size
def test_autocast_leaves_output_and_gradients_finite(small, evaluate, mechanism, size):
    attention, x = small(mechanism.name, *size, **mechanism.config)
    attention, x = attention.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = evaluate(attention, x)
    assert all(value.isfinite().all() for value in values.values())


@pytest.mark.parametrize("size", [(6, 42), (5, 7), (14, 9)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_macs_are_those_that_torch_counts(small, mechanism, size):
    attention, x = small(mechanism.name, *size, **counted(mechanism))
    with FlopCounterMode(display=False) as counter:
        attention.to("meta")(x[:1].to("meta"))
    macs = attention.macs(*size)
    assert 2 * macs.total == counter.get_total_flops()  # torch counts 2 FLOPs per MAC
    assert macs.attention == macs.total
    assert all(type(value) is int for value in dataclasses.astuple(macs))


def test_core_macs_are_the_pairs_that_connectivity_allows(small, mechanism):
    attention, _ = small(mechanism.name, 6, 6, **mechanism.config)
    if not is_one_softmax(attention):
        pytest.skip("its keys are not the tokens that connectivity tells of")
    for height, width in dividing(small, mechanism):
        _, x = small(mechanism.name, height, width, **mechanism.config)
        tokens = height * width
        pairs = int(attention.connectivity(x[:1]).expand(1, attention.num_heads, tokens, tokens).sum())
        core = pairs * (attention.qk_dim + attention.dim) // attention.num_heads
        if mechanism.name == "crisscross":
            # a query's own key lies in its row and in its column, and is masked in one of them
            core += tokens * (attention.qk_dim + attention.dim)
        if (height, width) in ((6, 42), (12, 36)) and mechanism.config.get("shift"):
            # a shifted window computes the pairs across the seam too, and masks them
            assert attention.macs(height, width).core > core
        elif not mechanism.config.get("shift"):
            assert attention.macs(height, width).core == core


@each_size
def test_lepe_costs_its_own_macs_and_no_others(small, mechanism, size):
    try:
        attention, _ = small(mechanism.name, *size, **{**mechanism.config, "lepe": True})
    except ValueError as error:
        assert "lepe" in str(error)
        pytest.skip(f"{mechanism.name} carries no LePE: its values are no map")
    on = attention.macs(*size)
    off = small(mechanism.name, *size, **{**mechanism.config, "lepe": False})[0].macs(*size)
    assert on.position > off.position
    assert dataclasses.replace(on, position=off.position) == off


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0)])
def test_a_map_without_tokens_is_refused(small, mechanism, height, width):
    attention, x = small(mechanism.name, *PADDED, **mechanism.config)
    with pytest.raises(ValueError, match=f"needs a token at least, got {height}x{width}"):
        attention(x[:, :height, :width])


def test_a_query_that_may_read_nothing_gets_zero():
    q, k, v = torch.randn(3, 1, 2, 4, 6, dtype=torch.float64).requires_grad_()
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[1] = False
    bias = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    for y in (attend(q, k, v, 0.4, bias[None, None]), masked_softmax(q, k, v, 0.4, None, allowed)):
        assert torch.equal(y[0, :, 1], torch.zeros(2, 6, dtype=torch.float64))
        gradients = torch.autograd.grad(y.square().sum(), (q, k, v))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert torch.equal(gradients[0][0, :, 1], torch.zeros(2, 6, dtype=torch.float64))
