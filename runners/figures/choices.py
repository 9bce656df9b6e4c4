"""What may be asked of every figure: sizes and formats, and the error where a choice does not go with the rows."""

from dataclasses import dataclass
from typing import Literal

SizeName = Literal["column", "page"]
Format = Literal["png", "svg", "pdf"]

FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Size:
    """A width of print, inches, and the columns of panels that fit it."""

    width: float
    columns: int


SIZES: dict[SizeName, Size] = {"column": Size(3.3, 1), "page": Size(6.9, 2)}
"""One column of a paper, and the width of its page."""


class Refused(ValueError):
    """A choice that does not go with the rows; its text begins with the name of the argument."""
