"""The residual block around a token mixer."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs
from attention_zoo.layouts import Layout


class Block(nn.Module):
    """Pre-norm residual block on (B, H, W, C): token mixer, then MLP.

    If the layout says so, a depth-wise convolution before them tells positions, and a learned factor for each channel
    scales both branches.
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
        self.mlp: Any = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = _drop_path(drop_path_rate)
        if layout.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), layout.layer_scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), layout.layer_scale))
        self.is_scaled = layout.layer_scale is not None

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        if self.pos_embed is not None:
            x = x + self.pos_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = self.attn(self.norm1(x))
        x = x + self.drop_path(self.gamma1 * tokens if self.is_scaled else tokens)
        channels = self.mlp(self.norm2(x))
        return x + self.drop_path(self.gamma2 * channels if self.is_scaled else channels)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-adds on one map."""
        weights = sum(layer.weight.numel() for layer in self.mlp.modules() if isinstance(layer, nn.Linear))
        weights += 0 if self.pos_embed is None else self.pos_embed.weight.numel()
        return self.attn.macs(height, width) + Macs(host=height * width * weights)


def _drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath  # seconds of import that most cells do not need

    layer: nn.Module = DropPath(rate)
    return layer
