"""`impl` fixes how a mechanism is computed, never what."""

import pytest
import torch

import attention_zoo
from attention_zoo import create, create_model
from attention_zoo.kernels.flex import flex_attention_along_routes
from attention_zoo.regions import Partition, blank
from attention_zoo.routing import routed_attention


@pytest.mark.parametrize("name", attention_zoo.names())
def test_every_mechanism_has_its_reference(small, name):
    attention, x = small(name, 5, 6)
    slow, _ = small(name, 5, 6, impl="reference")
    slow.load_state_dict(attention.state_dict())
    assert torch.equal(slow(x), attention.reference(x))
    torch.testing.assert_close(slow(x), attention(x))
    assert slow.impl_on(5, 6) == "reference" and attention.impl_on(5, 6) in attention.impls


@pytest.mark.parametrize(
    ("name", "impl", "known"),
    [
        ("swin", "dense", "auto, reference, plain"),
        ("vanilla", "tiles", "auto, reference, plain"),
        ("sliding", "flex", "auto, reference, plain, tiles"),
    ],
)
def test_a_mechanism_refuses_what_it_has_not(name, impl, known):
    with pytest.raises(ValueError, match=rf"impl={impl}: \w+ has {known}"):
        create(name, dim=12, num_heads=2, impl=impl)


@pytest.mark.parametrize(("name", "old", "new"), [("swin", "gather", "plain"), ("vanilla", "dense", "plain")])
def test_names_of_before_still_work(name, old, new):
    assert create(name, dim=12, num_heads=2, impl=old).impl_on(7, 7) == new


def test_a_class_written_with_fast_still_runs():
    class Old(attention_zoo.Attention):
        impls = ("gather", "dense")

        def fast(self, x):
            return self.proj(x)

        def reference(self, x):
            return 2 * x

    old = Old(12, 2, Old.Config())
    x = torch.randn(1, 2, 3, 12)
    assert torch.equal(old(x), old.proj(x)) and old.impl_on(4, 4) == "gather"
    assert torch.equal(Old(12, 2, Old.Config(impl="reference"))(x), 2 * x)


@pytest.mark.parametrize("shape", [(1, 12, 4, 6), (24, 12), (1, 24, 12), (1, 0, 3, 12)], ids=str)
def test_what_is_no_map_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, H, W, C\) of C=12|0x3"):
        create("swin", dim=12, num_heads=2)(torch.zeros(shape))


def test_a_model_says_what_ran_in_each_stage():
    slow = create_model("stl", attn="bra", impl="reference")
    assert slow.describe(224, 224)["impl"] == "reference-reference-reference-full"
    model = create_model("stl", attn="bra", impl="plain-dense-auto-full", topk=4)
    assert model.describe(224, 224)["impl"] == "plain-dense-plain-full"
    assert create_model("stl", attn="swin").describe(224, 224)["impl"] == "plain-plain-plain-full"
    assert create_model("stl", attn="vanilla").describe(224, 224)["impl"] == "plain-plain-plain-plain"


def test_flex_says_where_it_does_not_run():
    attention = create("bra", dim=32, num_heads=2, regions=2, topk=1, impl="flex")
    with pytest.raises(ValueError, match="impl=flex computes no gradients on a CPU"):
        attention(torch.randn(1, 4, 4, 32))
    with torch.no_grad(), pytest.raises(ValueError, match=r"impl=flex.*16 or 32 bits.*float64"):
        attention.double()(torch.randn(1, 4, 4, 32).double())
    with pytest.raises(ValueError, match="impl=flex runs on cpu and cuda, not on meta"):
        attention.to("meta")(torch.empty(1, 4, 4, 32, device="meta"))
    with pytest.raises(ValueError, match="no impl=dense or flex"):
        create("bra", dim=32, num_heads=2, impl="flex", soft_routing=True)


def routed(batch, groups, topk, side=8, heads=2, width=16, size=(8, 8)):
    torch.manual_seed(0)
    cut = Partition.of_size(*size, side, side)
    q, k, v = torch.randn(3, batch, *size, heads * width)
    return q, k, v, torch.rand(batch, groups, cut.count, cut.count).topk(topk).indices, cut, heads, 0.2, False


def by_gather(q, k, v, routes, cut, heads, scale, reads_padding):
    valid = cut.valid(q.device)
    q, k, v = (blank(cut.split(part), valid) for part in (q, k, v))
    return cut.join(routed_attention(q, k, v, routes, heads, scale, valid=None if reads_padding else valid))


@pytest.mark.slow  # a compiler runs for each shape
@pytest.mark.parametrize(
    ("size", "side", "topk", "groups"), [((16, 24), 8, 1, 1), ((16, 24), 4, 4, 1), ((9, 10), 4, 2, 2)], ids=str
)
def test_flex_reads_the_routed_regions(size, side, topk, groups):
    case = routed(2, groups, topk, side, size=size)
    with torch.inference_mode():
        found = flex_attention_along_routes(*case)
    torch.testing.assert_close(found, by_gather(*case), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_flex_is_not_compiled_anew_when_the_routes_change():
    from torch._dynamo.utils import counters

    q, k, v, routes, *rest = routed(1, 1, 2, side=3, size=(9, 9))
    with torch.inference_mode():
        flex_attention_along_routes(q, k, v, routes, *rest)
        graphs = counters["stats"]["unique_graphs"]
        for shift in (1, 2):
            other = (q, k, v, (routes + shift) % 9, *rest)
            torch.testing.assert_close(flex_attention_along_routes(*other), by_gather(*other), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (5, 7)], ids=str)
def test_bra_by_flex_is_bra(size):
    torch.manual_seed(0)
    attention = create("bra", dim=32, num_heads=2, regions=2, topk=2, clip_topk=True, impl="flex").eval()
    x = torch.randn(2, *size, 32)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x), attention.reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["plain", "dense"])
def test_no_images_are_no_error(impl):
    attention = create("bra", dim=12, num_heads=2, regions=2, topk=1, impl=impl)
    with torch.inference_mode():
        assert attention(torch.zeros(0, 4, 6, 12)).shape == (0, 4, 6, 12)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_flex_takes_more_shapes_than_a_compiler_does_by_itself():
    with torch.inference_mode():
        for batch in range(1, 11):
            case = routed(batch, 1, 2, side=4)
            torch.testing.assert_close(flex_attention_along_routes(*case), by_gather(*case), rtol=1e-5, atol=1e-5)
