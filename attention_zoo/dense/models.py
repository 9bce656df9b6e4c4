"""Models of the dense tasks: a backbone and a head."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_zoo.base import Macs
from attention_zoo.dense.boxes import Target
from attention_zoo.dense.features import Features, PyramidFeatures
from attention_zoo.dense.layers import resize
from attention_zoo.dense.mask_rcnn import MaskRCNNHead
from attention_zoo.dense.retinanet import FIRST, RetinaNetHead
from attention_zoo.dense.semantic_fpn import SemanticFPN
from attention_zoo.dense.settings import check_head
from attention_zoo.dense.upernet import UPerNet
from attention_zoo.registry import suggest

CLASSES: dict[str, Any] = {
    "semantic_fpn": SemanticFPN,
    "upernet": UPerNet,
    "retinanet": RetinaNetHead,
    "mask_rcnn": MaskRCNNHead,
}
"""Class of each head."""
MOST = 1 << 16
"""Largest width or number of boxes of a head."""


@dataclass(frozen=True)
class DenseMacs:
    """Multiply-adds of one image: of the backbone, by parts, and of the head."""

    backbone: Macs
    head: int

    @property
    def attention(self) -> int:
        """Share of the token mixers, their projections included."""
        return self.backbone.attention

    @property
    def total(self) -> int:
        """All of them."""
        return self.backbone.total + self.head


class DenseModel(nn.Module):
    """A backbone and a head that reads its maps."""

    def __init__(self, backbone: Features, head: Any) -> None:
        """Put both together."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's positions and tables of biases; heads have none."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Recompute each block of the backbone's stages (from 0; None: all) in the backward pass.

        Raises:
            ValueError: no such stage, or the backbone does not know how to.
        """
        self.backbone.set_grad_checkpointing(enable, stages)

    def head_macs(self, height_px: int, width_px: int) -> int:
        """Multiply-adds of the head for one image, in closed form."""
        return int(self.head.macs(self.backbone.sizes(height_px, width_px)))

    def macs(self, height_px: int, width_px: int) -> DenseMacs:
        """Multiply-adds of one image in closed form, backbone and head apart; what runs only while training is not in.

        Raises:
            ValueError: the backbone is a model of timm, which has no closed form.
        """
        if not isinstance(self.backbone, PyramidFeatures):
            raise ValueError("the backbone is a model of timm, of which no closed form is known: count it")
        return DenseMacs(self.backbone.macs(height_px, width_px), self.head_macs(height_px, width_px))

    def counted(self) -> "Counted":
        """Form of the model for counters, sharing its weights; see `Counted`."""
        return ClosedCounted(self) if isinstance(self.backbone, PyramidFeatures) else Counted(self)


class SegmentModel(DenseModel):
    """Images (B, 3, H, W) to logits (B, num_classes, H, W)."""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify each pixel; with an auxiliary head, while training a tuple of its logits and the auxiliary ones."""
        size = images.shape[2:]
        logits = self.head(self.backbone(images))
        if isinstance(logits, tuple):
            return resize(logits[0], size), resize(logits[1], size)
        return resize(logits, size)


class DetectModel(DenseModel):
    """Images (B, 3, H, W) of one canvas, normalised, to boxes of each, and masks where the head has them."""

    def forward(
        self, images: Tensor, targets: Iterable[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        """Return losses by name while training, else a dict for each image; boxes end at the canvas.

        Detections have boxes (N, 4) as x1, y1, x2, y2 in pixels, labels (N,) from 1, scores (N,), and maybe masks
        (N, 1, H, W), shares between 0 and 1. Crowds and boxes without area are left out of the losses.

        Raises:
            ValueError: no targets while training.
        """
        if self.training and targets is None:
            raise ValueError("targets must be given while training; call eval() to detect without")
        return self.head(self.backbone(images), images, targets)


class Counted(nn.Module):
    """The products and convolutions of a forward, as many for any image: what `count_macs` counts, by its two parts.

    Mask R-CNN reads its fixed numbers of boxes and masks; what runs only while training is left out.
    """

    def __init__(self, model: DenseModel) -> None:
        """Share the parts of a model."""
        super().__init__()
        self.backbone = model.backbone
        self.head = _CountedHead(model.head) if hasattr(model.head, "counted") else model.head

    def forward(self, images: Tensor) -> Any:
        """Run backbone and head."""
        return self.head(self.backbone(images))


class _CountedHead(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, maps: list[Tensor]) -> Any:
        return self.whole.counted(maps)


class ClosedCounted(Counted):
    """The same with a closed form to compare."""

    def __init__(self, model: DenseModel) -> None:
        """Share the parts of a model."""
        super().__init__(model)
        # in a tuple, so that it is no module of this one
        self._whole = (model,)

    def macs(self, height_px: int, width_px: int) -> DenseMacs:
        """Closed form of the model."""
        return self._whole[0].macs(height_px, width_px)

    def attention_macs(self, height_px: int, width_px: int) -> int:
        """Share of the token mixers in it."""
        return self.macs(height_px, width_px).attention


def create_dense(task: str, head: str, backbone: Features, num_classes: int, **fields: Any) -> DenseModel:
    """Put a head on a backbone.

    What mechanisms should be set to on the larger maps of a task, `settings.dense_settings(task, attn)` says: bi-level
    routing has 8 regions per side for segmentation and 16 for detection, as published, and the rest stays as it is.

    Args:
        task: `segment`, `detect` or `instance`.
        head: `semantic_fpn` or `upernet`, `retinanet`, `mask_rcnn`.
        backbone: four maps, of `features_of`, `rival_features` or `create_features`.
        num_classes: classes to tell, without what is ignored and without a background.
        fields: other values of the head's own fields, such as `width`, `dropout`, `rois_per_image`.

    Raises:
        ValueError: a head that the task does not have, no classes, an unknown field, or a value below its bound.
    """
    check_head(task, head)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    _check_fields(head, fields)
    more = {"strides": backbone.strides} if "strides" in _parameters(head) else {}
    built = CLASSES[head](backbone.channels, num_classes, **more, **fields)
    if isinstance(built, RetinaNetHead):
        # its pyramid begins later, and DDP waits for the gradient of every weight that takes one
        backbone.norms[:FIRST].requires_grad_(False)
    return (SegmentModel if task == "segment" else DetectModel)(backbone, built)


def head_fields(head: str) -> dict[str, Any]:
    """Fields of a head and their defaults."""
    return {name: value for name, value in _parameters(head).items() if name != "strides"}


def _parameters(head: str) -> dict[str, Any]:
    parameters = inspect.signature(CLASSES[head]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_fields(head: str, fields: dict[str, Any]) -> None:
    known = head_fields(head)
    for name, value in fields.items():
        if name not in known:
            raise ValueError(suggest(f"field of {head}", name, sorted(known)))
        if name == "dropout":
            if not 0 <= value < 1:
                raise ValueError(f"dropout must be at least 0 and below 1, got {value}")
        elif isinstance(known[name], int):
            least = 0 if name == "auxiliary_width" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
                raise ValueError(f"{name} of {head} must be an integer from {least} to {MOST}, got {value!r}")
