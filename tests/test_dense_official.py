"""Checkpoints of BiFormer's dense tasks: names, round trips, and mmseg's heads written from the names."""

import pytest
import torch
import torch.nn.functional as F
from conftest import slow_but
from test_dense_models import NARROW, TASK_OF, images
from torch import Tensor

from attention_zoo.dense import create_dense, create_features
from attention_zoo.dense.official import load_official_dense, to_official_dense

NAMES = {
    "semantic_fpn": {
        "neck.lateral_convs.3.conv.bias": (16,),
        "neck.fpn_convs.0.conv.weight": (16, 16, 3, 3),
        "decode_head.scale_heads.0.0.conv.weight": (8, 16, 3, 3),
        "decode_head.scale_heads.3.4.bn.running_var": (8,),
        "decode_head.conv_seg.bias": (3,),
    },
    "upernet": {
        "decode_head.psp_modules.3.1.conv.weight": (16, 512, 1, 1),
        "decode_head.bottleneck.conv.weight": (16, 512 + 64, 3, 3),
        "decode_head.lateral_convs.2.bn.weight": (16,),
        "decode_head.fpn_convs.2.conv.weight": (16, 16, 3, 3),
        "decode_head.fpn_bottleneck.conv.weight": (16, 64, 3, 3),
        "auxiliary_head.convs.0.conv.weight": (8, 256, 3, 3),
        "auxiliary_head.conv_seg.weight": (3, 8, 1, 1),
    },
    "retinanet": {
        "neck.lateral_convs.0.conv.weight": (16, 128, 1, 1),
        "neck.fpn_convs.3.conv.weight": (16, 512, 3, 3),
        "neck.fpn_convs.4.conv.weight": (16, 16, 3, 3),
        "bbox_head.cls_convs.3.conv.bias": (16,),
        "bbox_head.retina_cls.weight": (9 * 3, 16, 3, 3),
        "bbox_head.retina_reg.weight": (9 * 4, 16, 3, 3),
    },
    "mask_rcnn": {
        "rpn_head.rpn_conv.weight": (16, 16, 3, 3),
        "rpn_head.rpn_cls.weight": (3, 16, 1, 1),
        "rpn_head.rpn_reg.weight": (12, 16, 1, 1),
        "roi_head.bbox_head.shared_fcs.0.weight": (32, 16 * 49),
        "roi_head.bbox_head.fc_cls.weight": (4, 32),
        "roi_head.bbox_head.fc_reg.bias": (3 * 4,),
        "roi_head.mask_head.convs.3.conv.weight": (16, 16, 3, 3),
        "roi_head.mask_head.upsample.weight": (16, 16, 2, 2),
        "roi_head.mask_head.conv_logits.weight": (3, 16, 1, 1),
    },
}
"""Names that mmseg and mmdet give, around BiFormer-T with our narrow heads of three classes."""
BACKBONE = {
    "backbone.extra_norms.3.weight": (512,),
    "backbone.downsample_layers.0.0.weight": (32, 3, 3, 3),
    "backbone.stages.0.1.attn.qkv.qkv.weight": (192, 64),
    "backbone.stages.3.0.attn.proj.bias": (512,),
}


