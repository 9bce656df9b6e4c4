"""Configurations of mechanisms that cut the map, and the rules for a map that does not divide into whole regions."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from attention_zoo.config import AttentionConfig
from attention_zoo.regions import Partition


@dataclass(frozen=True, kw_only=True)
class PartitionConfig(AttentionConfig):
    """What becomes of a map that does not divide into whole regions."""

    padding: Literal["mask", "official", "error"] = field(
        default="mask", metadata={"help": "padded tokens are masked, treated as in the published code, or refused"}
    )
    pad_side: Literal["end", "center"] | None = field(
        default=None, metadata={"help": "pad at the bottom and right, or on all sides; default: end, or as published"}
    )
    pad_moment: Literal["input", "projected"] | None = field(
        default=None, metadata={"help": "pad x or q, k, v with zeros that are read; only with padding=official"}
    )

    official_side: ClassVar[str] = "end"
    official_moment: ClassVar[str] = "input"
    """What the published code does: `input`, `projected`, `mask`, or `error` where it refuses."""

    def __post_init__(self) -> None:
        """Reject a moment without the rule that it belongs to.

        Raises:
            ValueError: `pad_moment` without padding="official", and what the base rejects.
        """
        super().__post_init__()
        if self.pad_moment is not None and self.padding != "official":
            raise ValueError(f"pad_moment={self.pad_moment} needs padding=official, got padding={self.padding}")

    @property
    def pad_rule(self) -> str:
        """`mask`, `error`, or zeros that are read: of the `input`, or `projected`."""
        return (self.pad_moment or self.official_moment) if self.padding == "official" else self.padding

    @property
    def is_centred(self) -> bool:
        """Whether padding lies on all sides."""
        return (self.pad_side or (self.official_side if self.padding == "official" else "end")) == "center"


@dataclass(frozen=True, kw_only=True)
class WindowConfig(PartitionConfig):
    """Windows of 7 x 7 tokens, as published; inside a pyramid, of the layout's window."""

    window: int | tuple[int, int] | None = field(
        default=None, metadata={"help": "tokens per side of a window (or grid), or HxW; default: the layout's, else 7"}
    )

    def __post_init__(self) -> None:
        """Reject windows that no map could make right.

        Raises:
            ValueError: a window below 1, and what the base rejects.
        """
        super().__post_init__()
        if min(self.sides) < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a window, tokens."""
        window = 7 if self.window is None else self.window
        return (window, window) if isinstance(window, int) else window

    def sides_on(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a window on a map: no longer than its sides, but for the published rule."""
        rows, cols = self.sides
        return (rows, cols) if self.padding == "official" else (min(rows, height), min(cols, width))


def check_padding(cut: Partition, rule: str) -> Partition:
    """Return the cut.

    Raises:
        ValueError: it needs padding, and the rule refuses that.
    """
    if rule == "error" and cut.is_padded:
        block = f"{cut.rows * cut.step_y}x{cut.cols * cut.step_x}"
        raise ValueError(
            f"a {cut.height}x{cut.width} map does not divide into blocks of {block} tokens, which padding=error or the "
            f"published code refuses; choose a size that divides, or padding=mask"
        )
    return cut
