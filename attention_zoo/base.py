"""The contract of a mechanism, and the slow oracle that its `forward` is compared with."""

import functools
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.config import AttentionConfig
from attention_zoo.regions import from_heads, to_heads


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-adds of matrix products and convolutions for one image (1 MAC = 2 FLOPs).

    `projection`: q, k, v and the output, and what reduces a map before. `core`: q k^T and the weights times v.
    `routing`: what chooses keys. `position`: LePE and networks that make biases. `host`: everything around the mixer.
    """

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
        return Macs(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Example:
    """A setting that shows which keys a mechanism reads, on a map of 12 x 16 tokens; `turn` counts alternating blocks.

    `reads` says in words what one query reads.
    """

    reads: str
    config: dict[str, Any] = field(default_factory=dict)
    turn: int | None = None


class Attention(nn.Module):
    """A token mixer: (B, H, W, C) -> (B, H, W, C) on a map of any size.

    A mechanism names its `Config`, and writes `forward`, `connectivity` and `macs`. If it is one masked softmax, its
    oracle `reference` follows from the small parts `project`, `scale`, `logit_bias`, `value_term` and `output`;
    otherwise it writes `weights` and `values`, or `reference`, too, as plainly as it can. A check of the map comes
    before `forward`, and `impl="reference"` takes its place by `reference`.

    Raises:
        ValueError: `dim` or the width of q and k is not a multiple of `num_heads`, or it has no such `impl`.
    """

    Config: ClassVar[type[AttentionConfig]] = AttentionConfig
    impls: ClassVar[tuple[str, ...]] = ("plain",)
    """Ways in which `forward` computes, all of one meaning; the first is the one whose products `macs` counts."""
    old_impls: ClassVar[dict[str, str]] = {"gather": "plain"}
    """Names that ways to compute had before, which configurations may still use."""

    paper: ClassVar[str] = ""
    """arXiv id."""
    reads: ClassVar[str] = ""
    """What a query reads, in words."""
    cost: ClassVar[str] = ""
    """MACs of one map in closed form, as text."""
    legend: ClassVar[str] = ""
    """Name in figures; by default the name that it is registered under."""
    exponent: ClassVar[Fraction | None] = None
    """Power of the number of tokens that the core's MACs grow with on large maps, at fixed settings."""
    examples: ClassVar[tuple[Example, ...]] = ()
    """What pictures of its connectivity show; by default its default configuration."""

    def __init__(self, dim: int, num_heads: int, config: AttentionConfig, *, qk_dim: int | None = None) -> None:
        """Make the projections and the LePE convolution that all mechanisms share."""
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        for name, width in (("dim", dim), ("qk_dim", qk_dim)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(f"{name} must be a positive multiple of num_heads, got {name}={width}, {num_heads=}")
        self.config: Any = config
        self.impl: str = self._known_impl(config.impl)
        self.dim, self.num_heads, self.qk_dim = dim, num_heads, qk_dim
        self.scale: float = config.qk_scale or (qk_dim // num_heads) ** -0.5
        self.qkv: Any = nn.Linear(dim, 2 * qk_dim + dim, bias=config.qkv_bias)
        self.lepe = (
            nn.Conv2d(dim, dim, config.lepe_kernel, padding=config.lepe_kernel // 2, groups=dim)
            if config.lepe
            else None
        )
        self.proj: nn.Module = nn.Linear(dim, dim)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let every `forward` begin with the same checks."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = _checked(vars(cls)["forward"])  # type: ignore[method-assign]

    @classmethod
    def _known_impl(cls, impl: str) -> str:
        known = ["auto", "reference", *cls.impls]
        impl = impl if impl in known else cls.old_impls.get(impl, impl)
        if impl not in known:
            raise ValueError(f"impl={impl}: {cls.__name__} has {', '.join(known)}")
        return impl

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: (B, H, W, C) -> same. A class of an older version may have written it as `fast`.

        Raises:
            ValueError: x is no map of `dim` channels, or has no tokens.
        """
        self.check_map(x)
        if self.impl == "reference":
            return self.reference(x)
        if not hasattr(self, "fast"):
            raise NotImplementedError(f"{type(self).__name__} has no forward")
        return self.fast(x)  # type: ignore[operator]

    def check_map(self, x: Tensor) -> None:
        """Check what `forward` is given.

        Raises:
            ValueError: x is no map of `dim` channels, or has no tokens.
        """
        if x.dim() != 4 or x.shape[3] != self.dim:
            raise ValueError(
                f"{type(self).__name__} mixes maps (B, H, W, C) of C={self.dim} channels, got shape {tuple(x.shape)}"
                f"{self._advice(x)}"
            )
        if not (x.shape[1] and x.shape[2]):
            raise ValueError(f"a map needs a token at least, got {x.shape[1]}x{x.shape[2]} (height x width)")

    @property
    def projections(self) -> list[tuple[Any, nn.Module]]:
        """Layers that make q, k, v, and the one that ends it, a pair for each softmax; a host starts all of them."""
        return [(self.qkv, self.proj)]

    def _advice(self, x: Tensor) -> str:
        """How an input in one of the other common orders becomes a map."""
        if x.dim() == 4 and x.shape[1] == self.dim:
            return ": for (B, C, H, W) give x.permute(0, 2, 3, 1), and permute the result by (0, 3, 1, 2)"
        if x.dim() == 3 and x.shape[2] == self.dim:
            return ": for tokens (B, N, C) give x.unflatten(1, (height, width)), and take result.flatten(1, 2)"
        return ""

    def impl_on(self, height: int, width: int) -> str:
        """How `forward` computes on a map of this size: one of `impls`, or `reference`. It depends on nothing else."""
        return self.impls[0] if self.impl == "auto" else self.impl

    def usable_impls(self) -> tuple[str, ...]:
        """Those of `impls` that this configuration has."""
        return self.impls

    def connectivity(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """May query i read key j? Boolean, broadcasts to (B, heads, N or the given query indices, N).

        Written in coordinates, never through the reshape that `forward` uses. x: (B, H, W, C), since routing
        depends on content.
        """
        raise NotImplementedError(f"{type(self).__name__} has no connectivity")

    def macs(self, height: int, width: int) -> Macs:
        """Closed form of the multiply-adds on one map, what padding adds included."""
        raise NotImplementedError(f"{type(self).__name__} has no macs")

    @classmethod
    def core_exponent(cls, config: AttentionConfig) -> Fraction | None:
        """Power of the number of tokens that the core's MACs grow with under this configuration; None: unknown."""
        return cls.exponent

    def geometry(self, height: int, width: int) -> dict[str, Any]:
        """What the mechanism chooses on a map of this size, for the row; `pad_ratio` = padded / own tokens - 1.

        Raises:
            ValueError: the configuration does not fit the map.
        """
        return {"pad_ratio": 0.0}

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make q, k, v: (B, H, W, C) -> three of (B, heads, N, D); v may have another D."""
        qkv = self.qkv(x).flatten(1, 2).split((self.qk_dim, self.qk_dim, self.dim), dim=-1)
        q, k, v = (to_heads(part, self.num_heads) for part in qkv)
        return q, k, v

    def add_lepe(self, y: Tensor, v: Tensor) -> Tensor:
        """Add LePE of v, a depth-wise convolution, to the mixed values y, where there is one: maps (B, H, W, C)."""
        return y if self.lepe is None else y + self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def logit_bias(self, height: int, width: int) -> Tensor | None:
        """Term added to the scaled logits, (heads, N, N), or None; what connectivity forbids is not read."""
        return None

    def query_bias(self, height: int, width: int, queries: Tensor) -> Tensor | None:
        """Return the rows of `logit_bias` that belong to these queries, (heads, Q, N), or None."""
        bias = self.logit_bias(height, width)
        return None if bias is None else bias[:, queries]

    def value_term(self, x: Tensor, v: Tensor) -> Tensor | None:
        """Term beside the softmax, like v: (B, heads, N, D). Here LePE over the whole map (CSWin, eq. 10)."""
        if self.lepe is None:
            return None
        _, height, width, _ = x.shape
        v_map = from_heads(v).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return to_heads(self.lepe(v_map).permute(0, 2, 3, 1).flatten(1, 2), self.num_heads)

    def output(self, y: Tensor) -> Tensor:
        """Merge heads and project: (B, heads, N, D) -> (B, N, C)."""
        return self.proj(from_heads(y))

    def weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Oracle: attention of all tokens, or of those with these indices, over all keys: (B, heads, N or queries, K).

        Here the keys are the tokens: a dense softmax under `connectivity`, in any dtype, O(N^2). A query that may read
        no key has weights of 0.
        """
        _, height, width, _ = x.shape
        q, k, _ = self.project(x)
        if queries is None:
            return softmax_weights(q, k, self.scale, self.logit_bias(height, width), self.connectivity(x))
        bias, allowed = self.query_bias(height, width, queries), self.connectivity(x, queries)
        return softmax_weights(q[:, :, queries], k, self.scale, bias, allowed)

    def values(self, x: Tensor) -> Tensor:
        """Values that `weights` weigh: (B, heads, K, D)."""
        return self.project(x)[2]

    def on_map(self, x: Tensor, weights: Tensor) -> Tensor:
        """Spread `weights` of x over the tokens that each key is made of: (B, heads, Q, K) -> (B, heads, Q, H, W)."""
        return weights.unflatten(-1, x.shape[1:3])

    def reference(self, x: Tensor) -> Tensor:
        """Slow oracle: `weights` times values, the term beside them, projected: (B, H, W, C) -> same."""
        values = self.values(x)
        y, term = self.weights(x) @ values, self.value_term(x, values)
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


def _checked(forward: Any) -> Any:
    """Check the map before a `forward` runs, and leave it to the oracle where that was asked for."""

    @functools.wraps(forward)
    def checked_forward(self: Attention, x: Tensor) -> Tensor:
        self.check_map(x)
        return self.reference(x) if self.impl == "reference" else forward(self, x)

    return checked_forward


def softmax_weights(q: Tensor, k: Tensor, scale: float, bias: Tensor | None, allowed: Tensor) -> Tensor:
    """Weights of the allowed keys, in the plainest way: (..., Q, D), (..., K, D) -> (..., Q, K); an empty row is 0."""
    logits = q @ k.mT * scale
    if bias is not None:
        logits = logits + bias
    # the lowest finite number, not -inf: a row of -inf alone would be NaN in forward and backward
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1) * allowed


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, (B, heads, Nq, D), (B, heads, Nk, D), (B, heads, Nk, Dv) -> (B, heads, Nq, Dv), fused."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
