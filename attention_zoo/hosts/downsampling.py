"""The steps of the host from one map to the next: stem, merging, and the norms between."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Macs
from attention_zoo.layouts import Layout


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each place on its own."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def map_norm(layout: Layout, dim: int) -> nn.Module:
    """Make the norm outside the blocks, on (B, C, H, W)."""
    return nn.BatchNorm2d(dim) if layout.norm == "batch" else ChannelNorm(dim, eps=layout.norm_eps)


class CrossScale(nn.Module):
    """Convolutions of several kernels and one stride, their channels side by side (CrossFormer, section 3.1).

    Each further, larger kernel gets half the channels; the last two share alike.
    """

    def __init__(self, dim_in: int, dim: int, kernels: tuple[int, ...], stride: int) -> None:
        """Make the convolutions."""
        super().__init__()
        widths = [dim // 2 ** min(i + 1, len(kernels) - 1) for i in range(len(kernels))]
        self.scales = nn.ModuleList(
            nn.Conv2d(dim_in, width, kernel, stride, (kernel - stride) // 2)
            for kernel, width in zip(kernels, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the channels of all scales."""
        return torch.cat([scale(x) for scale in self.scales], 1)


class Downsample(nn.Module):
    """Stem or merging: (B, C, H, W) to a map of ceil(H / stride) x ceil(W / stride), padded at the bottom/right.

    A layout that rounds down drops the remainder instead.
    """

    def __init__(self, layout: Layout, stage: int) -> None:
        """Make the stem (stage 0), or what merges the map of the stage before."""
        super().__init__()
        stem, dim = stage == 0, layout.dims[stage]
        dim_in = 3 if stem else layout.dims[stage - 1]
        self.stride = layout.stem_px if stem else 2
        # two convolutions that pad themselves round up already; a pixel more would be no zero for the second
        self.completes = layout.rounding == "ceil" and not (stem and layout.stem == "conv3_twice")
        self.rounds_down = layout.rounding == "floor"
        self.concatenates = not stem and layout.merging == "concat_norm_linear"
        self.norm_first = not stem and layout.merging in ("norm_conv2", "norm_multiscale")
        self.norm: nn.Module
        self.reduce: nn.Module
        if self.concatenates:
            self.norm = nn.LayerNorm(4 * dim_in, eps=layout.norm_eps)
            self.reduce = nn.Linear(4 * dim_in, dim, bias=layout.merging_bias)
            return
        is_plain = stem and not layout.stem_norm
        self.norm = nn.Identity() if is_plain else map_norm(layout, dim_in if self.norm_first else dim)
        self.reduce = _stem(layout, dim) if stem else _merging(layout, stage)

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in (a view of a channels-last map is fine), NCHW out, its channels last in memory."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.concatenates:
            # as pixel_unshuffle, which has another shape for no images: (B, C, h, 2, w, 2) -> (B, h, w, C 2 2)
            x = self._pad(x).unflatten(3, (-1, self.stride)).unflatten(2, (-1, self.stride))
            return self.reduce(self.norm(x.permute(0, 2, 4, 1, 3, 5).flatten(3))).permute(0, 3, 1, 2)
        # normalised before it is padded, so that the padding stays 0
        reduced: Tensor = self.reduce(self._pad(self.norm(x) if self.norm_first else x))
        return reduced if self.norm_first else self.norm(reduced)

    def _pad(self, x: Tensor) -> Tensor:
        # without a negative number, whose remainder a compiler with symbolic sizes cannot bound
        bottom, right = ((side + self.stride - 1) // self.stride * self.stride - side for side in x.shape[2:])
        return F.pad(x, (0, right, 0, bottom)) if self.completes and (bottom or right) else x

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-adds for an input of this size."""
        if self.concatenates:
            assert isinstance(self.reduce, nn.Linear)
            height, width = self._reduced(height, self.stride), self._reduced(width, self.stride)
            return Macs(host=height * width * self.reduce.weight.numel())
        total = 0
        for layer in self.reduce.modules():
            if isinstance(layer, nn.Conv2d):
                down, across = (self._reduced(side, layer.stride[0]) for side in (height, width))
                total += down * across * layer.weight.numel()
                if isinstance(self.reduce, nn.Sequential):
                    height, width = down, across
        return Macs(host=total)

    def _reduced(self, side: int, stride: int) -> int:
        return side // stride if self.rounds_down else -(-side // stride)


def _stem(layout: Layout, dim: int) -> nn.Module:
    stride = layout.stem_px
    makers: dict[str, Callable[[], nn.Module]] = {
        "conv4": lambda: nn.Conv2d(3, dim, stride, stride),
        "conv7": lambda: nn.Conv2d(3, dim, 7, stride, 2),
        "conv3_twice": lambda: nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), nn.GELU(), nn.Conv2d(dim // 2, dim, 3, 2, 1)
        ),
        "multiscale": lambda: CrossScale(3, dim, layout.stem_kernels, stride),
    }
    return makers[layout.stem]()


def _merging(layout: Layout, stage: int) -> nn.Module:
    dim_in, dim, bias = layout.dims[stage - 1], layout.dims[stage], layout.merging_bias
    makers: dict[str, Callable[[], nn.Module]] = {
        "norm_conv2": lambda: nn.Conv2d(dim_in, dim, 2, 2, bias=bias),
        "conv2_norm": lambda: nn.Conv2d(dim_in, dim, 2, 2, bias=bias),
        "conv3_norm": lambda: nn.Conv2d(dim_in, dim, 3, 2, 1, bias=bias),
        "norm_multiscale": lambda: CrossScale(dim_in, dim, layout.merging_kernels[stage - 1], 2),
    }
    return makers[layout.merging]()
