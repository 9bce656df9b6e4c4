"""What a mechanism from outside the zoo must fulfil before a sweep spends time on it."""

from typing import Any

import torch

from attention_zoo.base import Attention, Macs
from attention_zoo.config import AttentionConfig

DIM, HEADS, HEIGHT, WIDTH = 24, 2, 5, 6
"""The map of the check: not square, and of sides that few partitions divide."""


def check_contract(name: str, cls: Any) -> type[Attention]:
    """Build a mechanism with its defaults and try it on a small non-square map, in float64; returns it.

    Raises:
        ValueError: it is no `Attention`, has no frozen `Config`, lacks `macs` or `connectivity`, changes shape or
            type, or its `forward` and `reference` disagree.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"mechanism {name!r} breaks the contract: {reason}")

    if not (isinstance(cls, type) and issubclass(cls, Attention)):
        raise refuse(f"it must be a subclass of attention_zoo.Attention, got {cls!r}")
    config = cls.Config
    # a subclass that is not decorated itself inherits the fields of its parents, and its own are lost
    is_declared = isinstance(config, type) and "__dataclass_fields__" in vars(config)
    if not (is_declared and issubclass(config, AttentionConfig)):
        raise refuse(f"its Config must be a frozen dataclass that extends AttentionConfig, got {config!r}")
    if cls.macs is Attention.macs:
        raise refuse("it has no macs(height, width)")
    if cls.connectivity is Attention.connectivity and cls.reference is Attention.reference:
        raise refuse("it has neither connectivity(x) nor a reference(x) of its own")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, HEIGHT, WIDTH, DIM, generator=generator, dtype=torch.float64, device="cpu")
    try:
        # whoever resolves the name may be building a model on the meta device, which has no numbers to compare
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            attention = cls(DIM, HEADS, config()).double().eval()
            y, slow, macs = attention(x), attention.reference(x), attention.macs(HEIGHT, WIDTH)
            geometry = attention.geometry(HEIGHT, WIDTH)
    except Exception as error:
        where = f"a {HEIGHT}x{WIDTH} map of {DIM} channels, {HEADS} heads"
        raise refuse(f"on {where} it raises {type(error).__name__}: {error}") from error
    wanted = _describe(x)
    for road, result in (("forward", y), ("reference", slow)):
        if _describe(result) != wanted:
            raise refuse(f"{road} must return {wanted} as it is given, got {_describe(result)}")
    if not isinstance(macs, Macs):
        raise refuse(f"macs(height, width) must return attention_zoo.Macs, got {type(macs).__name__}")
    if "pad_ratio" not in geometry:
        raise refuse(f"geometry(height, width) must hold pad_ratio, got {geometry}")
    if not torch.allclose(y, slow, rtol=1e-6, atol=1e-9):
        raise refuse(f"forward and reference differ by {(y - slow).abs().max():.2g} in float64")
    return cls


def _describe(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
