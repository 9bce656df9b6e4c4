"""`impl` fixes how a mechanism is computed, never what."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import attention_zoo
from attention_zoo import create, create_model
from attention_zoo.kernels.flex import routed_flex_attention
from attention_zoo.kernels.routing import routed_attention


@pytest.mark.parametrize("name", attention_zoo.names())
def test_every_mechanism_has_its_reference(small, name):
    attention, x = small(name, 5, 6)
    slow, _ = small(name, 5, 6, impl="reference")
    slow.load_state_dict(attention.state_dict())
    slow.fast = None
    assert torch.equal(slow(x), attention.reference(x))
    torch.testing.assert_close(slow(x), attention(x))
    assert slow.impl_on(5, 6) == "reference" and attention.impl_on(5, 6) in attention.impls


@pytest.mark.parametrize(
    ("name", "impl", "known"),
    [
        ("swin", "dense", "auto, reference, gather"),
        ("vanilla", "gather", "auto, reference, dense"),
        ("dat", "flex", "auto, reference, gather"),
    ],
)
def test_a_mechanism_refuses_what_it_has_not(name, impl, known):
    with pytest.raises(ValueError, match=rf"impl={impl}: \w+ has {known}"):
        create(name, dim=12, num_heads=2, impl=impl)


def test_one_that_writes_forward_has_no_way_to_its_reference():
    class Own(attention_zoo.Attention):
        def forward(self, x):
            return x

    assert Own(12, 2, Own.Config()).impl_on(4, 4) == "forward"
    with pytest.raises(ValueError, match="impl=reference: Own has auto, forward"):
        Own(12, 2, Own.Config(impl="reference"))


def test_a_model_says_what_ran_in_each_stage():
    slow = create_model("stl", attn="bra", impl="reference")
    assert slow.describe(224, 224)["impl"] == "reference-reference-reference-full"
    model = create_model("stl", attn="bra", impl="gather-dense-auto-full", topk=4)
    assert model.describe(224, 224)["impl"] == "gather-dense-gather-full"
    assert create_model("stl", attn="swin").describe(224, 224)["impl"] == "gather-gather-gather-full"
    assert create_model("stl", attn="vanilla").describe(224, 224)["impl"] == "dense-dense-dense-dense"


def test_flex_says_where_it_does_not_run():
    attention = create("bra", dim=32, num_heads=2, regions=2, topk=1, impl="flex")
    with pytest.raises(ValueError, match="impl=flex computes no gradients on a CPU"):
        attention(torch.randn(1, 4, 4, 32))
    with torch.no_grad(), pytest.raises(ValueError, match="impl=flex computes in 16 or 32 bits, got float64"):
        attention.double()(torch.randn(1, 4, 4, 32).double())
    with pytest.raises(ValueError, match="impl=flex runs on cpu and cuda, not on meta"):
        attention.to("meta")(torch.empty(1, 4, 4, 32, device="meta"))
    with pytest.raises(ValueError, match="no impl=dense or flex"):
        create("bra", dim=32, num_heads=2, impl="flex", soft_routing=True)


def routed(batch, groups, count, tokens, topk, heads, width):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, batch, count, tokens, heads * width)
    return q, k, v, torch.rand(batch, groups, count, count).topk(topk).indices


@pytest.mark.slow  # a compiler runs for each shape
@pytest.mark.parametrize(("tokens", "topk", "groups"), [(64, 1, 1), (16, 4, 1), (4, 16, 1), (6, 2, 4)], ids=str)
def test_flex_reads_the_routed_regions(tokens, topk, groups):
    *parts, routes = routed(2, groups, 20, tokens, topk, 4, 16)
    valid = torch.ones(20, tokens, dtype=torch.bool)
    valid[3, 1:] = False
    with torch.inference_mode():
        for readable in (None, valid):
            expected = routed_attention(*parts, routes, 4, 0.2, valid=readable)
            found = routed_flex_attention(*parts, routes, 4, 0.2, valid=readable)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_flex_is_not_compiled_anew_when_the_routes_change():
    from torch._dynamo.utils import counters

    *parts, routes = routed(1, 1, 9, 8, 2, 2, 16)
    with torch.inference_mode():
        routed_flex_attention(*parts, routes, 2, 0.2)
        graphs = counters["stats"]["unique_graphs"]
        for shift in (1, 2):
            other = (routes + shift) % 9
            found = routed_flex_attention(*parts, other, 2, 0.2)
            torch.testing.assert_close(found, routed_attention(*parts, other, 2, 0.2), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (5, 7)], ids=str)
def test_bra_by_flex_is_bra(size):
    torch.manual_seed(0)
    attention = create("bra", dim=32, num_heads=2, regions=2, topk=2, clip_topk=True, impl="flex").eval()
    x = torch.randn(2, *size, 32)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x), attention.reference(x), rtol=1e-4, atol=1e-5)


def test_a_checkpointed_block_keeps_neither_its_widest_map_nor_what_made_it():
    model = create_model("small", attn="bra", num_classes=10)
    held = []
    for block in model.blocks()[0]:
        block.mlp[0].register_forward_hook(lambda _, __, y: held.append(StorageWeakRef(y.untyped_storage())))
    x = torch.randn(2, 3, 64, 64)
    model(x).sum()
    for is_checkpointed in (False, True):
        held.clear()
        model.set_grad_checkpointing(is_checkpointed)
        loss = model(x).sum()
        assert {ref.expired() for ref in held} == {is_checkpointed}
        loss.backward()


@pytest.mark.parametrize("impl", ["gather", "dense"])
def test_no_images_are_no_error(impl):
    attention = create("bra", dim=12, num_heads=2, regions=2, topk=1, impl=impl)
    with torch.inference_mode():
        assert attention(torch.zeros(0, 4, 6, 12)).shape == (0, 4, 6, 12)


@pytest.mark.slow
def test_flex_takes_more_shapes_than_a_compiler_does_by_itself():
    with torch.inference_mode():
        for batch in range(1, 11):
            *parts, routes = routed(batch, 1, 4, 4, 2, 2, 16)
            found = routed_flex_attention(*parts, routes, 2, 0.2)
            torch.testing.assert_close(found, routed_attention(*parts, routes, 2, 0.2), rtol=1e-5, atol=1e-5)
