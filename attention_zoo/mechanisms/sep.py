"""Spatially separable self-attention (SSSA): windows and a summarised map in turns.

Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, arXiv:2104.13840,
section 3.2 (Twins-SVT). Locally-grouped self-attention (LSA) stays inside windows; global sub-sampled attention (GSA)
reads one key for each patch, made by the spatial reduction of PVT. The two alternate, local first; neither has a bias.
Paper -> here:  k1 x k2 -> window,  sub-sampling s -> reduction (8-4-2-1 over the stages),  LSA / GSA -> kind.
Departures: Twins adds a positional convolution (PEG) to each stage; here the host is the same for all. On a map that
does not divide, padded tokens of windows are masked and zeros complete the patches. `padding="official"`: windows read
zeros that are padded before the projection, and the last patches are left out. So do the detection code, and the
segmentation code where rows or columns alone are padded: its mask selects the padding by `[-pad:]`, which is everything
for a pad of 0, and so masks nothing (`variant`). The classification code refuses such maps. `pad_side`, `pad_moment`
and `variant` are about windows alone.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from attention_zoo.base import Example, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.padding import WindowConfig
from attention_zoo.partitioned import PartitionAttention, softmax_in_regions
from attention_zoo.pooled import PooledAttention, SpatialReduction, stage_reduction
from attention_zoo.regions import Partition, from_heads
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
    variant: Literal["detection", "segmentation"] = field(
        default="detection",
        metadata={
            "help": "code whose windows padding=official follows: zeros that are read, or that are masked where rows "
            "and columns are padded"
        },
    )

    period: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a window or a reduction below 1, LePE where values are pooled, or a variant of a padding that
                is not chosen.
        """
        super().__post_init__()
        if self.variant == "segmentation" and self.pad_rule != "input":
            raise ValueError(
                f"variant=segmentation needs padding=official and no other pad_moment than input, got "
                f"padding={self.padding}, pad_moment={self.pad_moment}"
            )
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
class Sep(PooledAttention, PartitionAttention):
    """LSA: softmax(q k^T / sqrt(D)) v inside each window, 4 N C^2 + 2 k1 k2 N C MACs. GSA: the same over pooled keys.

    GSA costs 2 N C^2 + (2 + s^2) M C^2 + 2 N M C MACs, M = N / s^2 keys.
    """

    Config: ClassVar[type[AttentionConfig]] = SepConfig

    paper: ClassVar[str] = "2104.13840"
    reads: ClassVar[str] = "a window of M x M tokens; in every other block all of a map that is reduced by r x r"
    cost: ClassVar[str] = "as swin, then as pvt"
    exponent: ClassVar[Fraction | None] = Fraction(2)
    examples: ClassVar[tuple[Example, ...]] = (
        Example(reads="windows of 4x4", config={"window": 4, "kind": "local"}, turn=1),
        Example(reads="12 patches, a key each", config={"reduction": 4, "kind": "global"}, turn=2),
    )

    def __init__(self, dim: int, num_heads: int, config: SepConfig) -> None:
        """Add the spatial reduction to a global block."""
        # made first, so that a seed draws the weights that it always drew
        reduction = 8 if config.reduction is None else config.reduction
        pool = SpatialReduction(dim, reduction, config.padding) if config.kind == "global" else None
        super().__init__(dim, num_heads, config)
        self.pool = pool
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """LSA inside windows, or GSA over the reduced map (section 3.2): (B, H, W, C) -> same."""
        _, height, width, _ = x.shape
        if self.pool is not None:
            q, k, v = self.project_pooled(x, self.pool)  # (B, heads, N, D), two of (B, heads, M, D)
            y = attend(q, k, v, self.scale)
            return self.proj(from_heads(y)).reshape(x.shape)
        x, windows = self.enter(x)
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        y = softmax_in_regions(qkv, windows, self.num_heads, self.scale, None, self.pad_rule)
        return self.proj(self.leave(self.add_lepe(y, qkv[..., 2 * self.dim :]), height, width))

    @classmethod
    def core_exponent(cls, config: AttentionConfig) -> Fraction:
        """1 of windows alone; a reduced map decides on large maps."""
        return Fraction(1) if getattr(config, "kind", None) == "local" else Fraction(2)

    @property
    def _kind(self) -> type[PooledAttention] | type[PartitionAttention]:
        """Whose connectivity, oracle and costs a block of this kind has."""
        return PartitionAttention if self.pool is None else PooledAttention

    def cut(self, height: int, width: int) -> Partition:
        """Windows on a map, of no more tokens than it has, but for the published rule."""
        rows, cols = self.config.sides_on(height, width)
        return Partition.of_size(height, width, rows, cols, centred=self.config.is_centred)

    def rule_on(self, cut: Partition) -> str:
        """`mask` where the segmentation code masks: where both rows and columns are padded."""
        lacks_both = cut.padded_size[0] > cut.height and cut.padded_size[1] > cut.width
        return "mask" if self.config.variant == "segmentation" and lacks_both else self.pad_rule

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow pairs of one window, or all tokens that a patch holds."""
        return self._kind.connectivity(self, x, queries)

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Dense softmax over tokens, or over pooled keys."""
        return self._kind.weights(self, x, queries)

    def values(self, x: Tensor) -> Tensor:
        """Values of tokens, or of patches."""
        return self._kind.values(self, x)

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE of a local block; None in a global one."""
        return self._kind.value_term(self, x, v)

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weights on tokens, a patch's spread evenly."""
        return self._kind.on_map(self, x, weights)

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle of this kind."""
        return self._kind.reference(self, x)

    def macs(self, height: int, width: int) -> Macs:
        """Closed form of this kind; the output projection leaves padding out."""
        macs = self._kind.macs(self, height, width)
        if self.pool is not None or not self.pads_input(self.partition(height, width)):
            return macs
        rows, cols = self.partition(height, width).padded_size
        return replace(macs, projection=macs.projection - (rows * cols - height * width) * self.dim**2)

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """Window and padding, or the padding that completes the patches."""
        return self._kind.geometry(self, height, width)
