"""Values of the arguments of a sweep: each is read from text, so that Python and the command line allow the same."""

import re
from collections.abc import Callable, Iterable
from typing import Any

MIN_PX, MAX_PX = 32, 16384


def integer(low: int, what: str) -> Callable[[str], int]:
    """Return a reader of integers from `low` on; the readers below and theirs raise ValueError for other text."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", text) or int(text) < low:
            raise ValueError(f"{text!r} is not {what}, an integer of at least {low}")
        return int(text)

    return read


def choice(*known: str) -> Callable[[str], str]:
    """Return a reader of one of some words."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is not one of {', '.join(known)}")
        return text

    return read


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


def as_texts(given: Any, *, pairs: bool) -> tuple[str, ...]:
    """Write one value or a collection of them as texts; with `pairs` two integers in a tuple are one value, a size.

    Raises:
        ValueError: the collection is empty.
    """
    is_one = isinstance(given, str) or not isinstance(given, Iterable) or (pairs and _is_size(given))
    texts = tuple(map(as_text, [given] if is_one else given))
    if not texts:
        raise ValueError("it is empty; give at least one value")
    return texts


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)
