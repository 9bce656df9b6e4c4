"""Heads of dense tasks: torchvision's whole detectors as an oracle, bad input."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import slow_but
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead

from ablations.values import HEADS as SWEPT
from attention_zoo.dense import HEADS, create_dense, create_features, head_fields
from attention_zoo.dense.boxes import Anchors, on_canvas, to_learn
from attention_zoo.dense.mask_rcnn import SCALES as MASK_SCALES
from attention_zoo.dense.retinanet import SCALES as RETINA_SCALES
from attention_zoo.layouts import STL

TASK_OF = {head: task for task, heads in HEADS.items() for head in heads}
NARROW = {
    "semantic_fpn": {"fpn_width": 16, "width": 8},
    "upernet": {"width": 16, "auxiliary_width": 8},
    "retinanet": {"width": 16},
    "mask_rcnn": {"width": 16, "box_width": 32, "rois_per_image": 32, "proposals": 40, "masks": 5},
}
each_head = pytest.mark.parametrize("head", NARROW)


def build(head, layout="small", classes=3, attn="swin", **fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_dense(TASK_OF[head], head, create_features(layout, attn=attn), classes, **NARROW[head], **fields)


def images(height=64, width=128):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def targets(height=64, width=128):
    """An image with two boxes, one without area and a crowd, and an image without any."""
    full = {
        "boxes": torch.tensor([[4.0, 4, 40, 50], [20, 10, 100, 60], [5, 5, 5, 9], [1, 1, 30, 30]]),
        "labels": torch.tensor([1, 3, 1, 2]),
        "masks": torch.zeros(4, height, width, dtype=torch.bool),
        "iscrowd": torch.tensor([False, False, False, True]),
        "image_id": torch.tensor(7),
    }
    full["masks"][0, 8:40, 8:30] = full["masks"][1, 15:50, 30:80] = True
    none = {name: value[:0] if value.ndim else value for name, value in full.items()}
    return [full, none]


@pytest.mark.parametrize("head", HEADS["segment"])
@pytest.mark.parametrize("size", slow_but((64, 96), of=[(64, 96), (70, 100)]))
def test_logits_have_the_size_of_the_images_and_reach_every_weight(head, size):
    model = build(head)
    logits = model(images(*size))
    auxiliary = logits[1:] if isinstance(logits, tuple) else ()
    assert len(auxiliary) == (head == "upernet")
    parts = logits if isinstance(logits, tuple) else (logits,)
    assert all(part.shape == (2, 3, *size) for part in parts)
    sum(part.square().mean() for part in parts).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert isinstance(model.eval()(images(*size)), torch.Tensor)


def detector_of(model, size):
    """The same network as torchvision builds it: its own forward, resize and normalisation that change nothing."""
    head, classes, height, width = model.head, 3, *size
    neck = head.neck

    class Backbone(torch.nn.Module):
        out_channels = 16

        def __init__(self):
            super().__init__()
            self.features, self.neck = model.backbone, neck

        def forward(self, x):
            maps = self.features(x)
            maps = maps[len(maps) - len(neck.inner_blocks) :]
            return neck({str(level): map_ for level, map_ in enumerate(maps)})

    # sizes are torchvision's, of which it makes rounded anchors; ours are put in
    generator = AnchorGenerator(((32,),) * 5, ((0.5, 1.0, 2.0),) * 5)
    ours = head.rpn.anchor_generator if hasattr(head, "rpn") else head.detector.anchor_generator
    generator.cell_anchors, generator.sizes = ours.cell_anchors, ours.sizes
    same = {"min_size": height, "max_size": width, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    same["_skip_resize"] = True  # while training, where it would draw the size of each image
    if not hasattr(head, "rpn"):
        detector = RetinaNet(
            Backbone(),
            classes,
            anchor_generator=generator,
            detections_per_img=100,
            head=RetinaNetHead(16, 9, 3),
            **same,
        )
        detector.head.load_state_dict(head.detector.head.state_dict())
        return detector
    detector = MaskRCNN(
        Backbone(),
        rpn_anchor_generator=generator,
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=40,
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, classes + 1),
        box_batch_size_per_image=32,
        box_detections_per_img=5,
        mask_head=MaskRCNNHeads(16, (16,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(16, 16, classes + 1),
        **same,
    )
    detector.rpn.load_state_dict(head.rpn.state_dict())
    detector.roi_heads.load_state_dict(head.roi_heads.state_dict())
    return detector


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_detectors_are_those_of_torchvision(head):
    shift = int(head == "retinanet")  # its classes have no background
    model = build(head)
    if shift:
        # as it begins, no score reaches the threshold, and P7 has a ReLU in torchvision alone
        torch.nn.init.zeros_(model.head.detector.head.classification_head.cls_logits.bias)
    oracle = detector_of(model, (64, 128))
    x, truth = images(), to_learn(targets())
    with torch.no_grad():
        torch.manual_seed(3)
        losses = model(x, targets())
        torch.manual_seed(3)
        learnt = [{**target, "labels": target["labels"] - shift} for target in truth]
        torch.testing.assert_close(losses, oracle(list(x), learnt))
        found, expected = model.eval()(x), oracle.eval()(list(x))
    assert all(len(detected["boxes"]) for detected in found)
    for detected, true in zip(found, expected, strict=True):
        torch.testing.assert_close(detected, {**true, "labels": true["labels"] + shift})
        assert detected["boxes"].min() >= 0 and (detected["boxes"].amax(0) <= torch.tensor([128, 64, 128, 64])).all()
        assert set(detected["labels"].tolist()) <= {1, 2, 3}
    if head == "mask_rcnn":
        assert found[0]["masks"].shape == (len(found[0]["boxes"]), 1, 64, 128)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_images_without_boxes_train_and_every_weight_has_a_gradient(head):
    model = build(head)
    for truth in (targets(), [targets()[1]] * 2):
        sum(model(images(), truth).values()).backward()
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learnt)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == (["backbone.norms.0.weight", "backbone.norms.0.bias"] if head == "retinanet" else [])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_losses_and_boxes_are_float32_under_autocast(head):
    model = build(head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images(), targets())
        with torch.no_grad():
            found = model.eval()(images())
    assert {loss.dtype for loss in losses.values()} == {found[0]["boxes"].dtype} == {torch.float32}


def test_crowds_and_boxes_without_area_are_not_learnt():
    full, none = to_learn(targets())
    assert full["boxes"].tolist() == [[4, 4, 40, 50], [20, 10, 100, 60]] and full["labels"].tolist() == [1, 3]
    assert full["masks"].shape == (2, 64, 128) and none["boxes"].shape == (0, 4)


def test_anchors_are_the_published_ones():
    anchors = Anchors((8, 16, 32, 64, 128), RETINA_SCALES)
    first = anchors.cell_anchors[0]
    assert first.shape == (9, 4)
    # octave base 4 at stride 8: an area of 32 x 32, twice as wide as high
    torch.testing.assert_close(
        first[0], 32 / 2 * torch.tensor([-math.sqrt(2), -math.sqrt(0.5), math.sqrt(2), 0.5**0.5])
    )
    sides = first[3:6, 2] - first[3:6, 0]
    torch.testing.assert_close(sides, torch.tensor([32.0, 40.3175, 50.7968]))
    maps = [torch.zeros(1, 1, -(-800 // stride), -(-1280 // stride)) for stride in anchors.strides]
    (found,) = anchors(on_canvas(torch.zeros(1, 3, 800, 1280)), maps)
    assert len(found) == 9 * sum(map_.shape[2] * map_.shape[3] for map_ in maps)
    # the last one stands on the last place of the coarsest map, at stride 128, not at 800 // 7
    assert ((found[-1, :2] + found[-1, 2:]) / 2).tolist() == [9 * 128, 6 * 128]
    assert [cell[1, 2].item() for cell in Anchors((4, 8, 16, 32, 64), MASK_SCALES).cell_anchors] == [
        16,
        32,
        64,
        128,
        256,
    ]


def test_p6_reads_the_backbone_and_p7_reads_p6_without_relu():
    model = build("retinanet")
    extra = model.head.neck.extra_blocks
    assert extra.p6.weight.shape == (16, 192, 3, 3) and extra.p7.weight.shape == (16, 16, 3, 3)
    levels, c5 = [torch.full((1, 16, 2, 2), math.nan)], torch.randn(1, 192, 2, 2)
    found, _ = extra(levels, [c5], ["2"])
    torch.testing.assert_close(found[2], extra.p7(extra.p6(c5)))


def test_each_map_has_a_norm_of_its_own_and_the_next_stage_reads_the_map_itself():
    backbone = create_features("small", attn="swin")
    x = images(64, 64)
    maps = backbone.model.forward_intermediates(x, intermediates_only=True)
    for found, map_, norm in zip(backbone(x), maps, backbone.norms, strict=True):
        mean, variance = map_.mean(1, keepdim=True), map_.var(1, unbiased=False, keepdim=True)
        torch.testing.assert_close(found, (map_ - mean) / (variance + 1e-6).sqrt(), atol=1e-4, rtol=1e-4)
        assert norm.eps == 1e-6
    assert (backbone.channels, backbone.strides) == ((24, 48, 96, 192), (4, 8, 16, 32))
    with torch.device("meta"):
        # as the published code of each has it
        assert [create_features(name).norms[0].eps for name in ("swin_tiny", "biformer_tiny")] == [1e-5, 1e-6]


def test_norm_eval_keeps_statistics():
    narrow = replace(STL, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), head_dim=8)
    backbone = create_features(narrow, attn="swin", norm_eval=True).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images(64, 64))
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    assert backbone.model.stages.training


def test_no_weight_decay_names_parameters():
    model = build("semantic_fpn")
    names_of = dict(model.named_parameters())
    told = model.no_weight_decay()
    assert told <= names_of.keys() and {name.rpartition(".")[2] for name in told} >= {"bias_table"}


def test_a_small_stem_has_smaller_strides_and_anchors():
    with torch.device("meta"):
        model = build("retinanet", layout="small32")
    assert model.backbone.strides == (2, 4, 8, 16)
    assert model.head.detector.anchor_generator.strides == (4, 8, 16, 32, 64)


def test_bad_input_is_one_message():
    with torch.device("meta"):
        backbone = create_features("small", attn="swin")
    for arguments, fields, message in (
        (
            ("segment", "retinanet", backbone, 3),
            {},
            r"task=segment has head=semantic_fpn\|upernet, got head='retinanet'",
        ),
        (("segmentation", "upernet", backbone, 3), {}, "unknown dense task 'segmentation'"),
        (("detect", "retinanet", backbone, 0), {}, "num_classes must be at least 1, got 0"),
        (("detect", "retinanet", backbone, 3), {"widht": 8}, "unknown field of retinanet 'widht'"),
        (
            ("detect", "retinanet", backbone, 3),
            {"width": 0},
            "width of retinanet must be an integer from 1 to 65536, got 0",
        ),
        (("segment", "upernet", backbone, 3), {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            create_dense(*arguments, **fields)
    with pytest.raises(ValueError, match="regions=8: swin_tiny has no mechanism of regions"), torch.device("meta"):
        create_features("swin_tiny", regions=8)
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224 has no maps of strides \(4, 8, 16, 32\)"):
        create_features("timm:vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="targets must be given while training"):
        build("retinanet")(images())
    assert head_fields("mask_rcnn")["rois_per_image"] == 512 and "strides" not in head_fields("mask_rcnn")


def test_sweeps_and_models_have_the_same_heads():
    assert {task: heads for task, heads in SWEPT.items() if heads} == HEADS
