"""Do the intervals of `vs_vanilla` hold on another run: `python -m benchmarks.coverage --save`.

Six cells are measured ten times each, as a sweep measures them. Of each cell every pair of runs is compared as
compare.py does; the share of pairs whose 95 % interval of the ratio holds 1 should be 95 %. Runs go in turns over the
cells, so that the ten of one cell lie far apart in time. Each is kept in a file as soon as it is there, and the same
command goes on behind it. With `--busy` a loop that never rests runs on each processor: it shows how many runs are
marked as disturbed, and how far the ratios move.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ablations.study import Cell
from benchmarks.results import here
from runners.cells.functions import SPEED_BUDGET_S
from runners.cells.models import build_baseline, build_model
from runners.jobs.progress import format_seconds
from runners.machine.environment import device_id
from runners.measure.disturbance import usable_processors
from runners.measure.rounds import Work
from runners.measure.speed import measure_speed
from runners.measures import MEASURES
from runners.rows.stats import Logarithm, ratio_interval

RESULTS = Path(__file__).resolve().parents[1] / "results"
CELLS = {
    "vanilla": Cell(attn="vanilla"),
    "bra, top-k 1": Cell(attn="bra", settings=(("topk", 1),)),
    "bra, top-k 16": Cell(attn="bra", settings=(("topk", 16),)),
    "swin": Cell(attn="swin"),
    "cswin": Cell(attn="cswin"),
    "pvt": Cell(attn="pvt"),
}
RATIOS = ("vs_vanilla", "train_vs_vanilla")
START_S = 9.0
"""What the processes of one run take to start, about; for the first estimate of the time alone."""


def measure(cell: Cell, threads: int) -> dict[str, Any]:
    """Measure the speed columns of a cell once."""
    work = Work(
        build=partial(build_model, cell),
        build_baseline=partial(build_baseline, cell),
        input_shape=(cell.batch_size, 3, cell.height_px, cell.width_px),
        threads=threads,
    )
    return measure_speed(work, budget_s=SPEED_BUDGET_S)[0]


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Keep each processor busy within the block."""
    loops = [multiprocessing.Process(target=_spin, daemon=True) for _ in usable_processors()] if wanted else []
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def held(runs: Sequence[dict[str, Any]], ratio: str) -> list[bool]:
    """Of each pair of runs, whether the interval of their ratio holds 1."""
    logs = [
        Logarithm.of_interval(run[ratio], run[f"{ratio}_low"], run[f"{ratio}_high"], run["timing_processes"])
        for run in runs
    ]
    return [low <= 1 <= high for _, low, high in (ratio_interval(a, b) for a, b in combinations(logs, 2))]


Runs = dict[str, list[dict[str, Any]]]
"""Columns of each run, by cell."""


def report(runs: Runs) -> list[str]:
    """Lines of Markdown: a table of all runs, how many are marked as disturbed, and a table of the others."""
    marks = [run["disturbed"] for found in runs.values() for run in found]
    quiet = {name: [run for run in found if not run["disturbed"]] for name, found in runs.items()}
    lines = [*_table(runs), f"- marked as disturbed: {sum(marks)} of {len(marks)} runs, {mean(marks):.1%}"]
    if any(marks) and any(len(found) > 1 for found in quiet.values()):
        lines += ["", "Without the marked runs, which a sweep measures again:", "", *_table(quiet)]
    return lines


def _table(runs: Runs) -> list[str]:
    """Lines of a row for each ratio of a cell with two runs, and of what holds for all cells together."""
    lines = [
        "| cell | ratio | runs | mean | standard deviation | largest / smallest | half width | pairs that hold 1 |"
    ]
    lines.append("| --- " * 8 + "|")
    every: dict[str, list[bool]] = {ratio: [] for ratio in RATIOS}
    for name, found in runs.items():
        for ratio in RATIOS if len(found) > 1 else ():
            values = [run[ratio] for run in found]
            widths = [(run[f"{ratio}_high"] / run[f"{ratio}_low"]) ** 0.5 - 1 for run in found]
            pairs = held(found, ratio)
            every[ratio] += pairs
            lines.append(
                f"| {name} | {ratio} | {len(found)} | {mean(values):.3f} | {stdev(values) / mean(values):.2%} "
                f"| {max(values) / min(values):.3f} | {mean(widths):.1%} | {sum(pairs)} of {len(pairs)} |"
            )
    lines.append("")
    lines += [
        f"- {ratio}: {sum(pairs)} of {len(pairs)} pairs hold 1, {mean(pairs):.1%} (wanted: 95 %, at least 90 %)"
        for ratio, pairs in every.items()
        if pairs
    ]
    return lines


def read(path: Path) -> Runs:
    """Runs by cell that are in a file of JSON lines; the last line of a run that was cut off is left out."""
    runs: Runs = {name: [] for name in CELLS}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            kept = json.loads(line)
        except ValueError:
            continue
        if kept["protocol"] == MEASURES["throughput"].protocol and kept["cell"] in runs:
            runs[kept["cell"]].append(kept["columns"])
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="coverage.py", description=__doc__)
    parser.add_argument("--runs", metavar="N", type=int, default=10, help="of each cell, 2 or more (default: 10)")
    parser.add_argument("--threads", metavar="N", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--busy", action="store_true", help="with a busy loop on each processor")
    parser.add_argument("--out", metavar="FILE", type=Path, help="runs, a line each (default: build/coverage*.jsonl)")
    parser.add_argument("--save", action="store_true", help="write the table to results/coverage_<device>.md")
    options = parser.parse_args(argv)
    if options.runs < 2:
        parser.error(f"--runs must be at least 2, got {options.runs}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    name = f"coverage{'_busy' if options.busy else ''}_{device_id(torch.device('cpu'), options.threads)}"
    out = options.out or RESULTS.parent / "build" / f"{name}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = read(out)
    wanted = [(index, cell) for index in range(options.runs) for cell in CELLS if len(runs[cell]) <= index]
    print(
        f"{len(wanted)} runs to go, about {format_seconds(len(wanted) * (SPEED_BUDGET_S + START_S))}; in {out}",
        flush=True,
    )
    with busy(options.busy):
        for left, (_, cell) in zip(range(len(wanted), 0, -1), wanted, strict=True):
            columns = measure(CELLS[cell], options.threads)
            with out.open("a") as file:
                print(
                    json.dumps({"cell": cell, "protocol": MEASURES["throughput"].protocol, "columns": columns}),
                    file=file,
                )
            runs[cell].append(columns)
            ratios = ", ".join(f"{ratio} {columns[ratio]:.3f}" for ratio in RATIOS)
            print(
                f"{left} {cell}: {ratios}{', disturbed: ' + columns['disturbance'] if columns['disturbed'] else ''}",
                flush=True,
            )
    table = report({cell: found[: options.runs] for cell, found in runs.items()})
    machine = here()
    head = [
        f"# Intervals of vs_vanilla on repeated runs{', a busy loop on each processor' if options.busy else ''}",
        "",
        f"{machine['cpu_model']}, {options.threads} threads, torch {machine['versions']['torch']}; protocol "
        f"{MEASURES['throughput'].protocol}; {options.runs} runs of each cell; commit {machine['git_sha']}.",
        "",
    ]
    print("\n".join(table))
    if options.save:
        (RESULTS / f"{name}.md").write_text("\n".join([*head, *table]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
