"""Values of the arguments of a sweep: each is read from text, so that Python and the command line allow the same."""

import re
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from typing import Any, NamedTuple

MIN_PX, MAX_PX = 32, 16384

PRECISIONS = ("fp32", "tf32", "amp-bf16", "amp-fp16", "bf16-weights", "fp16-weights")
"""By name: full, matrix products in TF32, autocast, and weights and images in half precision."""
EARLIER_PRECISIONS = {"bf16": "amp-bf16"}
"""What cells still write, and its name of today: their keys stay."""
SDPA = ("auto", "math", "flash", "efficient", "cudnn")
"""Kernels of scaled_dot_product_attention; `auto` is torch's own choice."""
MEMORY_FORMATS = ("contiguous", "channels_last")
HEADS: dict[str, tuple[str, ...]] = {
    "classify": (),
    "segment": ("semantic_fpn", "upernet"),
    "detect": ("retinanet",),
    "instance": ("mask_rcnn",),
}
"""Tasks, and the heads that each may have, the default first."""


class Argument(NamedTuple):
    """How a field of a dataclass is given: as `--name` on a command line, as a keyword in Python.

    `parse` reads one value from text and raises ValueError where it is not allowed; a switch has none. `several` are an
    axis, `default` is what the help says of it. `alone` is what the flag means without a value, if it may have none.
    `parts` divides the text of an axis into its values, by commas unless it is given.
    """

    name: str
    parse: Callable[[str], Any] | None = None
    metavar: str = ""
    help: str = ""
    several: bool = False
    default: str = ""
    alone: Any = None
    parts: Callable[[str], list[str]] | None = None

    def read(self, given: Any) -> Any:
        """Check what Python gives, plain values or text: a tuple where there may be several, else one value.

        Raises:
            ValueError: it is not allowed; the message names argument, value and what is allowed.
        """
        if self.parse is None:
            if not isinstance(given, bool):
                raise ValueError(f"{self.name}={given!r} is neither True nor False")
            return given
        values = read_values(self.name, given, self.parse, pairs=self.parse is resolution)
        if not self.several and len(values) > 1:
            raise ValueError(f"{self.name}={given!r}: it takes one value")
        return values if self.several else values[0]


def argument_field(default: Any, argument: Argument) -> Any:
    """Declare a field of a dataclass together with how it is given."""
    return field(default=default, metadata={"argument": argument})


def arguments(*classes: Any) -> dict[str, Argument]:
    """Arguments that give the fields of some dataclasses, by name."""
    declared = [f.metadata["argument"] for cls in classes for f in fields(cls) if "argument" in f.metadata]
    return {argument.name: argument for argument in declared}


def read_values(name: str, given: Any, parse: Callable[[str], Any] = str, *, pairs: bool = False) -> tuple[Any, ...]:
    """Read one or several plain values, each once; with `pairs` a tuple of two integers is one value, a size.

    Raises:
        ValueError: there is none, or one is not allowed.
    """
    is_one = isinstance(given, str) or not isinstance(given, Iterable) or (pairs and _is_size(given))
    try:
        values = tuple(dict.fromkeys(parse(as_text(value)) for value in ([given] if is_one else given)))
    except ValueError as error:
        raise ValueError(f"{name}={given!r}: {error}") from error
    if not values:
        raise ValueError(f"{name}={given!r} is empty; give at least one value")
    return values


def integer(low: int, what: str) -> Callable[[str], int]:
    """Return a reader of integers from `low` on."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", text) or int(text) < low:
            raise ValueError(f"{text!r} is not {what}, an integer of at least {low}")
        return int(text)

    return read


def rates(text: str) -> str:
    """Read two or more learning rates with commas between them; return them so."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(set(values)) < 2 or not all(0 < value < 10 for value in values):
        raise ValueError(f"{text!r} is not two or more learning rates between 0 and 10, such as 3e-4,1e-3,3e-3")
    return ",".join(f"{value:g}" for value in values)


def choice(*known: str) -> Callable[[str], str]:
    """Return a reader of one of some words."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is not one of {', '.join(known)}")
        return text

    return read


def data_parts(text: str) -> list[str]:
    """Divide data at their commas: `name=value` behind one belongs to the images of files before it."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and ":" in parts[-1] and re.match(r"\s*[a-z_]+=", part):
            parts[-1] += f",{part.strip()}"
        else:
            parts.append(part)
    return parts


def percent(text: str) -> int:
    """Read a percentage, 1 to 100."""
    value = integer(1, "a percentage")(text)
    if value > 100:
        raise ValueError(f"{text!r} is not a percentage of at most 100")
    return value


def switch(text: str) -> bool:
    """Read `on` or `off`."""
    return choice("on", "off")(text) == "on"


def precision(text: str) -> str:
    """Read how numbers are computed; `bf16` means autocast, as in earlier versions."""
    return choice(*PRECISIONS)(precision_today(text))


def precision_today(stored: str) -> str:
    """Name of a precision that a cell or a table of any version holds, as it is called today."""
    return EARLIER_PRECISIONS.get(stored, stored)


def resolution(text: str) -> tuple[int, int]:
    """Read the height and width of an image in pixels, `96x128`, or the side of a square one, `96`."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(MIN_PX <= side <= MAX_PX for side in sides):
        raise ValueError(f"{text!r} is not PX or HxW with sides of {MIN_PX} to {MAX_PX} pixels")
    return sides


def per_stage(what: str, words: tuple[str, ...] = ()) -> Callable[[str], str]:
    """Return a reader of one value, or one per stage separated by dashes, as text; `full` only among several."""

    def read(text: str) -> str:
        parts = text.split("-")
        allowed = (*words, "full") if len(parts) > 1 else words
        for part in parts:
            if not (re.fullmatch(r"[0-9]{1,9}", part) and int(part) >= 1) and part not in allowed:
                alternatives = "".join(f" or {word!r}" for word in words)
                raise ValueError(
                    f"{text!r} is not {what}: an integer of at least 1{alternatives}, or one per stage by dashes, "
                    f"such as 1-4-16-full"
                )
        return text

    return read


def as_text(value: Any) -> str:
    """Write a value as a command line spells it: on, off, none, 4x6 for (height, width)."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if _is_size(value):
        return f"{value[0]}x{value[1]}"
    return "none" if value is None else str(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(side) is int for side in value)
