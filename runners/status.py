"""Show how far the cells of a results folder are: `python runners/status.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runners.cli.command import command
from runners.cli.program import run_program
from runners.cli.verbs import open_study, try_look, verb_parser
from runners.measures import DONE
from runners.store.store import Store

if TYPE_CHECKING:
    from runners.jobs.cell_status import CellStatus

EXAMPLES = """  python runners/status.py topk
  python runners/status.py --watch           live, until every cell has ended"""

WATCH_S = 15.0
# a controller serves a whole cluster
FASTEST_S = 5.0
SHOWN = 40


@command("status.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 if every cell is done, 1 if not; 2 with one line for bad input."""
    description = "Show the status of every cell, what runs where, and when it will be done."
    parser = verb_parser("status", description, EXAMPLES)
    parser.add_argument(
        "--watch",
        metavar="S",
        nargs="?",
        type=float,
        const=WATCH_S,
        help=f"show it again every S seconds (default {WATCH_S:g}, at least {FASTEST_S:g}) until all have ended",
    )
    parser.add_argument("--all", action="store_true", help=f"every cell, not the first {SHOWN} that are not done")
    options = parser.parse_args(argv)
    if options.watch is not None and not options.watch >= FASTEST_S:
        parser.error(f"--watch {options.watch:g}: at least {FASTEST_S:g} s, the controller serves a whole cluster")

    from rich.console import Console
    from rich.live import Live

    store, keys = open_study(options)
    lines, text = look_at(store, keys, everything=options.all)
    console = Console()
    if options.watch is not None:
        with Live(text, console=console, auto_refresh=False, transient=True) as live:
            while any(line.status in ("running", "pending") for line in lines):
                time.sleep(options.watch)
                lines, text = look_at(store, keys, everything=options.all)
                live.update(text, refresh=True)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return int(any(line.status not in DONE for line in lines))


def look_at(store: Store, keys: Sequence[str], *, everything: bool) -> "tuple[list[CellStatus], str]":
    """Look once: the cells, and the text that says it."""
    from runners.jobs.cell_status import render, statuses
    from runners.jobs.local_sweeps import alive

    jobs, problem = try_look(store)
    lines = statuses(store, keys, jobs)
    sweeps = [f"a sweep runs: pid {sweep.pid} on {sweep.host}" for sweep in alive(store)]
    text = render(lines, None if everything else SHOWN)
    return lines, "\n".join([*([problem] if problem else []), *sweeps, *text])


if __name__ == "__main__":
    run_program(main)
