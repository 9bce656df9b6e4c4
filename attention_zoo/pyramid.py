"""The four-stage host around a token mixer, the same for every mechanism."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention, Macs
from attention_zoo.config import FULL, AttentionConfig, field_names, parse_values
from attention_zoo.layouts import LAYOUTS, Layout
from attention_zoo.registry import build, resolve, suggest
from attention_zoo.vanilla import Vanilla, VanillaConfig

Stages = list[tuple[type[Attention], AttentionConfig]]


def create_model(
    layout: str | Layout,
    *,
    attn: str = "bra",
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    **config: Any,
) -> "Pyramid":
    """Build a layout around a mechanism; `config` are fields of its `Config`.

    A field takes one value for all stages, or four as a list or a string with dashes: `topk="1-4-16-full"`, where
    `full` is full attention. One value leaves the layout's full stages full; four say all themselves.

    Raises:
        ValueError: unknown layout, mechanism or field (the known ones are listed), or values that do not fit.
    """
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ValueError(suggest("layout", layout, sorted(LAYOUTS)))
        layout = LAYOUTS[layout]
    return Pyramid(layout, stage_mixers(layout, attn, config), num_classes, drop_path_rate)


def stage_mixers(layout: Layout, attn: str, config: dict[str, Any]) -> Stages:
    """Decide mechanism and configuration of each stage."""
    cls = resolve(attn)
    known = field_names(cls.Config)
    schedules: dict[str, list[Any]] = {}
    for name, value in config.items():
        if name not in known:
            raise ValueError(suggest(f"field of {attn}", name, known))
        listed = value if isinstance(value, list) else [value]
        values = parse_values(cls.Config, name, value) if isinstance(value, str) else listed
        if len(values) not in (1, len(layout.depths)):
            raise ValueError(f"{name} takes one value or {len(layout.depths)}, one per stage; got {value!r}")
        schedules[name] = values
    per_stage = [values for values in schedules.values() if len(values) > 1]
    stages: Stages = []
    for stage in range(len(layout.depths)):
        here = {name: values[stage % len(values)] for name, values in schedules.items()}
        is_full = FULL in here.values() if per_stage else stage in layout.full_stages
        if is_full and cls is not Vanilla:
            lepe = here.get("lepe", cls.Config().lepe)
            kernel = here.get("lepe_kernel", cls.Config().lepe_kernel)
            if FULL in (lepe, kernel):
                raise ValueError("full belongs into the schedule of a field of the mechanism, not of LePE")
            stages.append((Vanilla, VanillaConfig(lepe=lepe, lepe_kernel=kernel)))
        else:
            stages.append((cls, cls.Config(**{name: value for name, value in here.items() if value != FULL})))
    return stages


class Block(nn.Module):
    """Pre-norm residual block on (B, H, W, C): token mixer, then MLP."""

    def __init__(self, mixer: Attention, dim: int, mlp_ratio: float, drop_path_rate: float) -> None:
        """Wrap a mixer."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = _drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        mixed: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return mixed

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-adds on one map."""
        weights = sum(layer.weight.numel() for layer in self.mlp if isinstance(layer, nn.Linear))
        return self.attn.macs(height, width) + Macs(host=height * width * weights)


def _drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath  # seconds of import that most cells do not need

    layer: nn.Module = DropPath(rate)
    return layer


class Downsample(nn.Module):
    """Stem or merging: (B, C, H, W) to a map of ceil(H / stride) x ceil(W / stride), padded at the bottom/right."""

    def __init__(self, dim_in: int, dim: int, stride: int, merging: str) -> None:
        """Norm before a strided convolution, or after it in the stem (dim_in == 3)."""
        super().__init__()
        self.stride, self.linear = stride, merging == "linear_layernorm"
        stem = dim_in == 3
        self.reduce: nn.Module
        if self.linear and not stem:
            self.norm: nn.Module = nn.LayerNorm(4 * dim_in)
            self.reduce = nn.Linear(4 * dim_in, dim)
        else:
            self.norm = nn.Identity() if self.linear else nn.BatchNorm2d(dim if stem else dim_in)
            self.reduce = nn.Conv2d(dim_in, dim, stride, stride)
        self.stem = stem
        self.weights = stride * stride * dim_in * dim

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in (a view of a channels-last map is fine), NCHW out."""
        if self.linear and not self.stem:
            x = F.pixel_unshuffle(self._pad(x), self.stride).permute(0, 2, 3, 1)
            merged: Tensor = self.reduce(self.norm(x))
            return merged.permute(0, 3, 1, 2)
        if self.stem:
            reduced: Tensor = self.norm(self.reduce(self._pad(x)))
            return reduced
        # normalised before it is padded, so that the padding stays 0
        reduced = self.reduce(self._pad(self.norm(x)))
        return reduced

    def _pad(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.stride, -x.shape[3] % self.stride
        return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


class Pyramid(nn.Module):
    """Stem, four stages and a classifier: (B, 3, height_px, width_px) -> (B, num_classes) logits."""

    def __init__(self, layout: Layout, stages: Stages, num_classes: int, drop_path_rate: float = 0.0) -> None:
        """Build the host of a layout; `stages` name mechanism and configuration of each stage."""
        super().__init__()
        self.layout, self.num_classes = layout, num_classes
        total = sum(layout.depths)
        rates = iter([drop_path_rate * block / max(1, total - 1) for block in range(total)])
        reference_maps = layout.maps(layout.resolution_px, layout.resolution_px)
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        self.positions = nn.ParameterList()
        for stage, (cls, config) in enumerate(stages):
            dim = layout.dims[stage]
            dim_in, stride = (layout.dims[stage - 1], 2) if stage else (3, layout.stem_px)
            self.downsamples.append(Downsample(dim_in, dim, stride, layout.merging))
            if layout.position == "absolute":
                self.positions.append(nn.Parameter(torch.empty(1, dim, *reference_maps[stage])))
            blocks = []
            for block in range(layout.depths[stage]):
                mixer = build(cls, dim, dim // layout.head_dim, config.at(stage, block, layout))
                blocks.append(Block(mixer, dim, layout.mlp_ratio, next(rates)))
            self.stages.append(nn.Sequential(*blocks))
        width = layout.dims[-1]
        self.norm: nn.Module = nn.BatchNorm2d(width) if layout.merging == "conv_batchnorm" else nn.LayerNorm(width)
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
        if isinstance(self.norm, nn.BatchNorm2d):
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
            total += Macs(host=height * width * downsample.weights)
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
