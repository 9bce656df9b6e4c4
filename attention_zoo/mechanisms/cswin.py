"""Cross-shaped window attention (CSWin).

Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", CVPR 2022,
arXiv:2107.00652, section 3.2. Half of the heads attend inside vertical stripes of the full height, the others inside
horizontal stripes of the full width; their union is a cross. LePE, a depth-wise convolution of v, is cut at the
stripe's border, as in the paper's code (eq. 10 leaves that open). A stripe as wide as the map is full attention: the
last stage.
Paper -> here:  sw -> stripe.
Departures: an odd number of heads gives its odd one to the vertical stripes (the paper's are even). On a map that does
not divide, padded tokens are masked (`padding="official"` is the segmentation code: zeros after the projection, on both
sides, read like any token).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs, bias_apart
from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.caching import holds_values
from attention_zoo.kernels.packed import packed_attention
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import (
    PartitionConfig,
    attend_in_regions,
    check_padding,
    padded_places,
    same_region,
    softmax_with_zeros,
)
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class CSWinConfig(PartitionConfig):
    """LePE of 3 x 3, as published; inside a pyramid, the layout's stripes (1-2-7-7 as published)."""

    stripe: int | None = field(
        default=None, metadata={"help": "width of a stripe, tokens; default: the layout's, or 7"}
    )
    clip_stripe: bool = field(default=False, metadata={"help": "on a small map use one stripe if stripe is wider"})
    lepe: bool = field(default=True, metadata={"help": "depth-wise convolution of v inside each stripe (LePE)"})
    lepe_kernel: int = field(default=3, metadata={"help": "side of the LePE kernel, tokens, odd"})

    official_side: ClassVar[str] = "center"
    official_moment: ClassVar[str] = "projected"

    def __post_init__(self) -> None:
        """Reject widths that no map could make right.

        Raises:
            ValueError: a stripe below 1, padding of the input (each branch pads another way).
        """
        super().__post_init__()
        if self.pad_moment == "input":
            raise ValueError(
                "pad_moment must be projected for stripes, whose two directions pad differently; got input"
            )
        if self.stripe is not None and self.stripe < 1:
            raise ValueError(f"stripe must be at least 1, got {self.stripe}")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's stripe unless one is set; it may be wider than the map of a low resolution."""
        if self.stripe is not None:
            return self
        return self.replace(stripe=layout.stripes[stage], clip_stripe=True)


@dataclass(frozen=True)
class Branch:
    """One direction of stripes, and the channels and heads that it owns."""

    cut: Partition
    heads: slice
    channels: slice


