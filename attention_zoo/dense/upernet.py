"""UPerNet.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, arXiv:1807.10221, section 3.1, as mmseg's
UPerHead and FCNHead in configs/_base_/models/upernet_r50.py: the last map is pooled to several sizes and fused,
laterals and a top-down path make a pyramid, and all its maps are fused and classified. While training, an auxiliary
head classifies the third map; its loss has the weight 0.4 there.
Departures from mmseg: BatchNorm, which whoever trains several processes may synchronise. Training needs at least two
images at a time, since the map pooled to one place has a value an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_zoo.dense.layers import ConvNormReLU, Size, area, classifier, resize, weights_in

AUXILIARY_LEVEL = 2
"""Map that the auxiliary head reads, counted from 0: of stride 16."""


class UPerNet(nn.Module):
    """Four maps of a backbone to logits at the stride of the first: list of (B, C, h, w) -> (B, num_classes, h0, w0).

    In training mode a tuple of these and of the auxiliary head's, (B, num_classes, h2, w2).
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        width: int = 512,
        pools: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary_width: int = 256,
    ) -> None:
        """Make a head of `width` channels; without an auxiliary one if its width is 0."""
        super().__init__()
        last = channels[-1]
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNormReLU(last, width, 1)) for side in pools
        )
        self.bottleneck = ConvNormReLU(last + len(pools) * width, width, 3)
        self.laterals = nn.ModuleList(ConvNormReLU(dim, width, 1) for dim in channels[:-1])
        self.outputs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in channels[:-1])
        self.fuse = ConvNormReLU(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, num_classes)
        self.auxiliary = (
            nn.Sequential(
                ConvNormReLU(channels[AUXILIARY_LEVEL], auxiliary_width, 3),
                nn.Dropout2d(dropout),
                classifier(auxiliary_width, num_classes),
            )
            if auxiliary_width
            else None
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Classify each place of the first map, and of the third one while training."""
        logits = self.classifier(self.dropout(self.fused(maps)))
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(maps[AUXILIARY_LEVEL])

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """All levels of the pyramid in one map of the first one's size, (B, width, h0, w0)."""
        *finer, last = maps
        pooled = [resize(pool(last), last.shape[2:]) for pool in self.pools]
        levels = [lateral(map_) for lateral, map_ in zip(self.laterals, finer, strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for level in reversed(range(len(levels) - 1)):
            levels[level] = levels[level] + resize(levels[level + 1], levels[level].shape[2:])
        outputs = [output(level) for output, level in zip(self.outputs, levels[:-1], strict=True)] + levels[-1:]
        return self.fuse(torch.cat([resize(output, outputs[0].shape[2:]) for output in outputs], 1))

    def macs(self, sizes: Sequence[Size]) -> int:
        """Multiply-adds on maps of these sizes, in closed form, without the auxiliary head."""
        total = area(sizes[0]) * weights_in(self.fuse, self.classifier) + area(sizes[-1]) * weights_in(self.bottleneck)
        for pool in self.pools:
            assert isinstance(pool, nn.Sequential) and isinstance(pool[0], nn.AdaptiveAvgPool2d)
            side = pool[0].output_size
            assert isinstance(side, int)
            total += side * side * weights_in(pool)
        for lateral, output, size in zip(self.laterals, self.outputs, sizes[:-1], strict=True):
            total += area(size) * weights_in(lateral, output)
        return total