def build(head, name="biformer_tiny", seed=0):
    """A model whose weights, biases and statistics all differ from 0 and from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = create_dense(TASK_OF[head], head, create_features(name), 3, **NARROW[head])
    model.to_empty(device="cpu")
    for name_of, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.random_(100, generator=generator)
        elif name_of.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.uniform_(-0.2, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("head", NARROW)
def test_checkpoints_go_to_and_fro(head):
    state = to_official_dense(build(head, seed=1))
    expected = {**BACKBONE, **NAMES[head]}
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not [name for name in state if name.startswith(("backbone.norm.", "backbone.head."))]
    model = build(head)
    load_official_dense(model, state)
    back = to_official_dense(model)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    given = len(list(model.state_dict()))
    assert len(state) == given


@pytest.mark.parametrize("name", slow_but(of=["biformer_stl", "biformer_stl_nchw", "maxvit_stl"]))
def test_the_other_models_of_that_code_go_to_and_fro(name):
    state, model = to_official_dense(build("semantic_fpn", name, seed=1)), build("semantic_fpn", name)
    load_official_dense(model, state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in to_official_dense(model).items())


def test_the_background_is_first_here_and_last_there():
    state, model = to_official_dense(build("mask_rcnn", seed=1)), build("mask_rcnn")
    load_official_dense(model, state)
    heads = model.head.roi_heads
    scores, boxes, masks = heads.box_predictor.cls_score, heads.box_predictor.bbox_pred, heads.mask_predictor
    assert torch.equal(scores.bias, state["roi_head.bbox_head.fc_cls.bias"][[3, 0, 1, 2]])
    assert torch.equal(boxes.bias[4:], state["roi_head.bbox_head.fc_reg.bias"]) and not boxes.bias[:4].any()
    assert torch.equal(masks.mask_fcn_logits.bias[1:], state["roi_head.mask_head.conv_logits.bias"])


def conv(state, name, x) -> Tensor:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def module(state, name, x) -> Tensor:
    """mmcv's ConvModule with a norm."""
    bn = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(conv(state, f"{name}.conv", x), *bn).relu()


def bilinear(x, like) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def mmseg_semantic_fpn(state, maps):
    laterals = [conv(state, f"neck.lateral_convs.{i}.conv", map_) for i, map_ in enumerate(maps)]
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], laterals[i - 1].shape[2:])
    total = 0
    for i, lateral in enumerate(laterals):
        x = conv(state, f"neck.fpn_convs.{i}.conv", lateral)
        for step in range(max(1, i)):
            x = module(state, f"decode_head.scale_heads.{i}.{2 * step}", x)
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if i else x
        total = total + bilinear(x, laterals[0])
    return conv(state, "decode_head.conv_seg", total)


def mmseg_upernet(state, maps):
    laterals = [module(state, f"decode_head.lateral_convs.{i}", map_) for i, map_ in enumerate(maps[:3])]
    pooled = [
        bilinear(module(state, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(maps[3], side)), maps[3])
        for i, side in enumerate((1, 2, 3, 6))
    ]
    laterals.append(module(state, "decode_head.bottleneck", torch.cat([maps[3], *pooled], 1)))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + bilinear(laterals[i], laterals[i - 1])
    outputs = [module(state, f"decode_head.fpn_convs.{i}", laterals[i]) for i in range(3)] + [laterals[3]]
    fused = module(state, "decode_head.fpn_bottleneck", torch.cat([bilinear(x, outputs[0]) for x in outputs], 1))
    return conv(state, "decode_head.conv_seg", fused)


@pytest.mark.parametrize(("head", "oracle"), [("semantic_fpn", mmseg_semantic_fpn), ("upernet", mmseg_upernet)])
@pytest.mark.parametrize("size", [(64, 96)])
def test_segmentation_computes_what_mmseg_computes(head, oracle, size):
    model = build(head).eval()
    with torch.no_grad():
        x = images(*size)
        maps = model.backbone(x)
        logits = oracle(to_official_dense(model), maps)
        assert logits.std() > 0.01
        torch.testing.assert_close(model.head(maps), logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(x), bilinear(logits, x), atol=1e-5, rtol=1e-5)


def test_what_is_no_checkpoint_of_the_model_is_refused():
    model = build("semantic_fpn")
    state = to_official_dense(model)
    del state["backbone.extra_norms.0.bias"]
    with pytest.raises(ValueError, match=r"biformer_tiny with SemanticFPN: missing: backbone\.extra_norms\.0\.bias"):
        load_official_dense(model, state)
    with torch.device("meta"):
        other = create_dense("segment", "semantic_fpn", create_features("swin_tiny"), 3)
    with pytest.raises(ValueError, match="no dense checkpoints are known of swin_tiny; known: biformer_base"):
        to_official_dense(other)
