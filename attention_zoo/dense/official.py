"""BiFormer's checkpoints of segmentation and detection under our names, and back (rayleizhu/BiFormer).

Their backbone lies under `backbone.`, with the classifier's last norm left out and `extra_norms` on the maps
(semantic_segmentation/models_mm/biformer_mm.py, object_detection/models_mm/biformer_mm.py); neck and heads have the
names of mmseg 0.x (FPN, FPNHead, UPerHead, FCNHead) and mmdet 2.x (FPN, RetinaHead, RPNHead, Shared2FCBBoxHead,
FCNMaskHead).
mmdet counts the background last among the scores of boxes and has no boxes or masks of it; here it is first everywhere,
and its boxes and masks, which nothing reads, are 0.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from attention_zoo.dense.features import PyramidFeatures
from attention_zoo.dense.mask_rcnn import MaskRCNNHead
from attention_zoo.dense.models import DenseModel
from attention_zoo.dense.retinanet import RetinaNetHead
from attention_zoo.dense.semantic_fpn import SemanticFPN
from attention_zoo.dense.upernet import UPerNet
from attention_zoo.published.classes import MODELS
from attention_zoo.published.models import PUBLISHED
from attention_zoo.published.places import Place, same, under
from attention_zoo.published.weights import State, load_places, official_state

CLASSES = ("models.BiFormer", "models.BiFormerSTL", "models.nchwBiFormerSTL", "models.MaxViTSTL")
"""Official classes of that repository, whose dense forms all have `extra_norms`."""
BOX = 4
"""Numbers of a box."""


def load_official_dense(model: DenseModel, state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into a model around a published one, strictly; `state` is what lies in `state_dict`.

    Raises:
        ValueError: no names are known of this backbone, or names that are unknown, missing or mis-shaped.
    """
    load_places(model, _describe(model), list(places_of_dense(model)), state)


def to_official_dense(model: DenseModel) -> State:
    """Return a model's weights under their official names; those of boxes and masks of the background have none.

    Raises:
        ValueError: no names are known of this backbone.
    """
    return official_state(model, list(places_of_dense(model)))


def places_of_dense(model: DenseModel) -> Iterator[Place]:
    """List where each tensor of a dense checkpoint lives.

    Raises:
        ValueError: no names are known of this backbone.
    """
    features = model.backbone
    name = features.model.layout.name if isinstance(features, PyramidFeatures) else "a model of timm"
    official = PUBLISHED[name].official if name in PUBLISHED else None
    if official not in CLASSES or not isinstance(features, PyramidFeatures):
        known = sorted(published for published in PUBLISHED if PUBLISHED[published].official in CLASSES)
        raise ValueError(f"no dense checkpoints are known of {name}; known: {', '.join(known)}")
    yield from under(MODELS[official].places(features.model), "backbone.", "backbone.model.")
    yield from same(features.norms, "backbone.extra_norms", "backbone.norms")
    yield from under(HEADS[type(model.head)](model.head), "", "head.")


def _describe(model: DenseModel) -> str:
    backbone: Any = model.backbone
    return f"{backbone.model.layout.name} with {type(model.head).__name__}"


def _neck(fpn: Any, extra: dict[str, str], ours: str) -> Iterator[Place]:
    """Mmseg's and mmdet's FPN; `extra` levels are further convolutions there."""
    count = len(fpn.inner_blocks)
    for level in range(count):
        for official, part in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks")):
            layer = fpn.get_submodule(part)[level][0]
            yield from same(layer, f"neck.{official}.{level}.conv", f"{ours}.{part}.{level}.0")
    for level, name in enumerate(extra.values(), start=count):
        layer = fpn.extra_blocks.get_submodule(name)
        yield from same(layer, f"neck.fpn_convs.{level}.conv", f"{ours}.extra_blocks.{name}")


def _semantic_fpn(head: SemanticFPN) -> Iterator[Place]:
    yield from _neck(head.fpn, {}, "fpn")
    yield from same(head.scale_heads, "decode_head.scale_heads", "scale_heads")
    yield from same(head.classifier, "decode_head.conv_seg", "classifier")


