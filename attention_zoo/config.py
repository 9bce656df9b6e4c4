"""The frozen configuration that each mechanism extends, and how its fields are read from text."""

import functools
import math
import types
import typing
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    from attention_zoo.layouts import Layout

FULL = "full"
"""In a per-stage schedule: full attention at this stage, whatever the mechanism."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What every mechanism has; a mechanism's own `Config` adds its fields beside its class."""

    qkv_bias: bool = field(default=True, metadata={"help": "bias of the q, k, v projection"})
    lepe: bool = field(default=False, metadata={"help": "depth-wise convolution of v added to the output (LePE)"})
    lepe_kernel: int = field(default=5, metadata={"help": "side of the LePE kernel, tokens, odd"})
    qk_scale: float | None = field(default=None, metadata={"help": "factor on the logits; default: published"})
    impl: Literal["auto", "reference", "plain", "tiles", "gather", "dense", "flex"] = field(
        default="auto", metadata={"help": "how it is computed, never what; each mechanism has some of these"}
    )

    period: ClassVar[int] = 1
    """Blocks after which the mechanism's alternation repeats; a stage with fewer never completes it."""

    def __post_init__(self) -> None:
        """Reject values that no map could make right.

        Raises:
            ValueError: a value of another type than its field's, an even or non-positive `lepe_kernel`, a `qk_scale`
                that is not positive.
        """
        check_fields(self)
        if self.lepe_kernel < 1 or self.lepe_kernel % 2 == 0:
            raise ValueError(f"lepe_kernel must be odd and at least 1, got {self.lepe_kernel}")
        if self.qk_scale is not None and not 0 < self.qk_scale < math.inf:
            raise ValueError(f"qk_scale must be positive and finite, got {self.qk_scale}")

    def at(self, stage: int, block: int, layout: "Layout") -> Self:
        """Return the configuration of one block of a host (both counted from 0); called by the pyramid alone."""
        return self

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, checked like a new one."""
        return replace(self, **changes)


def check_fields(config: Any) -> None:
    """Check the values of a dataclass against the types of its fields.

    Raises:
        ValueError: a value is of another type.
    """
    for name in field_names(type(config)):
        options, value = _options(type(config), name), getattr(config, name)
        if not any(_fits(option, value) for option in options):
            raise ValueError(f"{name} takes {' or '.join(map(_describe, options))}; got {value!r}")


def field_names(config: type[Any]) -> list[str]:
    """Names of the fields that `create` and `--set` accept for a mechanism, or for another dataclass."""
    return [f.name for f in fields(config)]


def parse_field(config: type[Any], name: str, text: str) -> Any:
    """Read one value of a config field from text: `4`, `0.5`, `on`, `off`, `none`, `auto`, `4x6`.

    Raises:
        ValueError: no such field, or text that is none of the field's types.
    """
    if name not in field_names(config):
        raise ValueError(f"no field {name!r}; known: {', '.join(field_names(config))}")
    options = _options(config, name)
    for option in options:
        try:
            return _parse(option, text)
        except ValueError:
            continue
    raise ValueError(f"{name} takes {' or '.join(map(_describe, options))}; got {text!r}")


def parse_values(config: type[AttentionConfig], name: str, text: str) -> list[Any]:
    """Read a field's text that holds one value, or one per stage separated by dashes, where `full` is allowed.

    Raises:
        ValueError: no such field, or text that is none of the field's types.
    """
    try:
        return [parse_field(config, name, text)]
    except ValueError:
        parts = text.split("-")
        if len(parts) == 1 or not all(parts):
            raise
    return [part if part == FULL else parse_field(config, name, part) for part in parts]


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _options(config: type, name: str) -> tuple[Any, ...]:
    """Types that a field may have."""
    hint = _hints(config)[name]
    # a union with a Literal in it is typing's own kind, every other one is types.UnionType
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(option: Any, value: Any) -> bool:
    """Whether a value is of one type of a hint; of types that no text can name, any is."""
    if option is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option in (bool, str, types.NoneType):
        return isinstance(value, option)
    if typing.get_origin(option) is typing.Literal:
        return value in typing.get_args(option)
    if typing.get_origin(option) is tuple:
        return isinstance(value, tuple) and len(value) == 2 and all(_fits(int, side) for side in value)
    return True


_SWITCH = {"on": True, "true": True, "off": False, "false": False}
_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "on|off",
    types.NoneType: "none",
    str: "text",
}


def _describe(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return "|".join(typing.get_args(option))
    return _WORDS.get(option, "HxW")


def _parse(option: Any, text: str) -> Any:
    """Read text as one type of a hint; ValueError if it is not of that type."""
    if option in (int, float, str):
        return option(text)
    if option is bool and text.lower() in _SWITCH:
        return _SWITCH[text.lower()]
    if option is types.NoneType and text.lower() == "none":
        return None
    if typing.get_origin(option) is typing.Literal and text in typing.get_args(option):
        return text
    if typing.get_origin(option) is tuple and text.count("x") == 1:
        height, width = text.split("x")
        return int(height), int(width)
    raise ValueError(text)
