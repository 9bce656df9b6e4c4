"""The four-stage host around a token mixer, the same for every mechanism."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_zoo.base import Attention, Macs
from attention_zoo.config import FULL, AttentionConfig
from attention_zoo.hosts.backbone import Backbone
from attention_zoo.hosts.blocks import Block
from attention_zoo.hosts.downsampling import Downsample, map_norm
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.vanilla import Vanilla
from attention_zoo.registry import build


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


class Pyramid(Backbone):
    """Stem, four stages and a classifier: (B, 3, height_px, width_px) -> (B, num_classes) logits.

    It has the methods that timm asks of a model; without classes, the pooled features are what it returns.
    """

    def __init__(self, layout: Layout, stages: Stages, num_classes: int, drop_path_rate: float = 0.0) -> None:
        """Build the host of a layout; `stages` name mechanism and configuration of each block.

        Raises:
            ValueError: a negative number of classes, or a drop path rate that is no share below 1.
        """
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
        self.layout, self.num_classes = layout, num_classes
        self.global_pool, self.drop_rate, self.checkpointed_stages = "avg", 0.0, frozenset()
        total = sum(layout.depths)
        rates = iter([drop_path_rate * block / max(1, total - 1) for block in range(total)])
        reference_maps = layout.own_maps
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
                blocks.append(Block(mixer, layout, stage, next(rates)))
            self.stages.append(nn.Sequential(*blocks))
        width = layout.dims[-1]
        self.norm: nn.Module = (
            map_norm(layout, width) if layout.pool == "norm_mean" else nn.LayerNorm(width, eps=layout.norm_eps)
        )
        self.head: nn.Module = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self._init_weights()
        # maps have their channels last, and a convolution whose weights do too need not reorder them on each call
        self.downsamples.to(memory_format=torch.channels_last)

    def _init_weights(self) -> None:
        """Initialise what the host fixes for all mechanisms: linear layers, stem and merging, positions.

        A mechanism's own convolutions and networks of biases or offsets keep the start that its file gives them.
        The `probe` init is for runs of a few hundred steps: sharp queries and keys and quiet residual branches (LePE
        starts at 0), measured to shorten the plateau before the digit probes are learned.
        """
        probe = self.layout.init == "probe"
        mixers = [mixer for mixers in self.mixers() for mixer in mixers]
        layers = {m for mixer in mixers for pair in mixer.projections for m in pair}
        own = {m for mixer in mixers for m in mixer.modules()} - layers
        for module in self.modules():
            if module in own:
                continue
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                gain = 0.7 if isinstance(module, nn.Conv2d) else 0.5
                std = gain * module.weight[0].numel() ** -0.5 if probe else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if probe:
            self.init_head()
            for mixer in mixers:
                for qkv, _ in mixer.projections:
                    q_and_k, v = qkv.weight[: 2 * mixer.qk_dim], qkv.weight[2 * mixer.qk_dim :]
                    nn.init.trunc_normal_(q_and_k, std=1.05 * mixer.dim**-0.5)
                    nn.init.trunc_normal_(v, std=0.7 * mixer.dim**-0.5)
                if mixer.lepe is not None:
                    nn.init.zeros_(mixer.lepe.weight)
        for position in self.positions:
            nn.init.trunc_normal_(position, std=0.02)

    def init_head(self) -> None:
        """Initialise the classifier, where there is one."""
        if isinstance(self.head, nn.Linear):
            # in half precision earlier versions of torch draw tails that are far too long
            weight = torch.empty_like(
                self.head.weight, dtype=torch.promote_types(self.head.weight.dtype, torch.float32)
            )
            nn.init.trunc_normal_(weight, std=0.1 if self.layout.init == "probe" else 0.02)
            with torch.no_grad():
                self.head.weight.copy_(weight)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (B, H, W, C), before the final norm."""
        return self.run_stages(x, [], len(self.stages))[0]

    def run_stages(self, x: Tensor, taken: list[int], count: int) -> tuple[Tensor, list[Tensor]]:
        """Run the first `count` stages: the last map, and those after the stages `taken`, (B, H, W, C)."""
        maps = []
        for stage in range(count):
            x = self._run_stage(stage, x.permute(0, 3, 1, 2) if stage else x)
            if stage in taken:
                maps.append(x)
        return x, maps

    def _run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Merge, then mix: (B, C, H, W) -> (B, H, W, C)."""
        x = self.downsamples[stage](x)
        if self.positions:
            x = x + self._position(stage, x)
        x = x.permute(0, 2, 3, 1).contiguous()
        if stage not in self.checkpointed_stages:
            mixed: Tensor = self.stages[stage](x)
            return mixed
        for block in cast(nn.Sequential, self.stages[stage]):
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def _position(self, stage: int, x: Tensor) -> Tensor:
        """Learned absolute position of a stage, resampled where the map is not the layout's own."""
        position: Tensor = self.positions[stage]
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, x.shape[2:], mode="bicubic", align_corners=False)
        return position

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Norm, pool and classify what `forward_features` returns: (B, H, W, C) -> (B, num_classes).

        With `pre_logits` (B, C), as without classes; without pooling, the same for each place of the map.
        """
        if self.layout.pool == "norm_mean":
            x = self.norm(x.permute(0, 3, 1, 2))
            x = x.mean((2, 3)) if self.global_pool else x.permute(0, 2, 3, 1)
        else:
            x = self.norm(x.mean((1, 2)) if self.global_pool else x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else cast(Tensor, self.head(x))

    def blocks(self) -> list[list[Block]]:
        """Return the blocks, stage by stage."""
        return [cast(list[Block], list(cast(nn.Sequential, stage))) for stage in self.stages]

    def mixers(self) -> list[list[Attention]]:
        """Return the token mixers, stage by stage."""
        return [[block.attn for block in blocks] for blocks in self.blocks()]

    def macs(self, height_px: int, width_px: int) -> Macs:
        """Multiply-adds of matrix products and convolutions for one image, in closed form."""
        total = Macs(host=self.num_features * self.num_classes)
        before, sizes = (height_px, width_px), self.layout.maps(height_px, width_px)
        for (height, width), downsample, blocks in zip(sizes, self.downsamples, self.blocks(), strict=True):
            assert isinstance(downsample, Downsample)
            total += downsample.macs(*before)
            before = height, width
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
        is_vanilla = all(isinstance(mixers[0], Vanilla) for mixers in self.mixers())
        own = padded = 0.0
        for stage, (mixers, (height, width)) in enumerate(
            zip(self.mixers(), self.layout.maps(height_px, width_px), strict=True), start=1
        ):
            try:
                geometry = [{"impl": m.impl_on(height, width), **m.geometry(height, width)} for m in mixers]
            except ValueError as error:
                raise ValueError(
                    f"stage {stage} of {self.layout.name} at {height_px}x{width_px} px: {error}"
                ) from error
            own += len(mixers) * height * width
            padded += sum(height * width * g.pop("pad_ratio") for g in geometry)
            is_full = isinstance(mixers[0], Vanilla) and not is_vanilla
            found.append({} if is_full else geometry[0])
        columns = {name for geometry in found for name in geometry}
        by_stage = {name: "-".join(str(geometry.get(name, FULL)) for geometry in found) for name in sorted(columns)}
        return {**by_stage, "pad_ratio": padded / own}

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
