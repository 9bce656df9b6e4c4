"""Every mechanism on one device within minutes: `benchmarks/device.sh`, or `python -m benchmarks.device --help`.

All in one process, since a device is lent for minutes: each row is a model in `stl`, a batch, a precision, with or
without torch.compile; a forward and a training step are timed (medians of several runs after warm-up), and the
allocator's peak is read. The plan is printed first, the most telling rows before the others. A row is written as soon
as it is done; the same command goes on behind it. No row is begun that might not end within the budget. Energy takes 5
s each, and is read for a few rows at the end. For a figure of a paper take a sweep, whose intervals hold more than one
process.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Any

import pandas as pd
import torch

from attention_zoo import create_model, names, resolve
from benchmarks.results import here
from runners.jobs.progress import format_seconds
from runners.machine.conditions import Conditions, in_force
from runners.machine.environment import device_id, pick_device
from runners.machine.failures import status_of
from runners.machine.hardware import give_back, hardware
from runners.measure.energy import read_energy
from runners.measure.largest_batch import find_max_batch
from runners.measure.rounds import Contender, Work

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 0
"""In the place of a batch: the largest that fits."""
RUNS, STEPS, WARMUP = 10, 5, 3
ROW_S, COMPILED_ROW_S, ENERGY_ROW_S, SEARCH_ROW_S = 6.0, 90.0, 20.0, 25.0
"""What a row takes at most, about; a first guess, from which the plan is made."""
ENDED = ("ok", "oom", "unsupported")
"""Statuses that another run would not change."""
PRECISIONS = ("amp-bf16", "tf32", "fp32")
FEW = ("bra", "swin", "vanilla")


@dataclass(frozen=True)
class Row:
    """What is measured; `batch` 0 is the largest that fits, `impl` empty the mechanism's own choice."""

    attn: str
    side: int
    batch: int
    precision: str
    compiled: bool = False
    impl: str = ""
    energy: bool = False

    @property
    def seconds(self) -> float:
        """What it takes at most."""
        if self.compiled or self.impl == "flex":  # which compiles its kernels
            return COMPILED_ROW_S
        return ENERGY_ROW_S if self.energy else SEARCH_ROW_S if self.batch == LARGEST else ROW_S

    def __str__(self) -> str:
        """Name it."""
        batch = "largest batch" if self.batch == LARGEST else f"batch {self.batch}"
        words = [f"{self.attn}{f' by {self.impl}' if self.impl else ''}", f"{self.side} px", batch, self.precision]
        return ", ".join([*words, *(["compiled"] if self.compiled else []), *(["energy"] if self.energy else [])])


def plan(quick: bool) -> list[Row]:
    """Rows, the most telling first."""
    if quick:
        rows = [Row(*each) for each in product(("bra", "swin"), (64,), (1, 2, LARGEST), ("amp-bf16", "tf32", "fp32"))]
        return [*rows, Row("bra", 64, 2, "fp32", impl="dense"), Row("bra", 64, 2, "fp32", energy=True)]
    every = names()
    rows = [Row(attn, 224, 64, precision) for precision in PRECISIONS for attn in every]
    rows += [Row("bra", side, 64, "amp-bf16", impl=impl) for side in (224, 512) for impl in resolve("bra").impls]
    rows += [Row(attn, 224, 1, "amp-bf16") for attn in every]
    rows += [Row(attn, 512, 64, "amp-bf16") for attn in every]
    rows += [Row(attn, 224, LARGEST, "amp-bf16") for attn in FEW]
    rows += [Row(attn, 224, 64, "amp-bf16", compiled=True) for attn in FEW]
    rows += [Row(attn, 224, 64, "amp-bf16", energy=True) for attn in FEW]
    rows += [Row(attn, 512, 1, "amp-bf16") for attn in every]
    rows += [
        Row(attn, side, batch, p)
        for p in PRECISIONS[1:]
        for side, batch in ((512, 64), (224, 1), (512, 1))
        for attn in every
    ]
    return rows


