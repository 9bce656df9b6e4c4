"""What may be asked of every figure: sizes and formats, and the error where a choice does not go with the rows."""

from dataclasses import dataclass
from pathlib import Path
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

PUBLISHED = Path(__file__).parents[2] / "results" / "published.csv"
"""Accuracies that papers published; it comes with a checkout."""

ACCURACIES = "measured, published (by papers: results/published.csv), or a .csv of such values"
"""Help of a flag `--accuracy`."""


def accuracy_file(text: str) -> Path | None:
    """Read what `--accuracy` says: the table of published accuracies, None for measured ones.

    Raises:
        ValueError: neither word, and no CSV file.
    """
    known = {"measured": None, "published": PUBLISHED}
    if text in known:
        return known[text]
    if Path(text).suffix != ".csv":
        raise ValueError(f"{text!r} is not measured, published, or a .csv file")
    return Path(text)


class Refused(ValueError):
    """A choice that does not go with the rows; its text begins with the name of the argument."""


class Crowded(ValueError):
    """More panels than one figure holds."""
