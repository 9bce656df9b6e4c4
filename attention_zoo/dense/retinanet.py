"""RetinaNet.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002, section 4, from torchvision's parts,
with the settings of mmdet's configs/_base_/models/retinanet_r50_fpn.py: a pyramid from C3, P6 from C5 and P7 from P6 by
convolutions of stride 2, nine anchors at each place, two towers of four convolutions, a sigmoid for each class.
Departures from mmdet: losses are normalised by the anchors with a box of each image and then averaged, as in the paper
and in torchvision (mmdet: by those of the batch). From the paper: no ReLU between P6 and P7, as in mmdet.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from attention_zoo.dense.boxes import Anchors, Target, at_least_float32, on_canvas, to_learn
from attention_zoo.dense.layers import Size, area, halved, named, pyramid_macs, weights_in

FIRST = 1
"""Map that the pyramid begins with, counted from 0: C3, of stride 8."""
SCALES = tuple(4 * 2 ** (third / 3) for third in range(3))
"""Sides of anchors over their level's stride: octave base 4, three scales an octave."""


class P6P7(ExtraFPNBlock):  # type: ignore[misc]
    """Two more levels, from the last map of the backbone (torchvision takes the pyramid's where widths are equal)."""

    def __init__(self, dim_in: int, dim: int) -> None:
        """Make the convolutions."""
        super().__init__()
        self.p6, self.p7 = (nn.Conv2d(width, dim, 3, 2, 1) for width in (dim_in, dim))
        for layer in (self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7."""
        p6 = _halved(self.p6, c[-1])
        return [*p, p6, _halved(self.p7, p6)], [*names, "p6", "p7"]


def _halved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Map at half the size; of one place in float32 on CPUs, where the gradient of weights in bfloat16 is garbage.

    torch 2.14 with oneDNN leaves it as the memory was, for a convolution of stride 2 on one place.
    """
    is_half = x.element_size() < 4 or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or x.shape[-2:] != (1, 1) or not is_half:
        return layer(x)
    bias = layer.bias
    assert bias is not None
    with torch.autocast("cpu", enabled=False):
        y = F.conv2d(x.float(), layer.weight.float(), bias.float(), layer.stride, layer.padding)
    return y.to(x.dtype)


class RetinaNetHead(nn.Module):
    """Maps of a backbone to boxes of `num_classes` classes, `width` channels wide; see `forward`.

    An image keeps at most `detections` boxes.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        width: int = 256,
        detections: int = 100,
    ) -> None:
        """Make pyramid, anchors and towers; `strides` are those of the backbone's maps, pixels."""
        super().__init__()
        levels = (*strides[FIRST:], 2 * strides[-1], 4 * strides[-1])
        neck = FeaturePyramidNetwork(list(channels[FIRST:]), width, P6P7(channels[-1], width))
        neck.out_channels = width
        anchors = Anchors(levels, SCALES)
        self.detector = RetinaNet(neck, num_classes, anchor_generator=anchors, detections_per_img=detections)

    @property
    def neck(self) -> FeaturePyramidNetwork:
        """The pyramid P3 to P7."""
        return self.detector.backbone

    def forward(
        self, maps: Sequence[Tensor], images: Tensor, targets: Iterable[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        """Losses by name while training, else boxes, labels (from 1) and scores of each image."""
        levels = self._levels(maps)
        outputs = {name: at_least_float32(output) for name, output in self.detector.head(levels).items()}
        canvas = on_canvas(images)
        anchors = self.detector.anchor_generator(canvas, levels)
        if self.training:
            assert targets is not None
            # a sigmoid for each class, none for the background
            learnt = [{**target, "labels": target["labels"] - 1} for target in to_learn(targets)]
            losses: dict[str, Tensor] = self.detector.compute_loss(learnt, outputs, anchors)
            return losses
        counts = [len(level_anchors) for level_anchors in self._split(anchors[0], levels)]
        split = {name: list(output.split(counts, 1)) for name, output in outputs.items()}
        of_images = [list(of_image.split(counts)) for of_image in anchors]
        found = self.detector.postprocess_detections(split, of_images, canvas.image_sizes)
        return [{**detected, "labels": detected["labels"] + 1} for detected in found]

    def _levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(self.neck(named(maps[FIRST:])).values())

    def _split(self, anchors: Tensor, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Anchors of an image by level."""
        per_place = self.detector.anchor_generator.num_anchors_per_location()[0]
        return anchors.split([per_place * area((level.shape[2], level.shape[3])) for level in levels])

    def counted(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """All products and convolutions of a forward, whatever is detected."""
        return list(self.detector.head(self._levels(maps)).values())

    def macs(self, sizes: Sequence[Size]) -> int:
        """Multiply-adds on maps of these sizes, in closed form."""
        p6 = halved(sizes[-1])
        p7 = halved(p6)
        extra: P6P7 = self.neck.extra_blocks
        total = (
            pyramid_macs(self.neck, sizes[FIRST:]) + area(p6) * weights_in(extra.p6) + area(p7) * weights_in(extra.p7)
        )
        return total + sum(map(area, (*sizes[FIRST:], p6, p7))) * weights_in(self.detector.head)
