"""Layouts of the shared pyramid: what the host fixes for every mechanism. Plain data, no tensors."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A host of (mostly four) stages: stem, stages of (token mixer, MLP) blocks, merging between them, classifier.

    `stem_px` pixels become one token, then each merging halves the map; `rounding` says what becomes of a remainder.
    `regions` (per side), `window` and `stripes` (tokens) are what a mechanism without an explicit partition takes.
    `full_stages` (counted from 0) use full attention unless a per-stage schedule says otherwise. `norm` is that
    outside the blocks, which have LayerNorm; `pool` says whether the last norm comes before or after the mean over
    the map.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    head_dim: int
    mlp_ratio: float | tuple[float, ...]
    stem_px: int = 4
    stem: Literal["conv4", "conv7", "conv3_twice", "multiscale"] = "conv4"
    stem_norm: bool = True
    stem_kernels: tuple[int, ...] = (4, 8, 16, 32)
    merging: Literal["norm_conv2", "concat_norm_linear", "conv2_norm", "conv3_norm", "norm_multiscale"]
    merging_bias: bool = True
    merging_kernels: tuple[tuple[int, ...], ...] = ((2, 4), (2, 4), (2, 4))
    rounding: Literal["ceil", "floor"] = "ceil"
    norm: Literal["batch", "layer"]
    norm_eps: float = 1e-5
    block_norm_eps: float = 1e-6
    layer_scale: float | None = None
    pool: Literal["norm_mean", "mean_norm"] = "norm_mean"
    position: Literal["none", "absolute", "convolution"]
    init: Literal["trunc_normal_0.02", "probe"]
    resolution_px: int
    width_px: int | None = None
    regions: int
    window: int
    stripes: tuple[int, ...]
    full_stages: tuple[int, ...] = (3,)

    @property
    def own_maps(self) -> list[tuple[int, int]]:
        """Height and width of each stage's map at the layout's own resolution, square unless `width_px` is set."""
        return self.maps(self.resolution_px, self.width_px or self.resolution_px)

    def mlp_ratio_of(self, stage: int) -> float:
        """Hidden over outer width of a stage's MLPs."""
        return self.mlp_ratio[stage] if isinstance(self.mlp_ratio, tuple) else self.mlp_ratio

    def maps(self, height_px: int, width_px: int) -> list[tuple[int, int]]:
        """Height and width of each stage's map, tokens, for an input in pixels."""
        sizes, sides = [], (height_px, width_px)
        for stride in (self.stem_px, *(2 for _ in self.depths[1:])):
            height, width = (side // stride if self.rounding == "floor" else -(-side // stride) for side in sides)
            sides = height, width
            sizes.append(sides)
        return sizes


STL = Layout(
    name="stl",
    depths=(2, 2, 6, 2),
    dims=(96, 192, 384, 768),
    head_dim=32,
    mlp_ratio=4,
    merging="norm_conv2",
    norm="batch",
    position="none",
    init="trunc_normal_0.02",
    resolution_px=224,
    regions=7,
    window=7,
    stripes=(1, 2, 7, 7),
)
"""The Swin-T-like host of BiFormer's ablation (arXiv:2303.08810, section 4.4)."""

SMALL = Layout(
    name="small",
    depths=(1, 1, 2, 1),
    dims=(24, 48, 96, 192),
    head_dim=12,
    mlp_ratio=2,
    stem_norm=False,
    merging="concat_norm_linear",
    norm="layer",
    pool="mean_norm",
    position="absolute",
    init="probe",
    resolution_px=64,
    regions=4,
    window=2,
    stripes=(1, 2, 2, 2),
)
"""The default sweep's: trains on the digit probes within a minute on two cores."""

SMALL32 = replace(SMALL, name="small32", stem_px=2, resolution_px=32)
"""The same for images of 32 px, such as CIFAR's: its stem makes a token of 2 px, so its maps are those of 64 px."""

LAYOUTS = {layout.name: layout for layout in (STL, SMALL, SMALL32)}
