"""The cells of a results folder as `status` shows them: what the rows say, and what jobs are still to do."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ablations.study import Cell
from runners.jobs.outcomes import Look
from runners.jobs.progress import count, format_seconds
from runners.measures import DONE, severity
from runners.store.names import visible
from runners.store.store import Store
from runners.table import load


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


class _Job(NamedTuple):
    """A job that waits or runs: its number and where it is, or why it waits."""

    is_running: bool
    text: str


def statuses(store: Store, keys: Sequence[str], jobs: Look) -> list[CellStatus]:
    """Status of each cell: that of its rows, unless a job is still to measure it."""
    by_cell = _jobs_by_cell(jobs)
    table = load(store.out)
    rows: dict[str, list[dict[Hashable, Any]]] = {}
    for row in table[table["cell_key"].isin(list(keys))].to_dict("records"):
        rows.setdefault(row["cell_key"], []).append(row)
    # the folder of a cell without rows is just being made
    worst = {key: min(rows[key], key=lambda row: severity(row["status"])) for key in keys if key in rows}
    cells = [_cell_status(store, key, row, by_cell.get(key)) for key, row in worst.items()]
    return sorted(cells, key=lambda cell: sort_key(cell.status))


def sort_key(status: str) -> tuple[bool, int]:
    """Order of statuses on the screen: what is under way, then the gravest first."""
    return status not in ("running", "pending"), severity(status)


def _jobs_by_cell(jobs: Look) -> dict[str, _Job]:
    """The job that is to measure a cell, by cell; one that runs comes before one that waits."""
    by_cell: dict[str, _Job] = {}
    for submission in jobs.submissions:
        for index, works in enumerate(submission.tasks):
            if state := jobs.alive.get((submission.name, index)):
                where = f" on {state.nodes}" if state.nodes else f" ({state.reason})" if state.is_pending else ""
                job = _Job(not state.is_pending, f"{state.job}{where}")
                for work in works:
                    if work.key not in by_cell or not by_cell[work.key].is_running:
                        by_cell[work.key] = job
    return by_cell


def _cell_status(store: Store, key: str, row: Mapping[Any, Any], job: _Job | None) -> CellStatus:
    status, detail, left = _status(store, key, str(row["status"]), job), "", 0.0
    if status == "running":
        progress = {**store.read_progress(key, "timing"), **store.read_progress(key)}
        step, steps = progress.get("step", 0), progress.get("steps", 0)
        detail = _describe(progress, store.cell(key))
        left = 1 - min(step, steps) / steps if steps else 1.0
    elif status == "pending":
        left = 1.0
    elif status not in DONE:
        message = row["error_message"]
        detail = str(message).splitlines()[0] if isinstance(message, str) and message else ""
    shown = ""
    if status in ("running", "pending"):
        lease = store.holder(key)
        local = f"pid {lease.pid} on {lease.host}" if lease and lease.state == "live" else ""
        shown = job.text if job else local
    return CellStatus(
        visible(store.label(key)), status, shown, detail, left, _seconds(store, key) if status == "ok" else 0.0
    )


def _describe(progress: Mapping[str, Any], cell: Cell | None) -> str:
    """How far a running cell is: its measure, and of a training step, loss, speed, and when it ends at this speed."""
    parts = [str(progress.get("measure", "starting"))]
    step, steps, pace = (progress.get(name, 0) for name in ("step", "steps", "seconds_per_step"))
    if steps:
        parts.append(f"step {step}/{steps}")
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if steps and pace > 0:
        if cell is not None:
            speed = cell.batch_size / pace
            parts.append(f"{speed:.{0 if speed >= 10 else 1}f} img/s")
        parts.append(f"ETA {format_seconds(max(0, steps - step) * pace)}")
    return ", ".join(parts)


def _status(store: Store, key: str, recorded: str, job: _Job | None) -> str:
    """Status of a cell: of its rows, or of the job that is still to measure it."""
    if job is None:
        return recorded
    lease = store.holder(key)
    is_at_work = lease is not None and lease.state != "dead"
    # a job that runs has come to this cell, or is at another of its cells
    if job.is_running and is_at_work:
        return "running"
    return recorded if recorded == "ok" and not is_at_work else "pending"


def _seconds(store: Store, key: str) -> float:
    """Time that the latest record of each measure of a cell took."""
    latest = {name.measure: name for name in store.record_names(key)}
    records = [store.read_record(key, name, samples=False) for name in latest.values()]
    times = [
        (datetime.fromisoformat(r.ended_at), datetime.fromisoformat(r.started_at))
        for r in records
        if r.ended_at and r.started_at
    ]
    # a clock may have been set between the two, or be ahead
    now = datetime.now(UTC)
    return sum((ended - started).total_seconds() for ended, started in times if started <= ended <= now)


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


def render(cells: Sequence[CellStatus], most: int | None) -> list[str]:
    """The status as lines of text: counts and ETA, then at most so many cells that are not done; None for all cells."""
    counts = Counter(cell.status for cell in cells)
    known = [f"{counts[status]} {status}" for status in sorted(counts, key=sort_key)]
    text = [f"{count(len(cells), 'cell')}: {', '.join(known)}{_eta(cells)}"]
    chosen = [cell for cell in cells if most is None or cell.status != "ok"]
    shown = chosen[:most]
    width = max((len(cell.label) for cell in shown), default=0)
    for cell in shown:
        about = "  ".join(filter(None, (cell.job, cell.detail)))
        text.append(f"  {cell.status:<11} {cell.label:<{width}}  {about}".rstrip())
    if len(chosen) > len(shown):
        text.append(f"  and {len(chosen) - len(shown)} more; --all shows them")
    return text
