"""Size and cost of dense models: the papers' tables, and three counters that agree."""

from pathlib import Path

import pytest
import torch
from test_dense_models import NARROW, TASK_OF

from attention_zoo.counting import count_macs
from attention_zoo.dense import create_dense, create_features

ADE20K, COCO = (512, 2048), (800, 1280)


def around_swin(head, classes):
    with torch.device("meta"):
        return create_dense(TASK_OF[head], head, create_features("swin_tiny"), classes)


def millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def of_padding(backbone, height, width):
    """Multiply-adds that Swin's dense code adds: its windows pad their input, and padded tokens are projected."""
    added = 0
    for mixers, size in zip(backbone.model.mixers(), backbone.sizes(height, width), strict=True):
        for mixer in mixers:
            padded = mixer.partition(*size).padded_size
            added += mixer.macs(*padded).total - mixer.macs(*size).total
    return added


def test_upernet_around_swin_is_the_published_one():
    model = around_swin("upernet", 150)
    # arXiv:2103.14030, table 3: 60 M and 945 G at 512 x 2048
    assert millions(model) == 59.941862
    macs = model.macs(*ADE20K)
    assert macs.total == 939_539_892_480 and macs.total / 1e9 == pytest.approx(945, rel=0.01)
    assert (macs.total + of_padding(model.backbone, *ADE20K)) / 1e9 == pytest.approx(945, rel=0.001)
    assert macs.backbone.attention < macs.backbone.total == macs.total - macs.head
    alone = create_dense("segment", "upernet", model.backbone, 150, auxiliary_width=0)
    assert alone.macs(*ADE20K) == macs


def test_mask_rcnn_around_swin_is_the_published_one():
    model = around_swin("mask_rcnn", 80)
    # arXiv:2103.14030, table 2 (b) and its repository: 48 M and 267 G at 800 x 1280
    assert round(millions(model)) == 48
    total = model.macs(*COCO).total
    assert total / 1e9 == pytest.approx(267, rel=0.02)
    padded = total + of_padding(model.backbone, *COCO)
    assert padded / 1e9 == pytest.approx(266.58, abs=0.01)
    assert padded / 1e9 == pytest.approx(267, rel=0.01)
    # what each proposal and each mask adds
    fewer = create_dense("instance", "mask_rcnn", model.backbone, 80, proposals=999, masks=99)
    of_box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * 5 * 81
    of_mask = 14 * 14 * (4 * 9 * 256 * 256 + 4 * 256 * 256) + 28 * 28 * 256 * 81
    assert total - fewer.macs(*COCO).total == of_box + of_mask


def test_semantic_fpn_and_retinanet_around_swin():
    assert millions(around_swin("semantic_fpn", 150)) == pytest.approx(31.9, abs=0.01)
    assert millions(around_swin("retinanet", 80)) == 38.458798


def agree(model, size):
    """Closed form, fvcore and torch, of the backbone, the head and both."""
    counts, macs = count_macs(model.counted(), (1, 3, *size)), model.macs(*size)
    for name, closed in (("", macs.total), ("backbone", macs.backbone.total), ("head", macs.head)):
        assert counts.fvcore[name].total() == counts.torch[name].total() == closed > 0, name
    assert model.counted().macs(*size) == macs
    return counts


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ("mask_rcnn", (64, 96)),
        *(pytest.param(head, (64, 96), marks=pytest.mark.slow) for head in ("semantic_fpn", "upernet", "retinanet")),
        *(pytest.param(head, (70, 100), marks=pytest.mark.slow) for head in NARROW),
    ],
)
def test_three_counters_agree(head, size):
    backbone = create_features("small", attn="swin", impl="plain")
    model = create_dense(TASK_OF[head], head, backbone, 3, **NARROW[head])
    counts = agree(model, size)
    assert not counts.unknown[""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "classes", "size"),
    [("upernet", 150, ADE20K), ("semantic_fpn", 150, ADE20K), ("retinanet", 80, COCO), ("mask_rcnn", 80, COCO)],
)
def test_three_counters_agree_at_the_published_sizes(head, classes, size):
    counts = agree(around_swin(head, classes), size)
    assert not counts.unknown[""]


@pytest.mark.slow
def test_a_head_around_a_model_of_timm_is_counted_by_two():
    with torch.device("meta"):
        model = create_dense("segment", "semantic_fpn", create_features("timm:resnet18"), 3)
    counts = count_macs(model.counted(), (1, 3, 64, 96))
    assert counts.totals[0] == counts.totals[1]
    assert counts.fvcore["head"].total() == model.head_macs(64, 96) and not hasattr(model.counted(), "macs")


def test_the_document_says_what_is_counted():
    document = (Path(__file__).parents[1] / "docs" / "flops.md").read_text()
    table = document.partition("<!-- begin: dense -->")[2].partition("<!-- end: dense -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    for head, size, *numbers in rows:
        model = around_swin(head.strip("`"), 150 if TASK_OF[head.strip("`")] == "segment" else 80)
        height, width = map(int, size.split(" x "))
        macs = model.macs(height, width)
        padded = macs.total + of_padding(model.backbone, height, width)
        expected = [millions(model), *(n / 1e9 for n in (macs.backbone.total, macs.head, macs.total, padded))]
        assert numbers[:5] == [f"{number:.1f}" for number in expected]
    assert len(rows) == len(NARROW)
