"""Layers that the dense heads share, and their multiply-adds."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

Size = tuple[int, int]
"""Height and width of a map, tokens."""


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU, as mmcv's ConvModule; `kernel` is odd and the map keeps its size."""

    def __init__(self, dim_in: int, dim: int, kernel: int) -> None:
        """Make the three."""
        conv = nn.Conv2d(dim_in, dim, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(dim), relu=nn.ReLU()))


def classifier(dim: int, num_classes: int) -> nn.Conv2d:
    """Make the 1 x 1 convolution that ends a head of segmentation, initialised as mmseg's."""
    layer = nn.Conv2d(dim, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def named(maps: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
    """Maps under the names 0, 1, ... that torchvision gives them."""
    return OrderedDict((str(level), map_) for level, map_ in enumerate(maps))


def weights_in(*modules: nn.Module) -> int:
    """Multiply-adds of each place of a map: elements of the weights of convolutions and linear layers."""
    layers = (layer for module in modules for layer in module.modules())
    return sum(
        layer.weight.numel() for layer in layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    )


def area(size: Size) -> int:
    """Places of a map."""
    return size[0] * size[1]


def halved(size: Size) -> Size:
    """Size of a map after a stride of 2, which rounds up."""
    return -(-size[0] // 2), -(-size[1] // 2)


def pyramid_macs(fpn: FeaturePyramidNetwork, sizes: Sequence[Size]) -> int:
    """Multiply-adds of a feature pyramid network on maps of these sizes; what it adds below them is not in it."""
    levels = zip(fpn.inner_blocks, fpn.layer_blocks, sizes, strict=True)
    return sum(area(size) * weights_in(lateral, output) for lateral, output, size in levels)
