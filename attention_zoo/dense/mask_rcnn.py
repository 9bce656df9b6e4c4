"""Mask R-CNN.

He et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870, with a feature pyramid (arXiv:1612.03144), from torchvision's
parts, with the settings of mmdet's configs/_base_/models/mask_rcnn_r50_fpn.py: a pyramid P2 to P5 and P6 by
subsampling, three anchors at each place, 256 anchors and 512 boxes an image to learn from, a box head of two layers of
1,024 and a mask head of four convolutions.
Departures from mmdet 2: RoIAlign takes 2 x 2 samples and no half-pixel shift, the regression losses are smooth L1 with
beta 1 / 9, and the background has weights too, a class more in boxes and masks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from attention_zoo.dense.boxes import RATIOS, Anchors, Target, at_least_float32, on_canvas, to_learn
from attention_zoo.dense.layers import Size, area, halved, named, pyramid_macs, weights_in

SCALES = (8,)
"""Sides of anchors over their level's stride."""
BOX_SIDE, MASK_SIDE = 7, 14
"""Places along each side of what the box head and the mask head read of a region."""


class _Proposals(RPNHead):  # type: ignore[misc]
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [at_least_float32(part) for part in logits], [at_least_float32(part) for part in deltas]


class _Boxes(FastRCNNPredictor):  # type: ignore[misc]
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


class _Masks(MaskRCNNPredictor):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(super().forward(x))


class _Regions(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign of P2 to P5 in float32, in which boxes are: it refuses maps of another type."""

    def __init__(self, side: int) -> None:
        super().__init__(["0", "1", "2", "3"], side, 2)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Size]) -> Tensor:
        dtype = next(iter(x.values())).dtype
        wide = {name: at_least_float32(map_) for name, map_ in x.items()}
        return super().forward(wide, boxes, image_shapes).to(dtype)


class MaskRCNNHead(nn.Module):
    """Maps of a backbone to boxes and masks of `num_classes` classes, `width` channels wide; see `forward`.

    `rois_per_image` boxes are learnt from; an image has at most `proposals` boxes to look at and `masks` detections,
    and it is counted with just as many.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        width: int = 256,
        box_width: int = 1024,
        rois_per_image: int = 512,
        proposals: int = 1000,
        masks: int = 100,
    ) -> None:
        """Make pyramid, proposals and heads; `strides` are those of the backbone's maps, pixels."""
        super().__init__()
        self.proposals, self.masks = proposals, masks
        self.neck = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool())
        self.neck.out_channels = width
        classes = num_classes + 1  # the background is 0
        detector = MaskRCNN(
            self.neck,
            rpn_anchor_generator=Anchors((*strides, 2 * strides[-1]), SCALES),
            rpn_head=_Proposals(width, len(SCALES) * len(RATIOS)),
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=_Regions(BOX_SIDE),
            mask_roi_pool=_Regions(MASK_SIDE),
            box_head=TwoMLPHead(width * BOX_SIDE**2, box_width),
            box_predictor=_Boxes(box_width, classes),
            box_batch_size_per_image=rois_per_image,
            box_detections_per_img=masks,
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
            mask_predictor=_Masks(width, width, classes),
        )
        self.rpn, self.roi_heads = detector.rpn, detector.roi_heads

    def forward(
        self, maps: Sequence[Tensor], images: Tensor, targets: Iterable[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        """Losses by name while training, else boxes, labels (from 1), scores and masks (N, 1, H, W) of each image."""
        canvas = on_canvas(images)
        learnt = to_learn(targets) if self.training and targets is not None else None
        levels = self.neck(named(maps))
        proposals, losses = self.rpn(canvas, levels, learnt)
        found, more_losses = self.roi_heads(levels, proposals, canvas.image_sizes, learnt)
        if self.training:
            return {**losses, **more_losses}
        for detected, size in zip(found, canvas.image_sizes, strict=True):
            detected["masks"] = paste_masks_in_image(detected["masks"], detected["boxes"], size)
        return list(found)

    def counted(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """All products and convolutions of a forward with `proposals` boxes and `masks` masks, whatever is detected."""
        levels = list(self.neck(named(maps)).values())
        logits, deltas = self.rpn.head(levels)
        heads: Any = self.roi_heads
        width = levels[0].shape[1]
        boxes = heads.box_head(levels[0].new_zeros(self.proposals, width, BOX_SIDE, BOX_SIDE))
        masks = heads.mask_head(levels[0].new_zeros(self.masks, width, MASK_SIDE, MASK_SIDE))
        return [*logits, *deltas, *heads.box_predictor(boxes), heads.mask_predictor(masks)]

    def macs(self, sizes: Sequence[Size]) -> int:
        """Multiply-adds on maps of these sizes, in closed form, with `proposals` boxes and `masks` masks."""
        heads: Any = self.roi_heads
        total = pyramid_macs(self.neck, sizes)
        total += sum(map(area, (*sizes, halved(sizes[-1])))) * weights_in(self.rpn.head)
        total += self.proposals * weights_in(heads.box_head, heads.box_predictor)
        predictor = heads.mask_predictor
        # the logits have twice the sides, by the transposed convolution before them
        of_mask = weights_in(heads.mask_head, predictor.conv5_mask) + 4 * weights_in(predictor.mask_fcn_logits)
        return total + self.masks * MASK_SIDE**2 * of_mask