@register("cswin")
class CSWin(Attention):
    """Stripes down and across on half the heads each. Cost: 4 N C^2 + sw (H + W) N C MACs (section 3.2), and LePE."""

    Config: ClassVar[type[AttentionConfig]] = CSWinConfig
    impls: ClassVar[tuple[str, ...]] = ("gather",)

    def __init__(self, dim: int, num_heads: int, config: CSWinConfig) -> None:
        """Only the shared projections and LePE, each branch using its own channels of them."""
        super().__init__(dim, num_heads, config)
        self.config = config

    def branches(self, height: int, width: int) -> Iterator[Branch]:
        """Vertical stripes on the first heads, horizontal ones on the others.

        Raises:
            ValueError: a stripe is wider than the map and may not be clipped, or the map needs padding that is refused.
        """
        stripe = self.config.stripe or 7
        # the segmentation code pads a side that is shorter than a stripe
        fills = self.config.pad_rule == "projected" and not self.config.clip_stripe
        across, down = (stripe, stripe) if fills else (min(stripe, width), min(stripe, height))
        is_wider = self.config.stripe is not None and stripe > max(height, width)
        if is_wider and not fills and not self.config.clip_stripe:
            raise ValueError(f"stripe={stripe} is wider than a {height}x{width} map; lower it, or allow clip_stripe")
        vertical, head_dim = (self.num_heads + 1) // 2, self.dim // self.num_heads
        for sides, heads in (
            ((height, across), (0, vertical)),
            ((down, width), (vertical, self.num_heads)),
        ):
            if heads[0] < heads[1]:
                cut = Partition.of_size(height, width, *sides, centred=self.config.is_centred)
                check_padding(cut, self.config.pad_rule)
                yield Branch(cut, slice(*heads), slice(heads[0] * head_dim, heads[1] * head_dim))

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens inside stripes: (B, H, W, C) -> same."""
        branches = list(self.branches(*x.shape[1:3]))
        is_padded = any(branch.cut.is_padded for branch in branches)
        if is_padded or torch.compiler.is_compiling() or not holds_values(x):
            qkv = self.qkv(x).unflatten(-1, (3, self.dim))
            mixed = torch.cat([self._mix(qkv[..., branch.channels], branch) for branch in branches], -1)
        else:
            mixed = torch.cat([self._mix_in_stripes(x, branch) for branch in branches], -1)
        return bias_apart(self.proj, mixed)

    def _mix_in_stripes(self, x: Tensor, branch: Branch) -> Tensor:
        """Values of one branch with their LePE, cut into stripes before it is projected."""
        weight, bias = self.qkv.weight, self.qkv.bias
        weight = weight.unflatten(0, (3, -1))[:, branch.channels].flatten(0, 1)
        bias = None if bias is None else bias.unflatten(0, (3, -1))[:, branch.channels].flatten()
        qkv = F.linear(branch.cut.split(x), weight, bias)
        return branch.cut.join(self._stripes(qkv, branch).unflatten(0, (x.shape[0], -1)))

    def _stripes(self, qkv: Tensor, branch: Branch) -> Tensor:
        """Mix whole stripes of one branch: (B, R, T, 3 C') -> (B R, T, C')."""
        cut, heads = branch.cut, branch.heads.stop - branch.heads.start
        stripes = qkv.reshape(-1, cut.tokens, 3, heads, self.dim // self.num_heads)
        y = packed_attention(stripes, self.scale, None, (stripes.shape[0],)).flatten(2)
        if self.lepe is not None:
            y = y + self._convolve(self.lepe, stripes[:, :, 2].flatten(2), branch)
        return y

    def _mix(self, qkv: Tensor, branch: Branch) -> Tensor:
        """Values of one branch with their LePE: (B, H, W, 3, C') -> (B, H, W, C')."""
        heads, masked = branch.heads.stop - branch.heads.start, self.config.pad_rule != "projected"
        y = attend_in_regions(qkv.flatten(3), branch.cut, heads, self.scale, None, masked=masked)
        return y if self.lepe is None else y + self._lepe_in_stripes(self.lepe, qkv[..., 2, :], branch)

    def _lepe_in_stripes(self, lepe: nn.Conv2d, v: Tensor, branch: Branch) -> Tensor:
        """Convolve the values of one branch, zeros beyond each stripe: (B, H, W, C') -> same."""
        cut = branch.cut
        stripes = blank(cut.split(v), cut.valid(v.device))  # (B, R, T, C')
        return cut.join(self._convolve(lepe, stripes.flatten(0, 1), branch).unflatten(0, (v.shape[0], -1)))

    def _convolve(self, lepe: nn.Conv2d, stripes: Tensor, branch: Branch) -> Tensor:
        """Convolve stripes of one branch: (M, T, C') -> same."""
        images = stripes.unflatten(1, (branch.cut.rows, branch.cut.cols)).permute(0, 3, 1, 2)
        weight, bias = lepe.weight[branch.channels], None if lepe.bias is None else lepe.bias[branch.channels]
        y = F.conv2d(images, weight, bias, padding=lepe.padding, groups=stripes.shape[-1])
        return y.permute(0, 2, 3, 1).flatten(1, 2)

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE of each branch: like v, (B, heads, N, D)."""
        if self.lepe is None:
            return None
        _, height, width, _ = x.shape
        maps = from_heads(v).unflatten(1, (height, width))
        terms = [self._lepe_in_stripes(self.lepe, maps[..., b.channels], b) for b in self.branches(height, width)]
        return to_heads(torch.cat(terms, -1).flatten(1, 2), self.num_heads)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one stripe, another stripe for each half of the heads: (1, heads, N or queries, N)."""
        _, height, width, _ = x.shape
        row, col = coordinates(height, width, x.device)
        asked = (row, col) if queries is None else (row[queries], col[queries])
        reads = [
            same_region(branch.cut, asked, (row, col)).expand(branch.heads.stop - branch.heads.start, -1, -1)
            for branch in self.branches(height, width)
        ]
        return torch.cat(reads)[None]

    def reference(self, x: Tensor) -> Tensor:
        """Dense softmax over all keys under `connectivity`; where padding is read, over those of each padded map."""
        branches = list(self.branches(*x.shape[1:3]))
        if self.config.pad_rule != "projected" or not any(branch.cut.is_padded for branch in branches):
            return super().reference(x)
        parts, mixed = self.project(x), []
        for branch in branches:
            q, k, v = (part[:, branch.heads] for part in parts)
            places = padded_places(branch.cut, x.device)
            allowed = same_region(branch.cut, places, places)
            mixed.append(softmax_with_zeros(q, k, v, branch.cut, self.scale, None, allowed))
        y, term = torch.cat(mixed, 1), self.value_term(x, parts[2])
        return self.output(y if term is None else y + term).reshape(x.shape)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2, for each branch its stripes' keys on its share of the channels, LePE on the padded stripes."""
        core = position = 0
        kernel = 0 if self.lepe is None else self.lepe.kernel_size[0] * self.lepe.kernel_size[1]
        for branch in self.branches(height, width):
            cut, channels = branch.cut, branch.channels.stop - branch.channels.start
            core += 2 * cut.count * cut.tokens * cut.tokens * channels
            position += cut.count * cut.tokens * channels * kernel
        return replace(self.shared_macs(height, width), core=core, position=position)

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Stripe (tokens, as clamped to the map) and the padding that the two branches need on average."""
        cuts = [branch.cut for branch in self.branches(height, width)]
        ratio = sum(cut.pad_ratio for cut in cuts) / len(cuts)
        return {"window": "+".join(f"{cut.rows}x{cut.cols}" for cut in cuts), "pad_ratio": ratio}
