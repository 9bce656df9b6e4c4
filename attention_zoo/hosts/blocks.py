"""What the host puts around a token mixer: the residual block, and the steps from one map to the next."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, bias_apart
from attention_zoo.kernels.modes import makes_kernels
from attention_zoo.kernels.remade import not_kept
from attention_zoo.layouts import Layout


def added(y: Tensor, x: Tensor) -> Tensor:
    """Return y + x in y's memory: for a y that no backward pass reads, such as what a convolution returns."""
    # under autocast y is narrower than the residual stream, which must stay as wide as it is
    return y.add_(x) if y.dtype == x.dtype else y + x


class Block(nn.Module):
    """Pre-norm residual block on (B, H, W, C): token mixer, then MLP.

    If the layout says so, a depth-wise convolution before them tells positions, and a learned factor for each channel
    scales both branches. Sums are made in place: a hook that keeps what a layer inside takes or returns must copy it.
    """

    def __init__(self, mixer: Attention, layout: Layout, stage: int, drop_path_rate: float) -> None:
        """Wrap a mixer."""
        dim = layout.dims[stage]
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if layout.position == "convolution" else None
        self.norm1 = nn.LayerNorm(dim, eps=layout.block_norm_eps)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=layout.block_norm_eps)
        hidden = int(dim * layout.mlp_ratio_of(stage))
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = _drop_path(drop_path_rate)
        if layout.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), layout.layer_scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), layout.layer_scale))
        self.is_scaled = layout.layer_scale is not None

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        pos_embed = self.pos_embed
        if pos_embed is not None:
            # summed before it is turned: in place on a view, a backward pass would copy its gradient
            channels_first = x.permute(0, 3, 1, 2)
            x = added(pos_embed(channels_first), channels_first).permute(0, 2, 3, 1)
        tokens = self.attn(self.norm1(x))
        branch = self._dropped(self.gamma1 * tokens if self.is_scaled else tokens)
        # a backward pass reads what was normalised, and without the convolution it is the caller's
        x = x + branch if pos_embed is None or torch.is_grad_enabled() else added(x, branch)
        channels = self._mlp(x)
        return added(self._dropped(self.gamma2 * channels if self.is_scaled else channels), x)

    def _dropped(self, branch: Tensor) -> Tensor:
        """Drop a branch of some images; at rest without a call, which costs more than it seems to at batch 1."""
        return self.drop_path(branch) if self.training else branch

    def _mlp(self, x: Tensor) -> Tensor:
        """Mix channels; a backward pass finds the widest map once, before the activation."""
        widen, activate, narrow = self.mlp
        if makes_kernels():
            return bias_apart(narrow, activate(bias_apart(widen, self.norm2(x))))
        hidden = widen(self.norm2(x))
        channels: Tensor
        if not torch.is_grad_enabled():
            # the widest map of a block twice would leave the cache, and F.gelu, the same binding, has no form in place
            channels = narrow(torch._C._nn.gelu_(hidden))  # type: ignore[attr-defined]
            return channels
        wide = activate(hidden)
        with not_kept((wide, functools.partial(activate, hidden.detach()))):
            channels = narrow(wide)
        return channels

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-adds on one map."""
        weights = sum(layer.weight.numel() for layer in self.mlp if isinstance(layer, nn.Linear))
        weights += 0 if self.pos_embed is None else self.pos_embed.weight.numel()
        return self.attn.macs(height, width) + Macs(host=height * width * weights)


def _drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath  # seconds of import that most cells do not need

    layer: nn.Module = DropPath(rate)
    return layer


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each place on its own."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapGELU(nn.GELU):
    """GELU on a map whose channels are last in memory, (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate it as the contiguous map that it is: for another order of its axes torch has a slower kernel."""
        if makes_kernels():
            # whose own kernel reads any order, and is led astray by this one
            return super().forward(x)
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
            x = F.pixel_unshuffle(self._pad(x), self.stride).permute(0, 2, 3, 1)
            merged: Tensor = self.reduce(self.norm(x))
            return merged.permute(0, 3, 1, 2)
        # normalised before it is padded, so that the padding stays 0
        reduced: Tensor = self.reduce(self._pad(self.norm(x) if self.norm_first else x))
        return reduced if self.norm_first else self.norm(reduced)

    def _pad(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.stride, -x.shape[3] % self.stride
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
            nn.Conv2d(3, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), MapGELU(), nn.Conv2d(dim // 2, dim, 3, 2, 1)
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
