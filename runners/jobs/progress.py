"""What a sweep shows: a bar with an ETA and each record as soon as it is there, or what it submitted."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from runners.measures import MEASURES
from runners.store.names import visible
from runners.store.record import Record

if TYPE_CHECKING:
    from runners.jobs.launch import Outcome


QUIET_S = 30.0
"""How long a log file may stay without a line while a cell runs."""


def format_seconds(seconds: float) -> str:
    """Write a duration as 45 s, 3 min or 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Display:
    """The sweep's screen; on a terminal and in a notebook with a live bar, elsewhere as lines alone.

    `estimates` are seconds per cell; the ETA corrects them by how the sweep has kept to them so far.
    """

    def __init__(self, console: Console, estimates: list[float]) -> None:
        """Prepare the bar."""
        self.console = console
        self._estimates = estimates
        self._index = 0
        self._fraction = 0.0
        self._started = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f} cells"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=len(estimates))
        self._output: Any = None

    def __enter__(self) -> "Display":
        """Show the bar."""
        if self.console.is_jupyter:
            # a part of every notebook, and of nothing else; rich's own live display would need ipywidgets too
            from IPython.display import display

            self._output = display(self._bar, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if not self.console.is_jupyter:
            self._bar.stop()

    def _update(self, **changes: Any) -> None:
        self._bar.update(self._task, **changes)
        if self._output:
            self._output.update(self._bar)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._said = time.monotonic()
        self.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, index: int, label: str) -> None:
        """Turn to a cell, counted from 0."""
        self._index, self._fraction = index, 0.0
        self.say(f"[{index + 1}/{len(self._estimates)}] {label}")
        self.step({})

    def step(self, progress: Mapping[str, Any]) -> None:
        """Show how far the running job is: its measure, its step and loss, and the time that is left."""
        step, steps = progress.get("step") or 0, progress.get("steps") or 0
        parts = [str(progress.get("measure") or "starting")]
        if steps:
            self._fraction = max(self._fraction, 0.5 * step / steps)
            parts.append(f"step {step}/{steps}")
        if progress.get("loss") is not None:
            parts.append(f"loss {float(progress['loss']):.3f}")
        parts.append(f"ETA {format_seconds(self.seconds_left())}")
        self._update(description=", ".join(parts), completed=self._index)
        is_live = self.console.is_terminal or self.console.is_jupyter
        if not is_live and time.monotonic() - self._said >= QUIET_S:
            self.say(f"      {', '.join(parts)}")

    def seconds_left(self) -> float:
        """Estimate of what is left, scaled by how long the finished part took against its own estimate."""
        done = sum(self._estimates[: self._index]) + self._fraction * self._estimates[self._index]
        elapsed = time.monotonic() - self._started
        pace = elapsed / done if self._index and done else 1.0
        return max(0.0, sum(self._estimates) - done) * pace

    def found(self, record: Record) -> None:
        """Print what a record holds, or why it holds nothing."""
        if record.status != "ok":
            reason = (record.error_message or "").strip().splitlines()
            self.say(f"      {record.measure:<11}{record.status}: {reason[0] if reason else record.error_type}")
            return
        values = [(name, record.values.get(name)) for name in MEASURES[record.measure].shown]
        shown = "  ".join(
            f"{name} {format_value(value)}" for name, value in values if not (value is None or value is False)
        )
        self.say(f"      {record.measure:<11}{shown}")

    def finish(self) -> None:
        """Fill the bar."""
        self._update(completed=len(self._estimates), description="done")


def count(number: int, noun: str) -> str:
    """Write a number of things: 1 cell, 2 cells."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_value(value: Any) -> str:
    """Write a number with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_submission(outcome: "Outcome", study: str, out: Path) -> None:
    """Print what went to SLURM, what did not and why, and what to type next."""
    if outcome.done:
        print(f"skipped {count(outcome.done, 'cell')} that are done; --force measures them again")
    if outcome.changed:
        print(f"{count(outcome.changed, 'cell')} measured before the code of the mechanism changed: measured again")
    if outcome.under_way:
        print(f"skipped {count(outcome.under_way, 'cell')} that jobs are to measure or are measuring")
    where = f" --results {shlex.quote(str(out))}"
    for status, number in sorted(outcome.failed.items()):
        shown = count(number, "measure")
        print(f"skipped {shown} that ended as {status}: python runners/retry.py --status {status}{where}")
    for submission in outcome.submitted:
        cells, tasks = count(len(submission.measures), "cell"), count(len(submission.tasks), "task")
        print(f"submitted job {submission.job}: {cells} in {tasks}")
    print(f"study {study}; you can log out now, and come back with:")
    for verb in ("status", "collect", "retry", "cancel"):
        print(f"  python runners/{verb}.py {study}{where}")
