"""The contract of a mechanism, and the slow oracle that every fast path is compared with."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.config import AttentionConfig
from attention_zoo.kernels.modes import makes_kernels
from attention_zoo.regions import from_heads, to_heads


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-adds of matrix products and convolutions for one image (1 MAC = 2 FLOPs)."""

    projection: int = 0
    core: int = 0
    routing: int = 0
    position: int = 0
    host: int = 0

    @property
    def attention(self) -> int:
        """Share of the token mixers, their projections included."""
        return self.projection + self.core + self.routing + self.position

    @property
    def total(self) -> int:
        """All of them."""
        return self.attention + self.host

    def __add__(self, other: "Macs") -> "Macs":
        """Sum part by part."""
        return Macs(
            projection=self.projection + other.projection,
            core=self.core + other.core,
            routing=self.routing + other.routing,
            position=self.position + other.position,
            host=self.host + other.host,
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A setting of a mechanism that shows what a query reads, for figures; `turn` is its block among those in turns."""

    reads: str
    config: dict[str, Any] = field(default_factory=dict)
    turn: int | None = None


class Attention(nn.Module):
    """A token mixer: (B, H, W, C) -> (B, H, W, C) on a map of any size.

    A mechanism names its `Config`, and writes `fast`, `connectivity` and `macs`. If it is one masked softmax,
    `reference` follows from the small parts `project`, `scale`, `logit_bias`, `value_term` and `output`; otherwise it
    overrides `reference` with plain loops. One that writes `forward` instead of `fast` has no impl=reference.

    Raises:
        ValueError: `dim` or the width of q and k is not a multiple of `num_heads`, or it has no such `impl`.
    """

    Config: ClassVar[type[AttentionConfig]] = AttentionConfig
    impls: ClassVar[tuple[str, ...]] = ("forward",)
    """Ways in which `fast` computes, all of one meaning; the first is the one whose products `macs` counts."""

    paper: ClassVar[str] = ""
    """Its arXiv number."""
    reads: ClassVar[str] = ""
    """What a query reads, in words."""
    cost: ClassVar[str] = ""
    """Closed form of its multiply-adds, as text."""
    legend: ClassVar[str] = ""
    """Name in figures; the registered name if empty."""
    exponent: ClassVar[Fraction | None] = None
    """Power of the tokens by which the core's multiply-adds grow on large maps, by default settings."""
    examples: ClassVar[tuple[Example, ...]] = ()
    """Settings that figures show."""

    @classmethod
    def core_exponent(cls, config: AttentionConfig) -> Fraction | None:
        """Return `exponent`, or that of these settings where they decide it."""
        return cls.exponent

    def __init__(self, dim: int, num_heads: int, config: AttentionConfig, *, qk_dim: int | None = None) -> None:
        """Make the projections and the LePE convolution that all mechanisms share."""
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        for name, width in (("dim", dim), ("qk_dim", qk_dim)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(f"{name} must be a positive multiple of num_heads, got {name}={width}, {num_heads=}")
        known = ["auto", *(("reference",) if type(self).forward is Attention.forward else ()), *self.impls]
        if config.impl not in known:
            raise ValueError(f"impl={config.impl}: {type(self).__name__} has {', '.join(known)}")
        self.impl: str = config.impl
        self.dim, self.num_heads, self.qk_dim = dim, num_heads, qk_dim
        self.scale: float = config.qk_scale or (qk_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim, bias=config.qkv_bias)
        self.lepe = (
            nn.Conv2d(dim, dim, config.lepe_kernel, padding=config.lepe_kernel // 2, groups=dim)
            if config.lepe
            else None
        )
        self.proj: nn.Module = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens as `impl` says: (B, H, W, C) -> same.

        Raises:
            ValueError: the map has no tokens.
        """
        if not (x.shape[1] and x.shape[2]):
            raise ValueError(f"a map needs a token at least, got {x.shape[1]}x{x.shape[2]} (height x width)")
        return self.reference(x) if self.impl == "reference" else self.fast(x)

    def fast(self, x: Tensor) -> Tensor:
        """Mix tokens: (B, H, W, C) -> same."""
        raise NotImplementedError(f"{type(self).__name__} has neither fast nor forward")

    def impl_on(self, height: int, width: int) -> str:
        """How `forward` computes on a map of this size, for the row."""
        return self.impls[0] if self.impl == "auto" else self.impl

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """May query i read key j? Boolean, broadcasts to (B, heads, N or the given query indices, N).

        Written in coordinates, never through the reshape that `forward` uses. x: (B, H, W, C), since routing
        depends on content.
        """
        raise NotImplementedError(f"{type(self).__name__} has no connectivity")

    def macs(self, height: int, width: int) -> Macs:
        """Closed form of the multiply-adds on one map, what padding adds included."""
        raise NotImplementedError(f"{type(self).__name__} has no macs")

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """What the mechanism chooses on a map of this size, for the row; `pad_ratio` = padded / own tokens - 1.

        Raises:
            ValueError: the configuration does not fit the map.
        """
        return {"pad_ratio": 0.0}

    def linear(self, x: Tensor, first: int, last: int) -> Tensor:
        """Make the channels first .. last - 1 of q, k, v alone: (..., C) -> (..., last - first)."""
        bias = None if self.qkv.bias is None else self.qkv.bias[first:last]
        return F.linear(x, self.qkv.weight[first:last], bias)

    def parts(self, x: Tensor, *widths: int) -> list[Tensor]:
        """Make q, k, v by as many products as there are widths, which sum to theirs: (..., C) -> (..., width) each."""
        qkv = self.qkv
        if makes_kernels() and x.dim() > 2:
            # a map that several steps read would be laid out as if its second dimension were the channels
            return [part.unflatten(0, x.shape[:-1]) for part in self.parts(x.flatten(0, -2), *widths)]
        weights, bias = qkv.weight.split_with_sizes(widths), qkv.bias
        if bias is None:
            return [F.linear(x, weight) for weight in weights]
        return [F.linear(x, *part) for part in zip(weights, bias.split_with_sizes(widths), strict=True)]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make q, k, v: (B, H, W, C) -> three of (B, heads, N, D); v may have another D."""
        qkv = self.qkv(x).flatten(1, 2).split((self.qk_dim, self.qk_dim, self.dim), dim=-1)
        q, k, v = (to_heads(part, self.num_heads) for part in qkv)
        return q, k, v

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Term added to the scaled logits, (heads, N, N), or None; what connectivity forbids is not read."""
        return None

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """Term beside the softmax, like v: (B, heads, N, D). Here LePE over the whole map (CSWin, eq. 10)."""
        if self.lepe is None:
            return None
        _, height, width, _ = x.shape
        v_map = from_heads(v).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return to_heads(self.lepe(v_map).permute(0, 2, 3, 1).flatten(1, 2), self.num_heads)

    def output(self, y: Tensor) -> Tensor:
        """Merge heads and project: (B, heads, N, D) -> (B, N, C)."""
        projected: Tensor = self.proj(from_heads(y))
        return projected

    def finish(self, y: Tensor, v: Tensor) -> Tensor:
        """Close a forward: add LePE of v to the mixed values y, project; maps (B, H, W, C) in and out."""
        lepe = self.lepe
        if lepe is not None:
            y = with_lepe(lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), y)
        return bias_apart(self.proj, y)

    def reference(self, x: Tensor) -> Tensor:
        """Dense softmax over all N keys under `connectivity`: (B, H, W, C) -> same, in any dtype, O(N^2).

        A query that may read no key yields 0 before the value term, forward and backward.
        """
        q, k, v = self.project(x)
        y = masked_softmax(q, k, v, self.scale, self.logit_bias(*x.shape[1:3]), self.connectivity(x))
        term = self.value_term(x, v)
        return self.output(y if term is None else y + term).reshape(x.shape)

    def shared_macs(self, height: int, width: int) -> Macs:
        """Multiply-adds of the projections and of LePE, the same for every mechanism on one map."""
        tokens = height * width
        lepe = 0 if self.lepe is None else self.dim * self.lepe.kernel_size[0] * self.lepe.kernel_size[1]
        return Macs(
            projection=tokens * self.dim * (2 * self.qk_dim + 2 * self.dim),
            position=tokens * lepe,
        )

    def core_macs(self, queries: int, keys: int) -> int:
        """Multiply-adds of q k^T and of the weights times v, all heads together, for each query `keys` keys."""
        return queries * keys * (self.qk_dim + self.dim)


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, allowed: Tensor) -> Tensor:
    """Attend in the plainest way: (..., Nq, D), (..., Nk, D), (..., Nk, Dv) -> (..., Nq, Dv); an empty row gives 0."""
    logits = q @ k.mT * scale
    if bias is not None:
        logits = logits + bias
    # the lowest finite number, not -inf: a row of -inf alone would be NaN in forward and backward
    weights = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1) * allowed
    return weights @ v


def with_lepe(lepe: Tensor, y: Tensor) -> Tensor:
    """Add y to a view of what the LePE convolution returned, in its memory and order: (...) -> same."""
    # in place a backward pass would copy the gradient of the view
    return lepe + y if torch.is_grad_enabled() or lepe.dtype != y.dtype else lepe.add_(y)


def bias_apart(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer; a compiler adds the bias in the step that follows, not in a pass over the map."""
    if (
        makes_kernels()
        and type(layer) is nn.Linear
        and layer.bias is not None
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    ):
        product = F.linear(x, layer.weight)
        # which autocast leaves as wide as it is
        return product + layer.bias.to(product.dtype)
    made: Tensor = layer(x)
    return made


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, (..., Nq, D), (..., Nk, D), (..., Nk, Dv) -> (..., Nq, Dv), fused where torch can."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
