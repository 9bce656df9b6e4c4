"""Multi-head self-attention over all tokens of the map: the dense reference of the zoo.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.2.
With `lepe`, the last stage of BiFormer (Zhu et al., arXiv:2303.08810): a depth-wise convolution of v is added
before the output projection.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attention_zoo.base import Attention, Example, Macs, attend
from attention_zoo.config import AttentionConfig
from attention_zoo.regions import from_heads, to_heads
from attention_zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class VanillaConfig(AttentionConfig):
    """No bias in the q, k, v projection, as in BiFormer's and timm's plain attention."""

    qkv_bias: bool = field(default=False, metadata={"help": "bias of the q, k, v projection"})
    lepe_input: Literal["v", "x"] = field(
        default="v", metadata={"help": "what LePE convolves: v, or the layer's input as in BiFormer's legacy code"}
    )


@register("vanilla")
class Vanilla(Attention):
    """Every query reads every key: softmax(q k^T / sqrt(D)) v. Cost: 4 N C^2 + 2 N^2 C MACs."""

    Config: ClassVar[type[AttentionConfig]] = VanillaConfig
    old_impls: ClassVar[dict[str, str]] = {"dense": "plain"}

    paper: ClassVar[str] = "1706.03762"
    reads: ClassVar[str] = "all tokens"
    cost: ClassVar[str] = "4NC² + 2N²C"
    exponent: ClassVar[Fraction | None] = Fraction(2)
    examples: ClassVar[tuple[Example, ...]] = (Example(reads="all tokens"),)

    def __init__(self, dim: int, num_heads: int, config: AttentionConfig) -> None:
        """Take any mechanism's config: a stage of another mechanism may be full attention."""
        super().__init__(dim, num_heads, config)
        # a subclass may bring a config without that field
        self.lepe_input = config.lepe_input if isinstance(config, VanillaConfig) else "v"

    def forward(self, x: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) v over all tokens (eq. 1): (B, H, W, C) -> same."""
        size = x.shape[1:3]
        q, k, v = self.project(x)  # (B, heads, N, D) each
        y = attend(q, k, v, self.scale)
        y, v = (from_heads(part).unflatten(1, size) for part in (y, v))  # (B, H, W, C)
        return self.proj(self.add_lepe(y, x if self.lepe_input == "x" else v))

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """LePE of v, or of x: like v, (B, heads, N, D)."""
        return super().value_term(x, to_heads(x.flatten(1, 2), self.num_heads) if self.lepe_input == "x" else v)

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Allow every pair: (1, 1, N or queries, N)."""
        tokens = x.shape[1] * x.shape[2]
        rows = tokens if queries is None else len(queries)
        return torch.ones(1, 1, rows, tokens, dtype=torch.bool, device=x.device)

    def macs(self, height: int, width: int) -> Macs:
        """4 N C^2 + 2 N^2 C (arXiv:2303.08810, section 3.3, first term dropped), and LePE if any."""
        tokens = height * width
        return self.shared_macs(height, width) + Macs(core=self.core_macs(tokens, tokens))
