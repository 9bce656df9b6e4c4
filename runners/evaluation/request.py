"""What an evaluation is asked to do; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """A model, the images, and how they are prepared.

    `resolution` are heights and widths in pixels, none for the model's own; `crop_pct` None is the model's own.
    """

    model: str | None
    data: str
    out: Path
    checkpoint: Path | None = None
    ema: bool = False
    attn: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    resolution: tuple[tuple[int, int], ...] = ()
    crop_pct: float | None = None
    label_map: Path | None = None
    real_labels: Path | None = None
    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    device: str = "auto"
    threads: int | None = None

    def check(self) -> None:
        """Check what can be checked without reading images and weights.

        Raises:
            ValueError: no model, or no such file.
        """
        if self.model is None and self.checkpoint is None:
            raise ValueError("--model NAME is missing; it may be left out where --checkpoint FILE says what it holds")
        if self.ema and self.checkpoint is None:
            raise ValueError("--ema takes the moving average out of a --checkpoint FILE, which is missing")
        files = {"--checkpoint": self.checkpoint, "--label-map": self.label_map, "--real-labels": self.real_labels}
        for flag, path in files.items():
            if path is not None and not path.is_file():
                raise ValueError(f"{flag} {path}: no such file")
