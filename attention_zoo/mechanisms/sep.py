"""Spatially separable self-attention (SSSA): windows and a summarised map in turns.

Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, arXiv:2104.13840,
section 3.2 (Twins-SVT). Locally-grouped self-attention (LSA) stays inside windows; global sub-sampled attention (GSA)
reads one key for each patch, made by the spatial reduction of PVT. The two alternate, local first; neither has a bias.
Paper -> here:  k1 x k2 -> window,  sub-sampling s -> reduction (8-4-2-1 over the stages),  LSA / GSA -> kind.
Departures: Twins adds a positional convolution (PEG) to each stage; here the host is the same for all. On a map that
does not divide, padded tokens of windows are masked and zeros complete the patches. `padding="official"`: windows read
zeros that are padded before the projection, and the last patches are left out; `pad_side` and `pad_moment` are about
windows alone.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.windowed import RegionAttention
from attention_zoo.layouts import Layout
from attention_zoo.partitioned import WindowConfig
from attention_zoo.pooled import PooledAttention, SpatialReduction, stage_reduction
from attention_zoo.regions import Partition
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class SepConfig(WindowConfig):
    """Windows of 7 x 7 tokens, as published; inside a pyramid, of the layout's window."""

    reduction: int | None = field(
        default=None, metadata={"help": "tokens per side of a patch that one key is made of; default: 8-4-2-1, or 8"}
    )
    kind: Literal["local", "global"] | None = field(
        default=None, metadata={"help": "windows or the reduced map; default: in turns, local first"}
    )

    period: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a window or a reduction below 1, or LePE where values are pooled.
        """
        super().__post_init__()
        if self.reduction is not None and self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if self.lepe and self.kind == "global":
            raise ValueError("lepe must be off, got lepe=True: kind=global pools the values, so only kind=local has it")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the layout's window, the published reduction of the stage, and the turns, where none is set."""
        return self.replace(
            window=self.window or layout.window,
            reduction=self.reduction or stage_reduction(stage, layout),
            kind=self.kind or ("global" if block % 2 else "local"),
        )


@register("sep")
class Sep(PooledAttention, RegionAttention):
    """LSA: softmax(q k^T / sqrt(D)) v inside each window, 4 N C^2 + 2 k1 k2 N C MACs. GSA: see PooledAttention."""

    Config: ClassVar[type[AttentionConfig]] = SepConfig

    def __init__(self, dim: int, num_heads: int, config: SepConfig) -> None:
        """Add the spatial reduction to a global block; a local one has none, and is a RegionAttention."""
        reduction = 8 if config.reduction is None else config.reduction
        pool = SpatialReduction(dim, reduction, config.padding) if config.kind == "global" else None
        super().__init__(dim, num_heads, config, pool)
        self.config = config

    def cut(self, height: int, width: int) -> Partition:
        """Windows on a map, of no more tokens than it has, but for the published rule."""
        rows, cols = self.config.sides_on(height, width)
        return Partition.of_size(height, width, rows, cols, centred=self.config.is_centred)