def _upernet(head: UPerNet) -> Iterator[Place]:
    names = {
        "pools": "psp_modules",
        "bottleneck": "bottleneck",
        "laterals": "lateral_convs",
        "outputs": "fpn_convs",
        "fuse": "fpn_bottleneck",
        "classifier": "conv_seg",
    }
    for ours, official in names.items():
        yield from same(head.get_submodule(ours), f"decode_head.{official}", ours)
    if head.auxiliary is not None:
        yield from same(head.auxiliary[0], "auxiliary_head.convs.0", "auxiliary.0")
        yield from same(head.auxiliary[2], "auxiliary_head.conv_seg", "auxiliary.2")


def _retinanet(head: RetinaNetHead) -> Iterator[Place]:
    yield from _neck(head.neck, {"P6": "p6", "P7": "p7"}, "detector.backbone")
    towers = (("cls_convs", "classification_head"), ("reg_convs", "regression_head"))
    outputs = (("retina_cls", "cls_logits"), ("retina_reg", "bbox_reg"))
    for (official, part), (official_output, output) in zip(towers, outputs, strict=True):
        tower, ours = head.detector.head.get_submodule(part), f"detector.head.{part}"
        for index, layer in enumerate(tower.conv):
            yield from same(layer[0], f"bbox_head.{official}.{index}.conv", f"{ours}.conv.{index}.0")
        yield from same(tower.get_submodule(output), f"bbox_head.{official_output}", f"{ours}.{output}")


def _mask_rcnn(head: MaskRCNNHead) -> Iterator[Place]:
    yield from _neck(head.neck, {}, "neck")
    heads: Any = head.roi_heads
    rpn = {"rpn_conv": "conv.0.0", "rpn_cls": "cls_logits", "rpn_reg": "bbox_pred"}
    for official, part in rpn.items():
        yield from same(head.rpn.head.get_submodule(part), f"rpn_head.{official}", f"rpn.head.{part}")
    for index, part in enumerate(("fc6", "fc7")):
        layer = heads.box_head.get_submodule(part)
        yield from same(layer, f"roi_head.bbox_head.shared_fcs.{index}", f"roi_heads.box_head.{part}")
    for index, block in enumerate(heads.mask_head):
        yield from same(block[0], f"roi_head.mask_head.convs.{index}.conv", f"roi_heads.mask_head.{index}.0")
    upsample = heads.mask_predictor.conv5_mask
    yield from same(upsample, "roi_head.mask_head.upsample", "roi_heads.mask_predictor.conv5_mask")
    classes: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "bbox_head.fc_cls": ("box_predictor.cls_score", lambda t: t.roll(1, 0), lambda t: t.roll(-1, 0)),
        "bbox_head.fc_reg": ("box_predictor.bbox_pred", lambda t: _after_zeros(t, BOX), lambda t: t[BOX:]),
        "mask_head.conv_logits": ("mask_predictor.mask_fcn_logits", lambda t: _after_zeros(t, 1), lambda t: t[1:]),
    }
    for official, (part, to_ours, to_official) in classes.items():
        for name in ("weight", "bias"):
            yield Place(
                (f"roi_head.{official}.{name}",),
                f"roi_heads.{part}.{name}",
                lambda tensors, to_ours=to_ours: to_ours(tensors[0]),  # type: ignore[misc]
                lambda tensor, to_official=to_official: [to_official(tensor)],  # type: ignore[misc]
            )


def _after_zeros(rows: Tensor, count: int) -> Tensor:
    """Rows after as many of zeros, the background's."""
    return torch.cat([rows.new_zeros(count, *rows.shape[1:]), rows])


HEADS: dict[type, Callable[[Any], Iterator[Place]]] = {
    SemanticFPN: _semantic_fpn,
    UPerNet: _upernet,
    RetinaNetHead: _retinanet,
    MaskRCNNHead: _mask_rcnn,
}
"""Where the tensors of each head live."""
