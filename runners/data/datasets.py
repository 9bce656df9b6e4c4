"""The data a cell can be trained on: names, options and the interface, without torch.

A spec is a name and options, separated by colons because a comma is a sweep axis:
`digit-vote`, `digit-vote:jitter=3:noise=0.1`, `digit-recall`, `fashion-mnist`. Images of files are named as
`runners.data.image_specs` says.
"""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from runners.data.image_specs import USAGE, is_image_spec, parse_image_spec

if TYPE_CHECKING:
    from torch import Tensor

GRID = 4  # cells along each side of a digit probe's canvas
HELD_OUT_SHARE = 0.1
"""Of the training images, on which hyperparameters are chosen."""

DIGITS_AND_CLOTHES = 10  # classes of each of them
FASHION_IMAGES = {"train": 60_000, "t10k": 10_000}  # by the prefix of the files


class Data(Protocol):
    """A training stream and a fixed test set; images are (B, 3, height_px, width_px) float32, normalised.

    What is right of them are labels (B,) int64, or what a dense task has: runners/dense/data.py.
    """

    batch_size: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def ceiling_percent(self) -> float | None:
        """What a model gets that recognises every object but cannot relate them; None: no such figure."""
        ...

    @property
    def chance_percent(self) -> float | None:
        """What guessing gets; None where nobody guesses."""
        ...

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the training images, None for an endless stream."""
        ...

    def batch(self, seed: int, step: int) -> "tuple[Tensor, Any]":
        """Training batch of one step: a pure function of (seed, step), so it may be repeated or prefetched."""
        ...

    def eval_batches(self) -> "Iterator[tuple[Tensor, Any]]":
        """Test set, the same images in the same order whatever the batch size; the last batch may be smaller."""
        ...

    def for_tuning(self) -> "Data":
        """Training images alone, divided into some to train on and others to test on."""
        ...


@runtime_checkable
class SharedData(Protocol):
    """Data whose batches several processes share out themselves; `broken` names images that could not be read."""

    broken: dict[str, str]

    def train_batches(self, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1) -> "Iterator[Any]":
        """Yield a process's part of the batches of the steps start .. stop - 1, each a `runners.data.images.Batch`."""
        ...

    def eval_batches(self, rank: int = 0, world_size: int = 1) -> "Iterator[tuple[Tensor, Any]]":
        """Yield a process's part of the test images, and what is right of them."""
        ...


@dataclass(frozen=True)
class Option:
    """One `name=value` of a spec: its type, its allowed range and what it means."""

    parse: type[int] | type[float]
    high: float
    help: str

    def read(self, name: str, text: str) -> int | float:
        """Return the value that `text` spells.

        Raises:
            ValueError: not a number of this type, or outside 0 .. high.
        """
        try:
            value = self.parse(text)
        except ValueError:
            value = math.nan
        if not (0 <= value <= self.high and math.isfinite(value)):
            kind = "an integer" if self.parse is int else "a number"
            upper = f" to {self.high:g}" if math.isfinite(self.high) else " up"
            raise ValueError(f"data option {name!r} must be {kind} from 0{upper} ({self.help}), got {text!r}")
        return value


PROBE_OPTIONS = {
    "jitter": Option(int, math.inf, "px by which the tile grid of each image is shifted at most, in y and x"),
    "noise": Option(float, 1.0, "standard deviation of the pixel noise, on images in [0, 1]"),
}
DATASETS: dict[str, dict[str, Option]] = {
    "digit-vote": PROBE_OPTIONS,
    "digit-recall": PROBE_OPTIONS,
    "fashion-mnist": {},
}


def parse_data(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and the options that it states.

    Raises:
        ValueError: unknown name or option, malformed, repeated or out-of-range value.
    """
    name, *parts = spec.split(":")
    if name not in DATASETS:
        known = f"known: {', '.join([*DATASETS, *USAGE.values(), 'package.module:Class'])}"
        if "=" in name:
            raise ValueError(f"data {spec!r} has no name; write NAME:option=value:option=value ({known})")
        raise ValueError(f"unknown data {name!r}; {_nearest(name, DATASETS)}{known}")
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, text = part.partition("=")
        allowed = f"options of {name}: {', '.join(DATASETS[name]) or 'none'}"
        if key not in DATASETS[name]:
            raise ValueError(f"unknown option {key!r} in data {spec!r}; {_nearest(key, DATASETS[name])}{allowed}")
        if not equals or key in options:
            raise ValueError(f"option {key!r} in data {spec!r} must be given once, as {key}=VALUE; {allowed}")
        options[key] = DATASETS[name][key].read(key, text)
    return name, options


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def check_data(spec: str, height_px: int | None = None, width_px: int | None = None) -> None:
    """Check a spec at plan time, against the resolution too where it is given; imports neither torch nor sklearn.

    Raises:
        ValueError: what `parse_data` raises, or a jitter that could move a tile off the canvas.
    """
    if is_image_spec(spec):
        parse_image_spec(spec)
        return
    _, options = parse_data(spec)
    sides = [side for side in (height_px, width_px) if side is not None]
    cell_px = min(sides, default=GRID * (1 << 30)) // GRID
    if options.get("jitter", 0) >= cell_px:
        raise ValueError(
            f"data {spec!r} at {height_px}x{width_px} px: jitter must be below the tile side, {cell_px} px, "
            f"got {options['jitter']}"
        )


def count_classes(spec: str) -> int:
    """Return the number of classes of some data.

    Raises:
        ValueError: an unknown spec, or images that are not there.
    """
    if is_image_spec(spec):
        from runners.data.folders import open_folders

        return len(open_folders(spec).classes)
    parse_data(spec)
    return DIGITS_AND_CLOTHES


def steps_per_epoch(spec: str, batch_size: int, repeats: int = 1, *, tuning: bool = False) -> int | None:
    """Return the optimiser steps of one pass over the training images, None for an endless stream.

    With `repeats` an image of a file comes that often in an epoch, which has no more images than without. For `tuning`
    some of the training images are held out.

    Raises:
        ValueError: an unknown spec, images that are not there, or a batch larger than the training set.
    """
    if is_image_spec(spec):
        # timm's readers take a second to import, and the probes do not need them
        from runners.data.folders import open_folders
        from runners.data.order import images_per_epoch

        folders = open_folders(spec)
        images = images_per_epoch(len((folders.divided(HELD_OUT_SHARE) if tuning else folders).train_indices), repeats)
        if not 1 <= batch_size <= images:
            raise ValueError(f"batch size must be 1 to {images} for {spec}, got {batch_size}")
        return images // batch_size
    name, _ = parse_data(spec)
    if name != "fashion-mnist":
        return None
    images = FASHION_IMAGES["train"] - tuning * round(HELD_OUT_SHARE * FASHION_IMAGES["train"])
    if not 1 <= batch_size <= images:
        raise ValueError(f"batch size must be 1 to {images} for {name}, got {batch_size}")
    return images // batch_size
