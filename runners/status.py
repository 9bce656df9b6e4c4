"""Show how far the cells of a results folder are: `python runners/status.py --help`."""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()

import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from runners.cli.progress import count, format_seconds
from runners.cli.verbs import cells_of, run_verb, try_look, verb_parser
from runners.measures import DONE, severity

if TYPE_CHECKING:
    from runners.jobs.outcomes import Look
    from runners.store.store import Store

EXAMPLES = """  python runners/status.py topk
  python runners/status.py --watch           live, until every cell has ended"""

WATCH_S = 15.0
# a controller serves a whole cluster
FASTEST_S = 5.0
SHOWN = 40


@dataclass(frozen=True)
class CellStatus:
    """A line of the table: a cell, its status in the words of the table's own column, and what it is about.

    `left` is the share that is still to be done, `seconds` what a finished cell took.
    """

    label: str
    status: str
    job: str
    detail: str
    left: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every cell is done, 1 if not.

    Raises:
        ValueError: no results there, or an unknown study.
    """
    parser = verb_parser(
        "status", "Show the status of every cell, what runs where, and when it will be done.", EXAMPLES
    )
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

    from runners.store.store import open_store

    store = open_store(options.out, create=False)
    keys = cells_of(store, options.study)
    console = Console()
    if options.watch is None:
        lines, text = look_at(store, keys, everything=options.all)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return int(any(line.status not in DONE for line in lines))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            lines, text = look_at(store, keys, everything=options.all)
            live.update(text, refresh=True)
            if not any(line.status in ("running", "pending") for line in lines):
                break
            time.sleep(options.watch)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return int(any(line.status not in DONE for line in lines))


def look_at(store: "Store", keys: Sequence[str], *, everything: bool) -> tuple[list[CellStatus], str]:
    """Look once: the cells, and the text that says it."""
    seen, problem = try_look(store)
    lines = statuses(store, keys, seen)
    return lines, "\n".join([*([problem] if problem else []), *render(lines, everything=everything)])


def statuses(store: "Store", keys: Sequence[str], seen: "Look") -> list[CellStatus]:
    """Status of each cell: that of its rows, unless a job is still to measure it."""
    from runners.table import load

    tasks = _tasks(seen)
    table = load(store.out)
    rows: dict[str, list[dict[Hashable, Any]]] = {}
    for row in table[table["cell_key"].isin(list(keys))].to_dict("records"):
        rows.setdefault(row["cell_key"], []).append(row)
    found = []
    for key in keys:
        if not (mine := rows.get(key)):
            continue  # its folder is just being made
        row = min(mine, key=lambda row: severity(row["status"]))
        found.append(_line(store, key, row, *tasks.get(key, ("", ""))))
    return sorted(found, key=lambda line: _place(line.status))


def _place(status: str) -> tuple[bool, int]:
    """Sort key of a status on the screen: what is under way, then the gravest first."""
    return status not in ("running", "pending"), severity(status)


def _tasks(seen: "Look") -> dict[str, tuple[str, str]]:
    """Number and state of the job that is to measure a cell, by cell; one that runs comes before one that waits."""
    found: dict[str, tuple[str, str]] = {}
    for submission in seen.submissions:
        for index, works in enumerate(submission.tasks):
            if state := seen.alive.get((submission.name, index)):
                told = "pending" if state.is_pending else "running"
                where = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.is_pending else ""
                for work in works:
                    if found.get(work.key, ("", ""))[1] != "running":
                        found[work.key] = f"{state.job}{where}", told
    return found


def _line(store: "Store", key: str, row: Mapping[Any, Any], job: str, told: str) -> CellStatus:
    status = str(row["status"])
    held = store.holder(key)
    at_work = held is not None and held.state != "dead"
    if told:
        # a job that runs has come to this cell, or is at another of its cells
        status = "running" if told == "running" and at_work else "pending" if status != "ok" or at_work else status
    detail, left = "", 0.0
    if status == "running":
        progress = {**store.read_progress(key, "timing"), **store.read_progress(key)}
        step, steps = progress.get("step"), progress.get("steps")
        detail = str(progress.get("measure", "starting")) + (f", step {step}/{steps}" if steps else "")
        left = 1 - step / steps if steps and step else 1.0
    elif status == "pending":
        left = 1.0
    elif status not in DONE:
        message = row["error_message"]
        detail = str(message).splitlines()[0] if isinstance(message, str) and message else ""
    shown = job if status in ("running", "pending") else ""
    return CellStatus(store.label(key), status, shown, detail, left, _seconds(store, key) if status == "ok" else 0.0)


def _seconds(store: "Store", key: str) -> float:
    """Time that the latest record of each measure of a cell took."""
    latest = {name.measure: name for name in store.record_names(key)}
    records = [store.read_record(key, name, samples=False) for name in latest.values()]
    times = [(datetime.fromisoformat(r.ended_at), datetime.fromisoformat(r.started_at)) for r in records if r.ended_at]
    return sum((ended - started).total_seconds() for ended, started in times)


def _eta(lines: Sequence[CellStatus]) -> str:
    """When the rest will be done, if it goes on as before with as many jobs as run now."""
    left = sum(line.left for line in lines)
    done = [line.seconds for line in lines if line.seconds]
    if not left:
        return ""
    if not done:
        return "; ETA after the first cell"
    running = max(1, sum(line.status == "running" for line in lines))
    return f"; ETA {format_seconds(left * sum(done) / len(done) / running)}"


def render(lines: Sequence[CellStatus], *, everything: bool) -> list[str]:
    """The status as lines of text: counts and ETA, then the cells that are not done."""
    counts = Counter(line.status for line in lines)
    known = [f"{counts[status]} {status}" for status in sorted(counts, key=_place)]
    text = [f"{count(len(lines), 'cell')}: {', '.join(known)}{_eta(lines)}"]
    shown = [line for line in lines if everything or line.status != "ok"]
    limit = len(shown) if everything else SHOWN
    width = max((len(line.label) for line in shown[:limit]), default=0)
    for line in shown[:limit]:
        text.append(
            f"  {line.status:<11} {line.label:<{width}}  {'  '.join(filter(None, (line.job, line.detail)))}".rstrip()
        )
    if len(shown) > limit:
        text.append(f"  and {len(shown) - limit} more; --all shows them")
    return text


if __name__ == "__main__":
    run_verb("status", main)
