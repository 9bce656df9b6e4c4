"""Classes of published codes and ours: what an argument there is here, and which have no counterpart."""

import pytest
import torch

from attention_zoo import create_model
from attention_zoo.published.classes import counterpart, counterpart_model
from attention_zoo.published.places import Official
from attention_zoo.published.weights import load_official, to_official


def test_a_mask_of_another_map_is_refused():
    attention = create_model("small", attn="swin").mixers()[2][1]
    about = Official("swin.SwinTransformerBlock.attn", (4, 6))
    state = to_official(attention, about)
    load_official(attention, about, state)
    state["attn_mask"] = torch.zeros_like(state["attn_mask"])
    with pytest.raises(ValueError, match="attn_mask belongs to another configuration"):
        load_official(attention, about, state)
    with pytest.raises(ValueError, match="depends on the map: give its size"):
        to_official(attention, Official("swin.SwinTransformerBlock.attn"))
    with pytest.raises(ValueError, match=r"'swin\.Block'.*Swin.*bra\.BiLevel"):
        to_official(attention, Official("swin.Block"))


def mixer(official, size, **ctor):
    return counterpart(official, {"ctor": ctor, "H": size[0], "W": size[1]})


def test_what_the_codes_do_with_unusual_arguments():
    """Facts read off the published sources, each of which a shorter mapping would get wrong."""
    window, about = mixer("dat_v1.ShiftWindowAttention", (7, 14), dim=8, heads=2, window_size=[7, 7], shift_size=4)
    cut = window.partition(7, 14)
    assert (cut.shift_y, cut.shift_x) == (4, 4)  # Swin's code would not shift a side of one window
    assert to_official(window, about)["attn_mask"].shape == (2, 49, 49)

    stripes, about = mixer("cswin.seg.CSWinBlock.attn", (5, 10), dim=24, num_heads=3, split_size=7)
    assert (stripes.num_heads, about.branches) == (2, 2)  # two branches leave an odd head out
    assert [branch.stripes.padded_size for branch in stripes.branches(5, 10)] == [(5, 14), (7, 10)]
    whole, about = mixer("cswin.seg.CSWinBlock.attn", (5, 10), dim=24, num_heads=3, split_size=7, last_stage=True)
    assert (whole.num_heads, about.branches) == (3, 1)
    assert [branch.stripes.padded_size for branch in whole.branches(5, 10)] == [(5, 10), (5, 10)]

    ctor = {"n_heads": 2, "n_head_channels": 4, "n_groups": 1, "stride": 1, "offset_range_factor": 0}
    old, _ = mixer("dat_v1.DAttentionBaseline", (4, 4), **ctor, stage_idx=3)
    new, _ = mixer("dat.DAttentionBaseline", (4, 4), **ctor, ksize=3)
    assert (old.config.offset_range, new.config.offset_range) == ("free", 0.0)
    with torch.no_grad():
        old.offset.point.weight.fill_(100.0)
        q = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
        assert old.points(q).abs().max() > 1
        assert new.points(q).max() == pytest.approx(2 * 3.5 / 3 - 1)  # the reference points themselves, past the edge

    grid, _ = mixer(
        "maxvit.PartitionAttention2d", (16, 20), dim=32, partition_type="grid", grid_size=[8, 4], auto_pad=True
    )
    assert grid.partition(16, 20).padded_size == (16, 24)  # both sides to a multiple of the grid's height
    with pytest.raises(ValueError, match=r"8, 24 columns.* 5 "):
        bad, _ = mixer(
            "maxvit.PartitionAttention2d", (16, 20), dim=32, partition_type="grid", grid_size=[8, 5], auto_pad=True
        )
        bad.partition(16, 20)


SWIN = {"depths": [1], "num_heads": [2], "embed_dim": 8}
BIFORMER = {"depth": [1], "embed_dim": [32], "topks": [1], "head_dim": 16}


