"""JSON as it is written and read here: no NaN, no infinities, and no deeper than anybody needs."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Levels inside one another; what is written here has ten at most."""


def plain(value: Any) -> Any:
    """Reduce a value to strict JSON: NaN is null, infinities are strings, arrays and tensors are lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def parse(text: str) -> Any:
    """Value of a text.

    Raises:
        ValueError: it is no strict JSON, or is nested too deeply.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # counting characters is quick, and mostly enough
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError("it is nested too deeply")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _is_deeper(value: Any, levels: int) -> bool:
    here = [value]
    for _ in range(levels):
        inner = [item.values() if isinstance(item, dict) else item for item in here if isinstance(item, dict | list)]
        if not inner:
            return False
        here = [item for items in inner for item in items]
    return any(isinstance(item, dict | list) for item in here)
