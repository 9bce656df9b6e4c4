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
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs, softmax_weights
from attention_zoo.config import AttentionConfig
from attention_zoo.dispatch import depthwise_part_of
from attention_zoo.layouts import Layout
from attention_zoo.padding import PartitionConfig, check_padding
from attention_zoo.partitioned import keys_on_map, padded_places, same_region, softmax_in_regions, surround
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class CSWinConfig(PartitionConfig):
    """LePE of 3 x 3, as published; inside a pyramid, the layout's stripes (1-2-7-7 as published)."""

    stripe: int | None = field(default=None, metadata={"help": "stripe width, tokens; default: the layout's, or 7"})
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
            raise ValueError("pad_moment=input: stripes of two directions pad differently; use projected")
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

    stripes: Partition
    heads: slice
    channels: slice


@register("cswin")
class CSWin(Attention):
    """Stripes down and across on half the heads each. Cost: 4 N C^2 + sw (H + W) N C MACs (section 3.2), and LePE."""

    Config: ClassVar[type[AttentionConfig]] = CSWinConfig

    paper: ClassVar[str] = "2107.00652"
    reads: ClassVar[str] = "a stripe, w tokens wide: down with half of the heads, across with the others"
    cost: ClassVar[str] = "4NC² + w(H+W)NC"
    exponent: ClassVar[Fraction | None] = Fraction(3, 2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="stripes, 2 tokens wide", config={"stripe": 2}),)

    def forward(self, x: Tensor) -> Tensor:
        """Attend in vertical stripes on half of the heads, in horizontal ones on the others: (B, H, W, C) -> same."""
        qkv = self.qkv(x).unflatten(-1, (3, self.dim))  # (B, H, W, 3, C)
        mixed = []
        for branch in self.branches(*x.shape[1:3]):
            q_k_v = qkv[..., branch.channels]  # (B, H, W, 3, C / 2)
            heads = branch.heads.stop - branch.heads.start
            y = softmax_in_regions(q_k_v.flatten(3), branch.stripes, heads, self.scale, None, self.config.pad_rule)
            mixed.append(self._add_lepe(y, q_k_v[..., 2, :], branch))  # eq. 10
        return self.proj(torch.cat(mixed, -1))  # eq. 8

    def _add_lepe(self, y: Tensor, v: Tensor, branch: Branch) -> Tensor:
        """Add a depth-wise convolution of v, zeros beyond each stripe: (B, H, W, C / 2) twice -> same."""
        if self.lepe is None:
            return y
        stripes = branch.stripes
        v = blank(stripes.split(v), stripes.valid(v.device))  # (B, R, T, C / 2)
        images = v.flatten(0, 1).unflatten(1, (stripes.rows, stripes.cols)).permute(0, 3, 1, 2)
        convolved = depthwise_part_of(self.lepe, images, branch.channels.start, branch.channels.stop, self.dim)
        return y + stripes.join(convolved.permute(0, 2, 3, 1).reshape(v.shape))

    def branches(self, height: int, width: int) -> Iterator[Branch]:
        """Vertical stripes on the first heads, horizontal ones on the others.

        Raises:
            ValueError: a stripe is wider than the map and may not be clipped, or the map needs padding that is refused.
        """
        stripe = self.config.stripe or 7
        # the segmentation code pads a side that is shorter than a stripe
        fills = self.config.pad_rule == "projected" and not self.config.clip_stripe
        across, down = (stripe, stripe) if fills else (min(stripe, width), min(stripe, height))
        if self.config.stripe is not None and stripe > max(height, width) and not (fills or self.config.clip_stripe):
            raise ValueError(f"stripe={stripe} is wider than a {height}x{width} map; lower it, or allow clip_stripe")
        vertical, head_dim = (self.num_heads + 1) // 2, self.dim // self.num_heads
        halves = ((height, across), (0, vertical)), ((down, width), (vertical, self.num_heads))
        for sides, heads in halves:
            if heads[0] < heads[1]:
                cut = Partition.of_size(height, width, *sides, centred=self.config.is_centred)
                check_padding(cut, self.config.pad_rule)
                yield Branch(cut, slice(*heads), slice(heads[0] * head_dim, heads[1] * head_dim))

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one stripe, another stripe for each half of the heads: (1, heads, N or queries, N)."""
        _, height, width, _ = x.shape
        places = coordinates(height, width, x.device)
        asked = places if queries is None else (places[0][queries], places[1][queries])
        reads = [
            same_region(branch.stripes, asked, places).expand(branch.heads.stop - branch.heads.start, -1, -1)
            for branch in self.branches(height, width)
        ]
        return torch.cat(reads)[None]

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax under `connectivity`; where padding is read, each branch has the keys of its own padded map."""
        branches = list(self.branches(*x.shape[1:3]))
        if not self._reads_padding(branches):
            return super().weights(x, queries)
        q, k, _ = self.project(x)
        weights = []
        for branch in branches:
            own_q, own_k = (surround(part[:, branch.heads], branch.stripes) for part in (q, k))
            inside, places = branch.stripes.inside(x.device), padded_places(branch.stripes, x.device)
            asked = inside if queries is None else inside[queries]
            allowed = same_region(branch.stripes, (places[0][asked], places[1][asked]), places)
            weights.append(softmax_weights(own_q[:, :, asked], own_k, self.scale, None, allowed))
        return _side_by_side([part.mT for part in weights]).mT

    def values(self, x: Tensor) -> Tensor:
        """Values of the tokens; where padding is read, of each branch's padded map."""
        branches, v = list(self.branches(*x.shape[1:3])), super().values(x)
        if not self._reads_padding(branches):
            return v
        return _side_by_side([surround(v[:, branch.heads], branch.stripes) for branch in branches])

    def _reads_padding(self, branches: list[Branch]) -> bool:
        return self.config.pad_rule == "projected" and any(branch.stripes.is_padded for branch in branches)

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on the tokens of the map; those on padding that is read are left out."""
        branches = list(self.branches(*x.shape[1:3]))
        if not self._reads_padding(branches):
            return super().on_map(x, weights)
        return torch.cat([keys_on_map(weights[:, branch.heads], branch.stripes) for branch in branches], 1)

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE of each branch: like v, (B, heads, N, D)."""
        if self.lepe is None:
            return None
        _, _, v = self.project(x)
        maps, terms = from_heads(v).unflatten(1, x.shape[1:3]), []
        for branch in self.branches(*x.shape[1:3]):
            own = maps[..., branch.channels]
            terms.append(self._add_lepe(torch.zeros_like(own), own, branch))
        return to_heads(torch.cat(terms, -1).flatten(1, 2), self.num_heads)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2, for each branch its stripes' keys on its share of the channels, LePE on the padded stripes."""
        core = position = 0
        kernel = 0 if self.lepe is None else self.lepe.kernel_size[0] * self.lepe.kernel_size[1]
        for branch in self.branches(height, width):
            cut, channels = branch.stripes, branch.channels.stop - branch.channels.start
            core += 2 * cut.count * cut.tokens * cut.tokens * channels
            position += cut.count * cut.tokens * channels * kernel
        return replace(self.shared_macs(height, width), core=core, position=position)

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Stripe (tokens, as clamped to the map) and the padding that the two branches need on average."""
        cuts = [branch.stripes for branch in self.branches(height, width)]
        ratio = sum(cut.pad_ratio for cut in cuts) / len(cuts)
        return {"window": "+".join(f"{cut.rows}x{cut.cols}" for cut in cuts), "pad_ratio": ratio}


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Heads of both branches, (B, heads, K, ...); keys that one lacks beside the other are 0."""
    most = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[2])) for part in parts], 1)