@pytest.mark.parametrize(
    ("official", "arguments", "message"),
    [
        ("models.SwinTransformer", {**SWIN, "norm_eps": 1e-3}, "no counterpart of norm_eps=0.001"),
        ("models.SwinTransformer", {**SWIN, "act_layer": "ReLU"}, "no counterpart of act_layer='ReLU'"),
        (
            "models.SwinTransformer",
            {**SWIN, "norm_layer": "BatchNorm2d"},
            "norm_layer='BatchNorm2d' has no counterpart",
        ),
        ("models.BiFormer", {**BIFORMER, "mlp_ratio": 2}, "no counterpart of mlp_ratio=2"),
        ("models.BiFormer", {"depth": [1]}, r"models.BiFormer: .* cannot be read: KeyError\('embed_dim'\)"),
        ("models.Swin", SWIN, "no counterpart of 'models.Swin'; known: models.BiFormer, "),
    ],
    ids=str,
)
def test_an_argument_that_changes_the_output_of_a_model_is_read_or_refused(official, arguments, message):
    with pytest.raises(ValueError, match=message):
        counterpart_model(official, {"ctor": arguments, "H": 64, "W": 64})


def test_what_surrounds_a_mixer_in_its_block_is_moot_for_the_mixer_alone():
    around = {"norm_eps": 1e-3, "norm_layer": "BatchNorm2d", "act_layer": "ReLU", "mlp_ratio": 2.0, "drop_path": 0.1}
    plain, _ = mixer("swin.SwinTransformerBlock.attn", (8, 8), dim=8, num_heads=2, window_size=4)
    within, _ = mixer("swin.SwinTransformerBlock.attn", (8, 8), dim=8, num_heads=2, window_size=4, **around)
    assert (within.window, within.shift) == (plain.window, plain.shift) == ((4, 4), 0)
    moot = {"drop_path_rate": 0.5, "use_checkpoint": True, "norm_layer": "LayerNorm"}
    counterpart_model("models.SwinTransformer", {"ctor": {**SWIN, **moot}, "H": 224, "W": 224})


def test_a_class_that_depends_on_the_map_asks_for_its_size():
    ctor = {"dim": 8, "num_heads": 2}
    with pytest.raises(ValueError, match=r"CSWinBlock\.attn.*H and W"):
        counterpart("cswin.CSWinBlock.attn", {"ctor": ctor})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_type": "linear"}, "group_type='linear' has no counterpart; known: 'constant'"),
        ({"colour": 3}, "no counterpart of colour=3"),
    ],
    ids=str,
)
def test_arguments_without_a_counterpart_are_refused(arguments, message):
    ctor = {"depths": [1], "num_heads": [2], "embed_dim": 32, "merge_size": [], **arguments}
    with pytest.raises(ValueError, match=message):
        counterpart_model("models.CrossFormer", {"ctor": ctor, "H": 32, "W": 32})


def test_hosts_round_as_their_codes_do():
    stl = {"depth": [1] * 4, "embed_dim": [32, 64, 96, 128], "topks": [1, 1, 1, -2], "mlp_ratios": [2, 3, 4, 5]}
    published, _ = counterpart_model("models.BiFormerSTL", {"ctor": stl, "H": 226, "W": 226})
    assert published.layout.maps(226, 200)[2:] == [(14, 12), (7, 6)]
    assert [block.mlp[0].out_features for (block,) in published.blocks()] == [64, 192, 384, 640]
    assert create_model("biformer_stl").layout.maps(226, 200)[2:] == [(15, 13), (8, 7)]
    stem = create_model("biformer_tiny").downsamples[0].eval()
    image = torch.randn(1, 3, 98, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # the two convolutions pad themselves: a further row of pixels would be no zero for the second
        torch.testing.assert_close(stem(image), stem.norm(stem.reduce(image)))
        assert stem(image).shape[2:] == (25, 25)


def test_sides_of_an_image_may_differ():
    ctor = {
        "img_size": [64, 96],
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_classes": 3,
    }
    model, about = counterpart_model("models.SwinTransformer", {"ctor": ctor, "H": 64, "W": 96})
    load_official(model, about, to_official(model, about))
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 3)
