"""The shared host around every mechanism."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import slow_but
from timm.layers import DropPath
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import LAYOUTS, create_model, names
from attention_zoo.base import Macs
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.mechanisms.swin import Swin
from attention_zoo.mechanisms.vanilla import Vanilla

each_name = pytest.mark.parametrize("name", names())
layouts = pytest.mark.parametrize("layout", sorted(LAYOUTS))


def build(layout="small", num_classes=10, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(layout, num_classes=num_classes, **config)


def images(height_px, width_px):
    return torch.randn(2, 3, height_px, width_px, generator=torch.Generator().manual_seed(0))


def kinds(model):
    return ["".join("f" if isinstance(mixer, Vanilla) else "m" for mixer in mixers) for mixers in model.mixers()]


def test_stl_with_bra_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        model = create_model("stl", attn="bra")
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_372_552
    macs = create_model("stl", attn="bra", topk="1-4-16-full").macs(224, 224)
    assert round(macs.total / 1e9, 1) == 4.6


@pytest.mark.parametrize("name", slow_but("bra", "dat", "sep", "sliding", of=names()))
@layouts
@pytest.mark.parametrize("size_px", slow_but((33, 47), of=[(32, 64), (33, 47), (64, 96)]))
def test_macs_are_those_that_torch_counts(name, layout, size_px):
    with torch.device("meta"):
        # macs describes the plain way
        model = create_model(layout, attn=name, impl="plain").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *size_px, device="meta"))
    macs = model.macs(*size_px)
    assert 2 * macs.total == counter.get_total_flops()
    assert macs.total == macs.attention + macs.host == sum(vars(macs).values())
    assert model.attention_macs(*size_px) == macs.attention > 0


def test_macs_add_part_by_part():
    parts = Macs(projection=1, core=2, routing=3, position=4, host=5) + Macs(projection=10, host=50)
    assert parts == Macs(projection=11, core=2, routing=3, position=4, host=55)
    assert (parts.attention, parts.total) == (20, 75)


@each_name
@pytest.mark.parametrize("size_px", [(32, 32), (33, 47), (80, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_resolution_gives_finite_logits_and_gradients(name, size_px):
    model = build(attn=name)
    logits = model(images(*size_px))
    assert (logits.shape, logits.dtype) == ((2, 10), torch.float32)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert model.forward_features(images(*size_px)).shape[1:3] == model.layout.maps(*size_px)[-1]


def test_stl_takes_odd_resolutions_too():
    model = build("stl", attn="bra", drop_path_rate=0.1)
    logits = model(images(33, 47))
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_maps_round_up():
    assert LAYOUTS["stl"].maps(33, 47) == [(9, 12), (5, 6), (3, 3), (2, 2)]
    assert LAYOUTS["small"].maps(64, 64) == [(16, 16), (8, 8), (4, 4), (2, 2)]


@layouts
def test_stem_and_merging_pad_with_zeros_at_the_bottom_and_right(layout):
    model = build(layout, attn="vanilla").eval()
    stem, merging = model.downsamples[:2]
    x = images(33, 47)
    stride = LAYOUTS[layout].stem_px
    torch.testing.assert_close(stem(x), stem(F.pad(x, (0, -47 % stride, 0, -33 % stride))))
    feature = torch.randn(2, LAYOUTS[layout].dims[0], 9, 12)
    rows_seen = merging(feature)
    assert rows_seen.shape[2:] == (5, 6)
    # a batch norm ahead of the convolution must not make the padding other than 0
    if layout == "stl":
        merging.norm.running_mean.fill_(3.0)
        padded = F.pad(merging.norm(feature), (0, 0, 0, 1))
        torch.testing.assert_close(merging(feature), merging.reduce(padded))


def test_one_value_leaves_the_last_stage_full():
    assert kinds(build(attn="bra", topk=2)) == ["m", "m", "mm", "f"]
    assert [type(mixers[0]) for mixers in build(attn="swin").mixers()] == [Swin, Swin, Swin, Vanilla]


@pytest.mark.parametrize("topk", ["1-full-8-2", [1, "full", 8, 2]], ids=["text", "list"])
def test_four_values_say_all_stages(topk):
    model = build(attn="bra", topk=topk, clip_topk=True)
    assert kinds(model) == ["m", "f", "mm", "m"]
    assert [mixers[0].config.topk for mixers in model.mixers() if isinstance(mixers[0], BRA)] == [1, 8, 2]


def test_schedules_of_several_fields_meet_in_a_stage():
    model = build(attn="bra", regions="4-3-2-full", topk=2, lepe="off-on-on-on", lepe_kernel="5-3-5-7")
    first, second, third, last = (mixers[0] for mixers in model.mixers())
    assert [mixer.config.regions for mixer in (first, second, third)] == [4, 3, 2]
    assert (first.lepe, second.lepe.kernel_size, third.lepe.kernel_size) == (None, (3, 3), (5, 5))
    assert isinstance(last, Vanilla) and last.lepe.kernel_size == (7, 7)


@pytest.mark.parametrize("lepe", ["on", "off"])
def test_lepe_holds_for_the_full_stage_too(lepe):
    # keys of these are no tokens, so there is no map of values to convolve; the first has a position term of its own
    without = {"axial_deeplab", "dat", "pvt", "sep"} if lepe == "on" else set()
    for name in without:
        with pytest.raises(ValueError, match="lepe"):
            build(attn=name, lepe=lepe)
    for name in set(names()) - without:
        mixers = build(attn=name, lepe=lepe).mixers()
        assert all((mixer.lepe is not None) == (lepe == "on") for stage in mixers for mixer in stage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": [1, 2, 4]}, r"topk takes one value or 4, one per stage; got \[1, 2, 4\]"),
        ({"topk": "1-2-4"}, "topk takes one value or 4, one per stage; got '1-2-4'"),
        ({"topk": "1-2--4"}, "topk takes an integer; got '1-2--4'"),
        ({"topk": "four"}, "topk takes an integer; got 'four'"),
        ({"topk": "full"}, "topk"),
        ({"topk": "1-2-4-all"}, "topk takes an integer; got 'all'"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"topks": 4}, "unknown field of bra 'topks'; did you mean 'topk'[?] known: .*regions"),
        ({"attn": "swn"}, "unknown mechanism 'swn'; did you mean 'swin'[?] known: axial, .*bra, .*vanilla"),
        ({"attn": "swin", "topk": 4}, "unknown field of swin 'topk'; .*known: .*window"),
        (
            {"layout": "smal"},
            "unknown layout 'smal'; did you mean 'small'[?] known: biformer_base, .*small, small32, stl",
        ),
        ({"lepe": "on-on-on-full"}, "full belongs into the schedule of a field of the mechanism, not of LePE"),
        ({"regions": 4, "region_size": 2}, "give one of regions=4 and region_size=2"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_topk_that_does_not_fit_names_the_stage():
    model = build(attn="bra", topk=16)
    message = "stage 2 of small at 64x40 px: topk=16 is above the 12 regions"
    with pytest.raises(ValueError, match=message):
        model.describe(64, 40)
    with pytest.raises(ValueError, match="topk=16 is above the 12 regions"):
        model(images(64, 40))


def test_describe_joins_the_stages_and_weighs_the_padding():
    # maps 10x14, 5x7, 3x4 (two blocks), 2x2
    found = build(attn="bra", topk="1-2-8-full").describe(40, 56)
    padding = (12 * 16 + 6 * 8 + 2 * 3 * 4 + 2 * 2) / (10 * 14 + 5 * 7 + 2 * 3 * 4 + 2 * 2) - 1
    assert found == {
        "impl": "plain-dense-dense-full",
        "regions": "4x4-3x4-3x4-full",
        "region_size": "3x4-2x2-1x1-full",
        "topk_effective": "1-2-8-full",
        "pad_ratio": pytest.approx(padding),
    }
    assert build(attn="vanilla").describe(40, 56) == {"impl": "plain-plain-plain-plain", "pad_ratio": 0.0}
    assert build(attn="swin", window="4-2-2-full").describe(64, 64)["window"] == "4x4-2x2-2x2-full"


def test_notes_say_where_the_alternation_is_cut_short():
    assert build(attn="swin").notes() == ["Swin alternates between blocks; stage 1, 2 of small has too few to show it"]
    with torch.device("meta"):
        assert create_model("stl", attn="swin").notes() == []
    assert build(attn="bra").notes() == build(attn="vanilla").notes() == []


def test_blocks_of_a_stage_alternate():
    with torch.device("meta"):
        model = create_model("stl", attn="swin")
    assert [[mixer.shift for mixer in mixers] for mixers in model.mixers()[:3]] == [[0, 3], [0, 3], [0, 3] * 3]


def test_layouts_regions_and_head_dim_reach_the_mechanism():
    for layout, regions in (("small", 4), ("stl", 7)):
        with torch.device("meta"):
            mixer = create_model(layout, attn="bra").mixers()[1][0]
        assert isinstance(mixer, BRA)
        assert mixer.partition(56, 56).down == regions
        assert mixer.dim // mixer.num_heads == LAYOUTS[layout].head_dim


def test_absolute_positions_are_resampled_to_the_map():
    model = build(attn="vanilla")
    positions = model.positions[0]
    own = torch.zeros(1, 24, 16, 16)
    assert model._position(0, own) is positions
    with torch.no_grad():
        positions.copy_(torch.arange(16.0)[:, None].expand(16, 16))  # grows downwards, the same in each row
    other = model._position(0, torch.zeros(1, 24, 9, 12))[0, 0]
    assert other.shape == (9, 12)
    torch.testing.assert_close(other, other[:, :1].expand(9, 12))
    assert (other[1:, 0] > other[:-1, 0]).all()
    other.sum().backward()
    assert positions.grad.abs().sum() > 0
    assert len(build("stl", attn="vanilla").positions) == 0


def test_positions_change_the_logits():
    model = build(attn="vanilla").eval()
    before = model(images(64, 64))
    with torch.no_grad():
        model.positions[2][:, ::2].add_(1.0)  # not all channels alike, which the norms would take out again
    assert not torch.allclose(model(images(64, 64)), before)


@each_name
def test_the_same_seed_gives_the_same_weights(name):
    first, second = build(attn=name).state_dict(), build(attn=name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        third = create_model("small", attn=name, num_classes=10).state_dict()
    assert not torch.equal(first["head.weight"], third["head.weight"])


def test_initial_weights_have_the_spread_of_the_layout():
    small, stl = build(attn="vanilla"), build("stl", attn="vanilla")
    qkv = "stages.3.0.attn.qkv.weight"
    queries_and_keys, values = small.state_dict()[qkv].split((2 * 192, 192))
    assert values.std().item() == pytest.approx(0.7 * 192**-0.5, rel=0.1)
    assert queries_and_keys.std().item() == pytest.approx(1.05 * 192**-0.5, rel=0.1)
    assert stl.state_dict()[qkv].std().item() == pytest.approx(0.02, rel=0.1)
    assert small.head.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert not small.head.bias.any()


def test_drop_path_grows_with_depth_and_rests_in_eval():
    model = build(attn="vanilla", drop_path_rate=0.4)
    blocks = [block for stage in model.blocks() for block in stage]
    assert isinstance(blocks[0].drop_path, torch.nn.Identity)
    assert all(isinstance(block.drop_path, DropPath) for block in blocks[1:])
    assert [block.drop_path.drop_prob for block in blocks[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    x = images(64, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert torch.equal(model(x), build(attn="vanilla").eval()(x))


@pytest.mark.parametrize("name", slow_but("bra", "dat", "swin", of=names()))
def test_what_a_forward_made_goes_without_the_garbage_collector(name):
    model = build(attn=name).eval()
    x = images(32, 64)
    with torch.inference_mode():
        model.forward_intermediates(x)
        while gc.collect():  # what a finaliser lets go is garbage of the next round
            pass
        gc.disable()
        try:
            found = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
            maps = [weakref.ref(map_) for map_ in found]
            del found
            assert [ref() for ref in maps] == [None] * 4
            assert gc.collect() == 0
        finally:
            gc.enable()
