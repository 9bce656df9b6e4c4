"""BiFormer step by step as its paper writes it: the plain computation that ours is compared with.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810, algorithm 1
and figure 2, computed literally: the map is copied into regions and projected there, keys and values are expanded to
one copy for each region of queries and gathered along the routes, products and softmax are separate, and the residual
stream changes between NCHW and NHWC in every block. It stands for the code of the paper, which is not ours to ship;
`report.py` compares with it only where its speed beside a public model is the published code's.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class RoutedAttention(nn.Module):
    """Bi-level routing attention, (B, H, W, C) -> same.

    A map that `regions` per side do not divide is padded with zeros, which are read like any token, and cropped again.
    """

    def __init__(self, dim: int, num_heads: int, regions: int, topk: int) -> None:
        super().__init__()
        self.num_heads, self.regions, self.topk = num_heads, regions, topk
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        own_height, own_width = x.shape[1:3]
        bottom, right = -own_height % self.regions, -own_width % self.regions
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        batch, height, width, dim = x.shape
        side, heads, topk = self.regions, self.num_heads, self.topk
        rows, cols, count = height // side, width // side, side * side
        tokens = rows * cols

        # input: patchify (H, W, C) -> (S^2, HW/S^2, C), then project
        x = x.reshape(batch, side, rows, side, cols, dim).transpose(2, 3).reshape(batch, count, tokens, dim)
        q, kv = self.qkv(x).split((dim, 2 * dim), dim=-1)

        # region-to-region routing: means, adjacency, top-k
        mean_q, mean_k = q.detach().mean(2), kv[..., :dim].detach().mean(2)
        adjacency = (mean_q * self.scale) @ mean_k.transpose(1, 2)
        routes = adjacency.topk(topk, dim=-1).indices  # (B, R, K)

        v_map = kv[..., dim:].reshape(batch, side, side, rows, cols, dim).permute(0, 5, 1, 3, 2, 4)
        lepe = self.lepe(v_map.reshape(batch, dim, height, width))

        # gather keys and values: every region of queries has its own view of all regions to choose from
        views = kv[:, None].expand(-1, count, -1, -1, -1)  # (B, R, R, T, 2C)
        chosen = views.gather(2, routes[..., None, None].expand(-1, -1, -1, tokens, 2 * dim))
        k, v = chosen.reshape(batch * count, topk * tokens, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
        q = q.reshape(batch * count, tokens, heads, dim // heads).transpose(1, 2)

        # token-to-token attention
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        y = weights @ v

        y = y.reshape(batch, side, side, heads, rows, cols, dim // heads).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(batch, height, width, dim) + lepe.permute(0, 2, 3, 1)
        projected: Tensor = self.proj(y)
        return projected[:, :own_height, :own_width].contiguous()


class FullAttention(nn.Module):
    """Attention of the last stage: all tokens, and LePE of the layer's input."""

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        lepe = self.lepe(x.permute(0, 3, 1, 2))
        q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (dim // self.num_heads) ** -0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, height, width, dim)
        projected: Tensor = self.proj(y + lepe.permute(0, 2, 3, 1))
        return projected


class PaperBlock(nn.Module):
    """(B, C, H, W) -> same: depth-wise convolution, attention and MLP, each on a residual branch."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x.permute(0, 2, 3, 1)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.permute(0, 3, 1, 2)


class PaperBiFormer(nn.Module):
    """BiFormer, (B, 3, height_px, width_px) -> (B, num_classes); arguments as those of the published model.

    Weights are named as in our model of the same arguments, whose state dict it loads.
    """

    def __init__(
        self,
        depth: Sequence[int],
        embed_dim: Sequence[int],
        mlp_ratios: Sequence[float],
        topks: Sequence[int],
        n_win: int,
        head_dim: int,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        half = embed_dim[0] // 2
        halve = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
        stem = nn.Sequential(halve(3, half), nn.BatchNorm2d(half), nn.GELU(), halve(half, embed_dim[0]))
        convolutions = [stem, *(halve(*dims) for dims in pairwise(embed_dim))]
        self.downsamples = nn.ModuleList(Halving(*step) for step in zip(convolutions, embed_dim, strict=True))
        self.stages = nn.ModuleList()
        for dim, blocks, ratio, topk in zip(embed_dim, depth, mlp_ratios, topks, strict=True):
            mixers = (
                RoutedAttention(dim, dim // head_dim, n_win, topk) if topk > 0 else FullAttention(dim)
                for _ in range(blocks)
            )
            self.stages.append(nn.Sequential(*(PaperBlock(dim, mixer, ratio) for mixer in mixers)))
        self.norm = nn.BatchNorm2d(embed_dim[-1])
        self.head = nn.Linear(embed_dim[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, blocks in zip(self.downsamples, self.stages, strict=True):
            x = blocks(downsample(x))
        logits: Tensor = self.head(self.norm(x).flatten(2).mean(-1))
        return logits


class Halving(nn.Module):
    """(B, C, H, W) -> (B, dim, height, width) of a coarser map: convolutions, then a norm."""

    def __init__(self, reduce: nn.Module, dim: int) -> None:
        super().__init__()
        self.reduce, self.norm = reduce, nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.reduce(x))
        return y


def paper_model() -> PaperBiFormer:
    """Build BiFormer-Tiny in the steps of the paper."""
    return PaperBiFormer(
        depth=(2, 2, 8, 2),
        embed_dim=(64, 128, 256, 512),
        mlp_ratios=(3,) * 4,
        topks=(1, 4, 16, -2),
        n_win=7,
        head_dim=32,
    )