@cache
def model_of(attn: str, impl: str, layout: str) -> torch.nn.Module:
    """Build a model on the CPU, once."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"impl": impl} if impl else {}
    return create_model(layout, attn=attn, **settings)


def measure(row: Row, device: torch.device, layout: str, most: int) -> dict[str, Any]:
    """Columns of one row; `most` images are the end of the search for the largest batch."""
    work = Work(
        build=partial(model_of, row.attn, row.impl, layout),
        build_baseline=None,
        input_shape=(row.batch, 3, row.side, row.side),
        device=str(device),
        conditions=Conditions(precision=row.precision),
        compile_model=row.compiled,
    )
    if row.energy:
        return read_energy(work)
    if row.batch == LARGEST:
        found = find_max_batch(work, most)
        return {name: value for name, value in found.items() if name != "tried"}
    with work.at_work():
        return {**_times(work, device), **in_force()}


def _times(work: Work, device: torch.device) -> dict[str, Any]:
    """Quartiles of forward and step in ms, images a second, and the allocator's peaks in MiB."""
    machine, found = hardware(device), dict[str, Any]()
    for phase, call, count in (("infer", Contender.infer, RUNS), ("train", Contender.train, STEPS)):
        # a copy of its own: what a model caches in inference mode cannot be trained with
        run = partial(call, work.contender(work.build(), *work.batch()))
        for _ in range(WARMUP):
            run()
        machine.synchronize()
        machine.reset_peak()
        low, middle, high = quantiles([sum(run()) for _ in range(count)], n=4)
        found |= {f"{phase}_ms": middle, f"{phase}_ms_q25": low, f"{phase}_ms_q75": high}
        found[f"peak_{phase}_mib"] = machine.peak_mib()[0]
        del run
        give_back(device)
    return {"infer_samples_per_sec": 1e3 * work.input_shape[0] / found["infer_ms"], **found, **machine.state()}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Finished rows by name, of each the last; errors are tried again, and a line that was cut off is left out."""
    done = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            kept = json.loads(line)
            if kept["status"] in ENDED:
                done[str(kept["name"])] = kept
        except (ValueError, KeyError, TypeError):
            continue
    return done


def run(
    rows: Sequence[Row], done: dict[str, dict[str, Any]], device: torch.device, layout: str, most: int, budget_s: float
) -> Iterator[dict[str, Any]]:
    """Measure what is missing until the budget is spent, or the CUDA context is lost."""
    started = time.monotonic()
    for row in rows:
        if str(row) in done or time.monotonic() - started + row.seconds > budget_s:
            continue
        began = time.monotonic()
        try:
            columns = {"status": "ok", **measure(row, device, layout, most)}
        except Exception as error:  # one bad row must not lose the others
            columns = {"status": status_of(error), "error_message": f"{type(error).__name__}: {error}"}
        poisoned = "CUDA error" in columns.get("error_message", "")
        if not poisoned:
            give_back(device)
        yield {"name": str(row), **asdict(row), "layout": layout, **columns, "seconds": time.monotonic() - began}
        if poisoned:  # nothing works any more in this process
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(prog="device.sh", description=__doc__)
    parser.add_argument("--device", metavar="D", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--budget", metavar="S", type=float, default=450.0, help="seconds for all rows (default: 450)")
    parser.add_argument("--quick", action="store_true", help="a few small rows, to try the script")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT, help="where build/ and results/ are")
    options = parser.parse_args(argv)
    if not options.budget > 0:
        parser.error(f"--budget must be above 0 seconds, got {options.budget:g}")
    try:
        device = pick_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    name = f"device{'_quick' if options.quick else ''}_{device_id(device)}"
    lines, table = options.out / "build" / f"{name}.jsonl", options.out / "results" / f"{name}.csv"
    rows, done = plan(options.quick), read(lines)
    wanted = [row for row in rows if str(row) not in done]
    for row in wanted:
        print(f"{row.seconds:4.0f} s  {row}")
    print(
        f"{len(wanted)} of {len(rows)} rows to go, {format_seconds(sum(row.seconds for row in wanted))} at most; stops "
        f"after {format_seconds(options.budget)}; rows in {lines}",
        flush=True,
    )
    lines.parent.mkdir(parents=True, exist_ok=True)
    layout, most = ("small", 4) if options.quick else ("stl", 65_536)
    for found in run(rows, done, device, layout, most, options.budget):
        done[found["name"]] = found
        with lines.open("a") as file:
            print(json.dumps(found), file=file)
        shown = {key: found.get(key) for key in ("infer_ms", "train_ms", "peak_train_mib", "max_batch")}
        print(f"{found['name']}: {found['status']} {shown}", flush=True)
    left = len(rows) - len(done)
    table.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([done[str(row)] for row in rows if str(row) in done]).drop(columns="name", errors="ignore")
    machine = here()
    frame.assign(device=str(device), git_sha=machine["git_sha"], torch=machine["versions"]["torch"]).to_csv(
        table, index=False
    )
    print(f"{len(done)} rows in {table}{f'; {left} are left, the same command goes on' if left else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
