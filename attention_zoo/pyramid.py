"""The four-stage host around a token mixer, the same for every mechanism."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs
from attention_zoo.blocks import Block, Downsample, map_norm
from attention_zoo.config import FULL, AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.registry import build
from attention_zoo.vanilla import Vanilla


class Mixer(NamedTuple):
    """Mechanism and configuration of one block; `num_heads` where it is not the width over the layout's head dim."""

    cls: type[Attention]
    config: AttentionConfig
    num_heads: int | None = None


Stages = list[list[Mixer]]
"""The mixers of each stage's blocks."""


def alternate(mixer: Mixer, layout: Layout, stage: int) -> list[Mixer]:
    """Return the mixer of each block of a stage, taking turns as its configuration says."""
    blocks = range(layout.depths[stage])
    return [mixer._replace(config=mixer.config.at(stage, block, layout)) for block in blocks]


class Pyramid(nn.Module):
    """Stem, four stages and a classifier: (B, 3, height_px, width_px) -> (B, num_classes) logits."""

    def __init__(self, layout: Layout, stages: Stages, num_classes: int, drop_path_rate: float = 0.0) -> None:
        """Build the host of a layout; `stages` name mechanism and configuration of each block."""
        super().__init__()
        self.layout, self.num_classes = layout, num_classes
        total = sum(layout.depths)
        rates = iter([drop_path_rate * block / max(1, total - 1) for block in range(total)])
        reference_maps = layout.maps(layout.resolution_px, layout.resolution_px)
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        self.positions = nn.ParameterList()
        for stage, mixers in enumerate(stages):
            dim = layout.dims[stage]
            self.downsamples.append(Downsample(layout, stage))
            if layout.position == "absolute":
                self.positions.append(nn.Parameter(torch.empty(1, dim, *reference_maps[stage])))
            blocks = []
            for cls, config, num_heads in mixers:
                mixer = build(cls, dim, num_heads or dim // layout.head_dim, config)
                blocks.append(Block(mixer, dim, layout, next(rates)))
            self.stages.append(nn.Sequential(*blocks))
        width = layout.dims[-1]
        self.norm = map_norm(layout, width) if layout.pool == "norm_mean" else nn.LayerNorm(width, eps=layout.norm_eps)
        self.head = nn.Linear(width, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise what the host fixes for all mechanisms: linear layers, stem and merging, positions.

        The `probe` init is for runs of a few hundred steps: sharp queries and keys and quiet residual branches (LePE
        starts at 0), measured to shorten the plateau before the digit probes are learned.
        """
        probe = self.layout.init == "probe"
        for module in self.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                gain = 0.7 if isinstance(module, nn.Conv2d) else 0.5
                std = gain * module.weight[0].numel() ** -0.5 if probe else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if probe:
            nn.init.trunc_normal_(self.head.weight, std=0.1)
            for mixer in (mixer for mixers in self.mixers() for mixer in mixers):
                q_and_k, v = mixer.qkv.weight[: 2 * mixer.qk_dim], mixer.qkv.weight[2 * mixer.qk_dim :]
                nn.init.trunc_normal_(q_and_k, std=1.05 * mixer.dim**-0.5)
                nn.init.trunc_normal_(v, std=0.7 * mixer.dim**-0.5)
                if mixer.lepe is not None:
                    nn.init.zeros_(mixer.lepe.weight)
        for position in self.positions:
            nn.init.trunc_normal_(position, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (B, H, W, C), before the final norm."""
        for stage, (downsample, blocks) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = downsample(x)
            if self.positions:
                x = x + self._position(stage, x)
            x = blocks(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        return x.permute(0, 2, 3, 1)

    def _position(self, stage: int, x: Tensor) -> Tensor:
        """Learned absolute position of a stage, resampled where the map is not the layout's own."""
        position: Tensor = self.positions[stage]
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, x.shape[2:], mode="bicubic", align_corners=False)
        return position

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.forward_features(x)
        if self.layout.pool == "norm_mean":
            x = self.norm(x.permute(0, 3, 1, 2)).mean((2, 3))
        else:
            x = self.norm(x.mean((1, 2)))
        logits: Tensor = self.head(x)
        return logits

    def blocks(self) -> list[list[Block]]:
        """Return the blocks, stage by stage."""
        return [cast(list[Block], list(cast(nn.Sequential, stage))) for stage in self.stages]

    def mixers(self) -> list[list[Attention]]:
        """Return the token mixers, stage by stage."""
        return [[block.attn for block in blocks] for blocks in self.blocks()]

    def macs(self, height_px: int, width_px: int) -> Macs:
        """Multiply-adds of matrix products and convolutions for one image, in closed form."""
        total = Macs(host=self.head.weight.numel())
        sizes = self.layout.maps(height_px, width_px)
        for (height, width), downsample, blocks in zip(sizes, self.downsamples, self.blocks(), strict=True):
            assert isinstance(downsample, Downsample)
            total += downsample.macs(height, width)
            for block in blocks:
                total += block.macs(height, width)
        return total

    def attention_macs(self, height_px: int, width_px: int) -> int:
        """Share of the token mixers in `macs`, their projections included."""
        return self.macs(height_px, width_px).attention

    def describe(self, height_px: int, width_px: int) -> dict[str, Any]:
        """What the mechanism chooses on each stage's map, by dashes, and the padding over all blocks.

        Raises:
            ValueError: the configuration does not fit a stage's map.
        """
        found: list[dict[str, Any]] = []
        own = padded = 0.0
        for stage, (mixers, (height, width)) in enumerate(
            zip(self.mixers(), self.layout.maps(height_px, width_px), strict=True), start=1
        ):
            try:
                geometry = [mixer.geometry(height, width) for mixer in mixers]
            except ValueError as error:
                raise ValueError(
                    f"stage {stage} of {self.layout.name} at {height_px}x{width_px} px: {error}"
                ) from error
            own += len(mixers) * height * width
            padded += sum(height * width * g.pop("pad_ratio") for g in geometry)
            found.append({} if isinstance(mixers[0], Vanilla) else geometry[0])
        columns = {name for geometry in found for name in geometry}
        joined = {name: "-".join(str(geometry.get(name, FULL)) for geometry in found) for name in sorted(columns)}
        return {**joined, "pad_ratio": padded / own}

    def notes(self) -> list[str]:
        """Say what of the mechanism this layout cannot show."""
        short: dict[str, list[str]] = {}
        for stage, mixers in enumerate(self.mixers(), start=1):
            if len(mixers) < type(mixers[0]).Config.period:
                short.setdefault(type(mixers[0]).__name__, []).append(str(stage))
        return [
            f"{name} alternates between blocks; stage {', '.join(stages)} of {self.layout.name} has too few to show it"
            for name, stages in short.items()
        ]
