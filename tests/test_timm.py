"""The zoo's models in timm's registry: what it lists, features, heads, and settings that reach the model."""

import pytest
import timm
import torch
from conftest import slow_but
from timm_cells import build, images, same_weights
from torch import nn

from attention_zoo import create_model, names, timm_models
from attention_zoo.published.models import PUBLISHED

OURS = {
    **{f"zoo_{name}": {"name": name} for name in PUBLISHED},
    **{f"zoo_stl_{name}": {"name": "stl", "attn": name} for name in names()},
}


def test_timm_lists_all():
    assert set(timm.list_models("zoo_*")) == set(OURS) == set(timm.list_models(module="timm_models"))
    assert set(OURS) <= set(timm_models.__all__) <= set(vars(timm_models))
    assert timm.list_models("zoo_*", pretrained=True) == []


@pytest.mark.parametrize("name", [*(f"zoo_{name}" for name in sorted(PUBLISHED)), "zoo_stl_swin"])
def test_a_name_is_the_model_of_the_zoo(name):
    with torch.device("meta"):
        model, own = timm.create_model(name), create_model(**OURS[name])
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in own.state_dict().items()}
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    assert model.pretrained_cfg["architecture"] == name
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", ["zoo_biformer_tiny", "zoo_stl_swin"])
def test_the_same_seed_gives_the_weights_of_the_zoo(name):
    model = build(name, num_classes=5)
    own = build(OURS[name]["name"], create_model, num_classes=5, attn=OURS[name].get("attn"))
    assert same_weights(model, own)
    assert torch.equal(model(images(64, 64)), own(images(64, 64)))


@pytest.mark.parametrize("name", slow_but(*sorted(OURS)[:4], of=sorted(OURS)))
def test_each_has_features_at_four_strides(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True).eval()
    assert model.model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    dims = model.model.layout.dims
    assert (tuple(model.feature_info.channels()), model.feature_info.reduction()) == (dims, [4, 8, 16, 32])
    maps = model(torch.empty(1, 3, 230, 198, device="meta"))
    sizes = [(58, 50), (29, 25), (15, 13), (8, 7)]
    assert [tuple(map_.shape) for map_ in maps] == [(1, dim, *size) for dim, size in zip(dims, sizes, strict=True)]


def test_features_at_224_px():
    with torch.device("meta"):
        maps = timm.create_model("zoo_biformer_tiny", features_only=True)(torch.empty(1, 3, 224, 224))
    assert [map_.shape[1:] for map_ in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0, 1), (-2,), 2], ids=str)
def test_features_are_what_the_stages_of_a_plain_forward_return(out_indices):
    model = build("zoo_biformer_tiny")
    features = build("zoo_biformer_tiny", features_only=True, out_indices=out_indices)
    stages, x = [], images(70, 58)
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, y: stages.append(y.permute(0, 3, 1, 2)))
    with torch.no_grad():
        model(x)
        found = features(x)
    taken = range(4)[-out_indices:] if isinstance(out_indices, int) else out_indices
    assert len(found) == len(taken)
    for map_, stage in zip(found, taken, strict=True):
        assert torch.equal(map_, stages[stage]) and map_.is_contiguous()
    assert features.feature_info.channels() == [model.layout.dims[stage] for stage in taken]
    needed = max(stage % 4 for stage in taken) + 1
    assert len(features.model.stages) == len(features.model.downsamples) == needed
    assert features.model.get_classifier() is not model.get_classifier()
    assert features.model.macs(64, 64).total < model.macs(64, 64).total


def test_pruning_a_layout_with_positions_keeps_those_it_needs():
    model = create_model("small", attn="vanilla", num_classes=10).eval()
    _, maps = model.forward_intermediates(images(), indices=[1])
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert (len(model.positions), len(model.stages), model.num_features) == (2, 2, 48)
    assert torch.equal(model.forward_intermediates(images(), intermediates_only=True)[-1], maps[0])


