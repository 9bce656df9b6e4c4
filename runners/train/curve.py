"""Writes what a training does, step by step: its CSV (runners/store/curve.py), and TensorBoard's files if asked for.

A training that goes on from a saved state ends with the file of one that was never cut off, but for the speed of steps
whose lines were lost: what lies beyond the state is cut away, and what is missing is written again from its losses.
Nothing here can fail a training or move its numbers: what cannot be written is one line of warning.
"""

import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from runners.store.curve import HEADER, MAX_BYTES, Point
from runners.store.files import read_bytes

EVERY_S = 5.0
"""Time between two writes."""


class Curve:
    """The curve of one training, a context manager around it; of several processes the first alone has one.

    The last line may still get an evaluation, so it is kept and written again with those that follow.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        steps_per_epoch: int | None,
        board: "Board | None" = None,
        every_s: float = EVERY_S,
        metric: str = "acc1",
    ) -> None:
        """Name the file; nothing is written before `resume`."""
        self.path, self.batch_size, self.steps_per_epoch = path, batch_size, steps_per_epoch
        self.board, self.every_s, self.metric = board, every_s, metric
        self._points: list[Point] = []
        self._size = 0  # bytes of the lines before these
        self._file: int | None = None
        self._written_at = time.monotonic()
        self._has_warned = False
        self.is_whole = False
        """Whether the file held every step when it was last written."""

    def __enter__(self) -> "Curve":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left."""
        self._write()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self.board is not None:
            self.board.close()

    def resume(self, losses: Sequence[float], rate_of: Callable[[int], float]) -> None:
        """Bring the file to the state after these steps; `rate_of` is the learning rate of a step, counted from 0."""
        before = self._before(len(losses))
        points = []
        for step, loss in enumerate(losses, 1):
            known = before[step - 1] if step <= len(before) else None
            is_same = known is not None and (known.step, known.loss) == (step, loss)
            fresh = Point(step, self._epoch(step), loss, rate_of(step - 1))
            points.append(known if known is not None and is_same else fresh)
        try:
            self._file = _opened(self.path)
            os.ftruncate(self._file, 0)
            self._size = os.pwrite(self._file, HEADER.encode(), 0)
        except OSError as error:
            self._warn(error)
        self._points = points
        self._write()
        if self.board is not None:
            self.board.begin(len(losses))

    def step(self, step: int, loss: float, rate: float, seconds: float) -> None:
        """Add a step, counted from 1, that took so long."""
        speed = self.batch_size / seconds if seconds > 0 else None
        point = Point(step, self._epoch(step), loss, rate, speed)
        self._points.append(point)
        if self.board is not None:
            self.board.add(step, {"train/loss": loss, "train/lr": rate, "train/img_per_s": speed})
        if time.monotonic() - self._written_at >= self.every_s:
            self._write()

    def evaluation(self, step: int, score: float, val_loss: float | None) -> None:
        """Add what an evaluation after the last step found: the metric of the task, and the loss if there is one.

        Raises:
            ValueError: it is of another step.
        """
        if not self._points or self._points[-1].step != step:
            last = self._points[-1].step if self._points else 0
            raise ValueError(f"an evaluation after step {step}, and the last step is {last}")
        loss = val_loss if val_loss is not None and math.isfinite(val_loss) else None
        self._points[-1] = self._points[-1]._replace(acc1=score, val_loss=loss)
        if self.board is not None:
            self.board.add(step, {f"eval/{self.metric}": score, "eval/val_loss": loss})
        self._write()

    def _epoch(self, step: int) -> float | None:
        return None if self.steps_per_epoch is None else step / self.steps_per_epoch

    def _before(self, most: int) -> list[Point]:
        """Lines of an earlier part of this training that can be used, at most so many."""
        if not most:
            return []
        try:
            lines = read_bytes(str(self.path), MAX_BYTES).decode().split("\n")[:-1]
        except (OSError, ValueError):
            return []
        points: list[Point] = []
        for line in lines[1 : most + 1] if lines[:1] == [HEADER.strip()] else []:
            try:
                points.append(Point.parse(line))
            except ValueError:
                break
        return points

    def _write(self) -> None:
        """Write the lines that are not in the file yet, and the last one again."""
        self._written_at = time.monotonic()
        if self._file is None or not self._points:
            return
        *whole, last = (point.line().encode() for point in self._points)
        content = b"".join((*whole, last))
        try:
            if os.pwrite(self._file, content, self._size) < len(content):
                raise OSError(0, "No space left on device")
            os.ftruncate(self._file, self._size + len(content))
        except OSError as error:  # the next write begins at the same place
            self.is_whole = False
            self._warn(error)
            return
        self.is_whole = True
        self._size += len(content) - len(last)
        self._points = self._points[-1:]

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            print(f"warning: cannot write {self.path}: {error.strerror or error}; the training goes on", flush=True)
        self._has_warned = True


def _opened(path: Path) -> int:
    """Open a file for writing; neither a link nor a pipe.

    Raises:
        OSError: it cannot be written, or is something else.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return descriptor


class Board:
    """TensorBoard's files of one training; the first failure is a warning, and the last thing that it does."""

    def __init__(self, folder: Path, label: str) -> None:
        """Name the folder, and the training as people call it."""
        self.folder, self.label = folder, label
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Begin after this step; what an earlier part has written of later ones is no longer shown."""
        self._try(lambda: self._open(step))

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(self.folder), purge_step=step + 1)
        self._writer.add_text("cell", self.label)

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Add numbers of a step, by their names."""

        def write() -> None:
            for name, value in values.items():
                if self._writer is not None and value is not None:
                    self._writer.add_scalar(name, value, step)

        self._try(write)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._try(self._writer.close)
            self._writer = None

    def _try(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # whatever the library, or its thread, makes of a full disk
            self._writer = None
            print(f"warning: cannot write {self.folder} for TensorBoard: {error}; the training goes on", flush=True)
