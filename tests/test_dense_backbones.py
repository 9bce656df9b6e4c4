"""Backbones of dense tasks: the maps of every mechanism and model, their sizes and regions."""

import pytest
import torch
from conftest import slow_but

from attention_zoo import create_model, names
from attention_zoo.dense import create_dense, create_features, dense_settings, features_of
from attention_zoo.mechanisms.bra import BRA

RIVALS = slow_but("resnet18", "convnext_atto", of=["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])


@pytest.mark.parametrize("attn", slow_but("bra", "dat", of=names()))
@pytest.mark.parametrize("size", slow_but((96, 160), of=[(96, 160), (512, 2048)]))
def test_every_mechanism_is_a_backbone_at_any_size(attn, size):
    with torch.device("meta"):
        backbone = create_features("stl", attn=attn, **dense_settings("segment", attn))
        maps = backbone(torch.zeros(1, 3, *size))
    height, width = size
    assert [tuple(map_.shape) for map_ in maps] == [
        (1, dim, height // stride, width // stride)
        for dim, stride in zip((96, 192, 384, 768), (4, 8, 16, 32), strict=True)
    ]
    assert backbone.macs(*size).total > 0


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_sizes_are_those_of_the_maps_however_a_model_rounds(name):
    backbone = create_features(f"timm:{name}")
    sizes = [tuple(map_.shape[2:]) for map_ in backbone(torch.zeros(1, 3, 75, 107))]
    assert backbone.sizes(75, 107) == sizes
    assert (sizes[0] == (18, 26)) == (name == "convnext_atto")


@pytest.mark.parametrize("name", RIVALS)
def test_models_of_timm_are_backbones(name):
    backbone = create_features(f"timm:{name}")
    maps = backbone(torch.zeros(1, 3, 96, 160))
    assert [tuple(map_.shape[2:]) for map_ in maps] == backbone.sizes(96, 160) == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert tuple(map_.shape[1] for map_ in maps) == backbone.channels
    with pytest.raises(ValueError, match="no closed form"):
        create_dense("segment", "semantic_fpn", backbone, 3).macs(96, 160)


def test_regions_at_dense_sizes_are_the_published_ones():
    assert dense_settings("segment", "bra", topk="1-4-16-full") == {"regions": 8, "topk": "1-4-16-full"}
    assert dense_settings("detect", "bra") == dense_settings("instance", "bra") == {"regions": 16}
    assert dense_settings("segment", "bra", regions=4) == {"regions": 4}
    assert dense_settings("segment", "bra", region_size=8) == {"region_size": 8}
    assert dense_settings("segment", "swin", window=8) == {"window": 8}
    with torch.device("meta"):
        published = create_features("biformer_tiny", regions=16).model
    cuts = [mixer.partition(64, 64) for mixers in published.mixers() for mixer in mixers if isinstance(mixer, BRA)]
    assert {(cut.down, cut.across) for cut in cuts} == {(16, 16)} and len(cuts) == 12


def test_the_classifier_is_dropped():
    model = create_model("small", attn="swin", num_classes=10)
    assert not [
        name for name, _ in features_of(model).named_parameters() if "model.head" in name or "model.norm" in name
    ]
