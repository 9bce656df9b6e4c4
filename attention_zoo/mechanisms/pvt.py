"""Spatial-reduction attention (SRA): all queries, a smaller map of keys.

Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions", ICCV 2021,
arXiv:2102.12122, section 3.3. Before k and v are projected, patches of R x R tokens become one each, so a query reads
N / R^2 keys, each a mixture of its patch. PVT v2 (Wang et al., "PVT v2: Improved Baselines with Pyramid Vision
Transformer", CVMJ 2022, arXiv:2106.13797, section 3.2) keeps this, or with `linear` reads 7 x 7 averages of the map.
Paper -> here:  R_i -> reduction (8-4-2-1 over the stages),  SR -> SpatialReduction,  W_Q, W_K, W_V -> parts of qkv,
linear SRA -> LinearReduction.
Departures: on a map that does not divide, zeros complete the last patches; the published code drops these
(`padding="official"`).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal, Self

from torch import Tensor

from attention_zoo.base import Example, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import Layout
from attention_zoo.pooled import LinearReduction, PooledAttention, SpatialReduction, stage_reduction
from attention_zoo.regions import from_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class PVTConfig(AttentionConfig):
    """Patches of 8 x 8 tokens, as published for the first stage; inside a pyramid, 8-4-2-1 over the stages."""

    reduction: int | None = field(
        default=None, metadata={"help": "tokens per side of a patch that one key is made of; default: 8-4-2-1, or 8"}
    )
    padding: Literal["mask", "official", "error"] = field(
        default="mask", metadata={"help": "patches at the border are completed with zeros, left out, or refused"}
    )
    linear: bool = field(default=False, metadata={"help": "read 7x7 averages of any map (PVT v2 linear)"})

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a reduction below 1 or beside `linear`, or LePE.
        """
        super().__post_init__()
        if self.linear and self.reduction is not None:
            raise ValueError(f"reduction must be left out with linear=on, which has 7x7 keys; got {self.reduction}")
        if self.reduction is not None and self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if self.lepe:
            raise ValueError("lepe must be off, got lepe=True: pvt pools the values, so there is no map of them to add")

    def at(self, stage: int, block: int, layout: Layout) -> Self:
        """Take the published reduction of the stage unless one is set."""
        return self if self.linear else self.replace(reduction=self.reduction or stage_reduction(stage, layout))


@register("pvt")
class PVT(PooledAttention):
    """SRA: softmax(q k^T / sqrt(D)) v. Cost: 2 N C^2 + (2 + R^2) M C^2 + 2 N M C MACs, M = N / R^2 keys."""

    Config: ClassVar[type[AttentionConfig]] = PVTConfig

    paper: ClassVar[str] = "2102.12122"
    reads: ClassVar[str] = "all of a map that is reduced by r x r"
    cost: ClassVar[str] = "3NC² + 2(N/r²)C² + 2(N²/r²)C"
    exponent: ClassVar[Fraction | None] = Fraction(2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="12 patches, a key each", config={"reduction": 4}),)

    def __init__(self, dim: int, num_heads: int, config: PVTConfig) -> None:
        """Add the spatial reduction."""
        # made first, so that a seed draws the weights that it always drew
        reduction = 8 if config.reduction is None else config.reduction
        pool = LinearReduction(dim) if config.linear else SpatialReduction(dim, reduction, config.padding)
        super().__init__(dim, num_heads, config)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """SRA (eq. 1 and 2), keys and values made of the reduced map (eq. 3): (B, H, W, C) -> same."""
        assert self.pool is not None
        q, k, v = self.project_pooled(x, self.pool)  # (B, heads, N, D), two of (B, heads, M, D)
        y = attend(q, k, v, self.scale)  # (B, heads, N, D)
        return self.proj(from_heads(y)).reshape(x.shape)

    @classmethod
    def core_exponent(cls, config: AttentionConfig) -> Fraction:
        """1 with `linear`, whose queries have as many keys on every map."""
        return Fraction(1 if getattr(config, "linear", False) else 2)
