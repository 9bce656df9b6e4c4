"""The curve of a training: a CSV with a line for each step, `curve.<device_id>.csv` in the folder of its cell.

It grows while the training runs, so its last line may be cut off; the lines before are whole. Beside it, where asked
for, lie TensorBoard's own files.
"""

import math
from pathlib import Path
from typing import NamedTuple

from runners.store.store import Store

MAX_BYTES = 64 << 20
"""Twice what 375,000 steps take, which are 300 epochs of ImageNet in batches of 1024."""


class Point(NamedTuple):
    """A step, counted from 1, with what was seen of it; the names are the header of the file.

    `epoch` counts passes over the training images up to the end of the step, None where these have no end; `acc1`
    (percent; miou or ap where that is what the task is judged by) and `val_loss` (nats) are there where the model was
    evaluated after the step.
    """

    step: int
    epoch: float | None
    loss: float
    lr: float
    img_per_s: float | None = None
    acc1: float | None = None
    val_loss: float | None = None

    def line(self) -> str:
        """Write it as a line of the file; what is missing is empty, and the loss keeps every digit."""
        epoch = None if self.epoch is None else f"{self.epoch:.4f}"
        speed = None if self.img_per_s is None else f"{self.img_per_s:.1f}"
        found = (self.step, epoch, repr(self.loss), f"{self.lr:.6g}", speed, self.acc1, self.val_loss)
        return ",".join("" if value is None else str(value) for value in found) + "\n"

    @staticmethod
    def parse(line: str) -> "Point":
        """Read a line of the file.

        Raises:
            ValueError: it has other fields, or one that is no finite number.
        """
        fields = line.split(",")
        if len(fields) != len(Point._fields):
            raise ValueError(f"{len(fields)} fields, not {len(Point._fields)}")
        step, epoch, loss, lr = int(fields[0]), _optional(fields[1]), float(fields[2]), float(fields[3])
        found = (epoch, loss, lr, *map(_optional, fields[4:]))
        if not all(value is None or math.isfinite(value) for value in found):
            raise ValueError("a number that is not finite")
        return Point(step, epoch, loss, lr, *found[3:])


def _optional(text: str) -> float | None:
    return float(text) if text else None


HEADER = ",".join(Point._fields) + "\n"


def curve_path(store: Store, key: str, device_id: str) -> Path:
    """Where the curve of a cell's training on a device lies.

    Raises:
        StoreError: the folder of the cell would be reached through a link.
    """
    return store.folder(key) / f"curve.{device_id}.csv"


def board_folder(store: Store, key: str, device_id: str) -> Path:
    """Where TensorBoard's files of a cell's training on a device lie, if they were asked for."""
    return store.folder(key) / f"tensorboard.{device_id}"


def device_of(name: str) -> str | None:
    """Device in the name of the file of a curve, None for any other file."""
    is_curve = name.startswith("curve.") and name.endswith(".csv") and len(name) > len("curve..csv")
    return name.removeprefix("curve.").removesuffix(".csv") if is_curve else None
