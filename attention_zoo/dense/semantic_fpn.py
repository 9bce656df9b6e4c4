"""Semantic FPN.

Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, arXiv:1901.02446, section 3.1, as mmseg's FPN and
FPNHead in configs/_base_/models/fpn_r50.py: each map of the pyramid is brought to the finest one's size by convolutions
and doublings, and their sum is classified.
Departures from mmseg: BatchNorm, which whoever trains several processes may synchronise. The paper has GroupNorm.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from attention_zoo.dense.layers import ConvNormReLU, Size, area, classifier, named, pyramid_macs, resize, weights_in


class SemanticFPN(nn.Module):
    """Four maps of a backbone to logits on the first one's grid: list of (B, C, h, w) -> (B, num_classes, h0, w0)."""

    def __init__(
        self, channels: Sequence[int], num_classes: int, *, fpn_width: int = 256, width: int = 128, dropout: float = 0.1
    ) -> None:
        """Make a pyramid of `fpn_width` channels and scale heads of `width`."""
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), fpn_width)
        self.scale_heads = nn.ModuleList(_scale_head(level, fpn_width, width) for level in range(len(channels)))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Classify each place of the first map."""
        levels = list(self.fpn(named(maps)).values())
        total = self.scale_heads[0](levels[0])
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            total = total + resize(head(level), total.shape[2:])
        return self.classifier(self.dropout(total))

    def macs(self, sizes: Sequence[Size]) -> int:
        """Multiply-adds on maps of these sizes, in closed form."""
        total = pyramid_macs(self.fpn, sizes) + area(sizes[0]) * weights_in(self.classifier)
        for head, (height, width) in zip(self.scale_heads, sizes, strict=True):
            for conv in (layer for layer in head.children() if isinstance(layer, ConvNormReLU)):
                total += height * width * weights_in(conv)
                height, width = 2 * height, 2 * width
        return total


def _scale_head(level: int, dim_in: int, dim: int) -> nn.Sequential:
    """A convolution for each halving between the first map and this one, doubled after each; one for the first."""
    layers: list[nn.Module] = []
    for step in range(max(1, level)):
        layers.append(ConvNormReLU(dim if step else dim_in, dim, 3))
        if level:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