def test_hooks_give_features_as_the_stages_have_them():
    getter, hooks = build(features_only=True), build(features_only=True, feature_cls="hook")
    assert hooks.output_fmt == "NHWC"
    for first, second in zip(getter(images()), hooks(images()), strict=True):
        assert torch.equal(first, second.permute(0, 3, 1, 2))


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_intermediates_come_with_the_features(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    x = images()
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x)) and len(maps) == 4
    assert torch.equal(model.forward_head(last), model(x))
    one = model.forward_intermediates(x, indices=[1, -1], output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(one[0], maps[1].permute(0, 2, 3, 1)) and torch.equal(one[1], last)
    early, only = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(early.permute(0, 3, 1, 2), maps[1]) and len(only) == 1
    normed = model.forward_intermediates(x, indices=2, norm=True, intermediates_only=True)
    assert torch.equal(normed[0], maps[2])
    model.set_global_pool("")
    expected = model.forward_head(last, pre_logits=True).permute(0, 3, 1, 2)
    torch.testing.assert_close(normed[1], expected)
    with pytest.raises(ValueError, match="there are 4 stages, 0 to 3; got indices="):
        model.forward_intermediates(x, indices=[4])
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NHWC, got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_forward_is_features_then_head(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    features = model.forward_features(images())
    assert torch.equal(model(images()), model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.num_features) == (1, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(images()))


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_reset_classifier(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
    total = model.macs(32, 32).total
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity) and model.num_classes == 0
    assert torch.equal(model(images()), pooled)
    assert model.macs(32, 32).total == total - 10 * model.num_features
    model.to(torch.bfloat16).reset_classifier(7)
    head = model.get_classifier()
    assert (head.weight.shape, head.weight.dtype) == ((7, model.num_features), torch.bfloat16)
    assert head.weight.float().std().item() == pytest.approx({"stl": 0.02, "small": 0.1}[layout], rel=0.1)
    assert model(images().bfloat16()).shape == (1, 7) and not head.bias.any()
    model.reset_classifier(0, "")
    assert model(images(64, 96).bfloat16()).shape == (1, 2, 3, model.num_features)
    with pytest.raises(ValueError, match="global_pool must be 'avg' or '', got 'max'"):
        model.reset_classifier(3, "max")


def test_what_timm_passes_reaches_the_model():
    model = build(num_classes=0, global_pool="")
    assert (model(images(64, 96)).shape, model.num_classes) == ((1, 2, 3, 768), 0)
    assert build(global_pool="", num_classes=3)(images(64, 96)).shape == (1, 2, 3, 3)
    model = build("zoo_biformer_tiny", drop_path_rate=0.26, num_classes=3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.blocks() for block in stage]
    assert rates == pytest.approx([0.02 * block for block in range(14)])
    assert build("zoo_stl_bra", topk="1-4-16-full").mixers()[1][0].config.topk == 4


def test_dropout_is_ahead_of_the_classifier_in_training_alone():
    model, plain = build(drop_rate=0.5), build()
    assert same_weights(model, plain)
    features = model.forward_features(images(64, 64))
    assert torch.equal(model.forward_head(features), plain.forward_head(features))
    pooled = plain.train().forward_head(features, pre_logits=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = model.train().forward_head(features, pre_logits=True)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * pooled[kept])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"in_chans": 1}, ValueError, "{name} reads images of 3 channels, got in_chans=1"),
        ({"global_pool": "max"}, ValueError, "global_pool must be 'avg' or '', got 'max'"),
        ({"pretrained": True}, ValueError, "{name} has no pretrained weights to download; use pretrained=False"),
        ({"img_size": 64}, ValueError, "img_size"),
        ({"attn": "swin"}, TypeError, "'attn'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["zoo_biformer_tiny", "zoo_stl_swin"])
def test_settings_that_are_refused(name, settings, error, message):
    with pytest.raises(error, match=message.format(name=name)):
        timm.create_model(name, **settings)
