"""How fast the zoo is beside public models, the paper's own steps, and its matrix products alone.

Everything that is compared runs in turns in one process, with the same threads and the same allocator; see
benchmarks/pairs.py. Each comparison has processes of its own, since the heap that another leaves moves a ratio. The
anchors run as users run them, three rounds in a process: where a process happens to have its weights moves a ratio by
some percent, however often it is repeated there. In other comparisons of times the C library keeps what is freed, since
by itself it maps large tensors anew or not as it happens to decide, and two equal blocks differ by that. Only a quiet
machine gives numbers worth saving.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # not the script's own folder, which would offer benchmarks/models.py as `models`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import psutil

from runners.cli.command import Parser
from runners.machine.environment import KEEP_FREED
from runners.measure.children import die_with_parent

if TYPE_CHECKING:
    from benchmarks.claims import Measured
    from benchmarks.sections import Task

RESULTS = Path(__file__).resolve().parents[1] / "results"
SECTIONS = ("anchors", "memory", "twins", "compiled", "floor", "scaling", "harness")
STARTS_PROCESSES = ("memory", "harness")
VARIABLES = {section: KEEP_FREED for section in ("twins", "compiled", "floor", "scaling")}
INTERRUPTED = 130
ROUNDS_PER_PROCESS = {"anchors": 3}
"""Most rounds of one process; where a section is not named, all of them."""


def read_command(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; a malformed one ends the process with code 2 and one line."""
    parser = Parser("report.py", __doc__, "")
    add = parser.add_argument
    add("--only", metavar="S[,S]", type=_sections, help=f"of {', '.join(SECTIONS)} (default: all but compiled)")
    add("--compile", action="store_true", help="the section compiled too; needs a C++ compiler")
    add("--match", metavar="TEXT", default="", help="only works with this in their name, such as 'batch 8'")
    add("--rounds", metavar="N", type=_positive, default=7, help="samples of each contender (default: 7)")
    add("--threads", metavar="N", type=_positive, default=2, help="CPU threads (default: 2)")
    add("--json", metavar="FILE", type=Path, help="print a saved report instead of measuring")
    add("--save", action="store_true", help="write results/benchmarks_<device>.json and .md; what it has else stays")
    options = parser.parse_args(argv)
    chosen = options.only or tuple(name for name in SECTIONS if name != "compiled")
    options.sections = [name for name in SECTIONS if name in chosen or (options.compile and name == "compiled")]
    if options.json is not None and options.save:
        parser.error("--save: --json FILE is saved already; leave one of them out")
    return options


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(SECTIONS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def plan(sections: Sequence[str], rounds: int, match: str) -> "list[Task]":
    """List what is to be measured."""
    from benchmarks.harness import harness
    from benchmarks.scaling import scaling
    from benchmarks.sections import anchors, compiled, floors, memory
    from benchmarks.twins import twins

    makers = dict(zip(SECTIONS, (anchors, memory, twins, compiled, floors, scaling, harness), strict=True))
    return [task for name in sections for task in makers[name](rounds) if match in task.work]


def measure_one(task: "Task", rounds: int, threads: int) -> "Measured":
    """Make one measurement, in fresh processes unless it starts its own."""
    if task.section in STARTS_PROCESSES:
        return task.run()
    most = ROUNDS_PER_PROCESS.get(task.section, rounds)
    shares = [min(most, rounds - done) for done in range(0, rounds, most)]
    parts = [_measure_apart(task, share, threads) for share in shares]
    samples = {name: [value for part in parts for value in part.samples[name]] for name in parts[0].samples}
    return replace(parts[0], samples=samples)


def _measure_apart(task: "Task", rounds: int, threads: int) -> "Measured":
    spawning = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=die_with_parent, initargs=(os.getpid(),)
    )
    # the C library reads its variables when a process starts
    with set_unless_given(VARIABLES.get(task.section, {})), spawning as pool:
        try:
            return pool.submit(_planned_anew, task.section, task.work, rounds, threads).result()
        except KeyboardInterrupt:
            # or the pool would wait for what nobody reads any more; a process that just starts is not on its list
            for process in psutil.Process().children():
                process.kill()
            raise


@contextmanager
def set_unless_given(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; those that are set already stay as they are."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _planned_anew(section: str, work: str, rounds: int, threads: int) -> "Measured":
    from runners.machine.environment import apply_threads

    apply_threads(threads)
    (task,) = (task for task in plan([section], rounds, work) if task.work == work)
    return task.run()


def measure(tasks: "Sequence[Task]", rounds: int, threads: int) -> "Iterator[Measured]":
    """Make one measurement after the other; one that fails is reported as such and costs no other."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from benchmarks.claims import Measured

    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=len(tasks))
        for task in tasks:
            progress.update(bar, description=f"{task.section}: {task.work}")
            try:
                measured = measure_one(task, rounds, threads)
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), "")
                measured = Measured(section=task.section, work=task.work, failed=f"{type(error).__name__}: {reason}")
            progress.advance(bar)
            yield measured


def show(measured: "Sequence[Measured]") -> None:
    """Print a table for each section."""
    from rich.console import Console

    from benchmarks.tables import rows_of, screen_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for section, rows in rows_of(measured).items():
        console.print(screen_table(section, rows))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all was measured, 1 if something failed, 2 for bad input, 130 if interrupted.

    Each section is shown, and saved, as soon as it is done; an interrupted one with what of it is done.
    """
    options = read_command(argv)
    if options.json is not None:
        from benchmarks.results import measured_in, read

        try:
            saved = measured_in(read(options.json))
        except ValueError as error:
            print(f"report.py: error: --json {options.json}: {error}", file=sys.stderr)
            return 2
        show([one for one in saved if one.section in options.sections and options.match in one.work])
        return 0
    # torch takes seconds to import; nothing above this line needs it
    from benchmarks.results import save
    from runners.machine.environment import apply_threads

    apply_threads(options.threads)
    tasks = plan(options.sections, options.rounds, options.match)
    if not tasks:
        print(f"report.py: error: --match {options.match}: no work has that in its name", file=sys.stderr)
        return 2
    # what `timeout` and a scheduler send ends the report as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    for _, members in groupby(tasks, key=lambda task: task.section):
        measured: list[Measured] = []
        try:
            for one in measure(list(members), options.rounds, options.threads):
                measured.append(one)
                code |= int(one.failed is not None)
        except KeyboardInterrupt:
            code = INTERRUPTED
        show(measured)
        if options.save and measured:
            print(f"saved: {save(measured, RESULTS)}", flush=True)
        if code == INTERRUPTED:
            break
    return code


if __name__ == "__main__":
    raise SystemExit(main())
