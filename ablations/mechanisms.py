"""Cells of a study by mechanism: `bra(topk=[1, 4]) + vanilla()`, any name, without importing the mechanisms."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ablations.study import Axes


def mechanism(*names: str, **values: Any) -> Axes:
    """Return the cells of some mechanisms, by name or as `package.module:Class`; every combination of values is one.

    `values` are fields of their configurations or arguments of a sweep, such as `seeds`. A list makes an axis, a pair
    (height, width) is one value, and a string with dashes has a value for each stage: `topk="1-4-16-full"`.

    Raises:
        ValueError: a value is not allowed; which mechanism has which field is known when the cells are planned.
    """
    return Axes().changed({"attn": names, **values})


def model(*names: str, **values: Any) -> Axes:
    """Return the cells of some models, published ones such as `swin_tiny` or any of timm as `timm:NAME`.

    Raises:
        ValueError: a value is not allowed.
    """
    return Axes().changed({"model": names, **values})


def __getattr__(name: str) -> Callable[..., Axes]:
    """Return `mechanism` for a name, so that `from ablations.mechanisms import swin` needs no list of them."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(mechanism, name)
