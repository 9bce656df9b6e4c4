"""Results folders for the tests of reports: real records with made-up numbers that follow from the cell alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from ablations.study import Cell, cell_key
from runners.measures import DEFAULT_MEASURES
from runners.store.record import Record
from runners.store.store import Store, open_store

DEVICE = "cpu-test_processor-1t-000000"
HOSTILE = "out of memory </script><script>alert(1)</script> <img src=x onerror=alert(2)> & 50% of #1_{a} | `b` \x7f"

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "Test Processor",
    "host": "n1",
    "git_sha": "0123abc",
    "git_dirty": False,
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
}

REACHED = {"vanilla": 97.0, "swin": 60.0, "bra1": 55.0, "bra4": 88.0, "bra8": 96.8, "bra16": 97.0}
"""acc1 of each configuration, before the noise of a seed."""


def cells(seeds: int = 3, sides: tuple[int, ...] = (64, 128)) -> Iterator[Cell]:
    for side in sides:
        for seed in range(seeds):
            yield Cell(attn="vanilla", seed=seed, height_px=side, width_px=side)
            yield Cell(attn="swin", seed=seed, height_px=side, width_px=side)
            for topk in (1, 4, 8, 16):
                yield Cell(settings=(("topk", topk),), seed=seed, height_px=side, width_px=side)


def name(cell: Cell) -> str:
    return cell.attn + "".join(str(value) for _, value in cell.settings)


def values_of(cell: Cell) -> dict[str, dict[str, float]]:
    """Columns of each measure."""
    noise = random.Random(f"{name(cell)} {cell.seed}").gauss
    tokens = cell.height_px * cell.width_px / 16
    topk = dict(cell.settings).get("topk", 4)
    gmacs = tokens / 256 * (0.01 if cell.attn != "bra" else 0.006 + 0.0003 * topk)
    gmacs *= (tokens / 256) ** 0.5 if cell.attn == "vanilla" else 1
    latency = 2000 * gmacs + 5 + noise(0, 0.3)
    return {
        "flops": {"gmacs": gmacs, "gflops": 2 * gmacs, "params_m": 0.58 if cell.attn != "bra" else 0.6},
        "accuracy": {"acc1": REACHED[name(cell)] + noise(0, 0.4), "n_eval": 1024},
        "throughput": {
            "infer_latency_ms": latency,
            "infer_samples_per_sec": 64e3 / latency,
            "train_step_ms": 3.1 * latency,
        },
        "memory": {"peak_infer_mib": 20 + 300 * gmacs, "peak_train_mib": 60 + 900 * gmacs},
    }


def command(cell: Cell) -> str:
    topk = "".join(f" --topk {value}" for _, value in cell.settings)
    return f"python runners/sweep.py --attn {cell.attn}{topk} --resolution {cell.height_px} --seeds {cell.seed}"


def record(cell: Cell, measure: str, **changes) -> Record:
    topk = dict(cell.settings).get("topk")
    fields = {
        "device_id": DEVICE,
        "protocol": 1,
        "status": "ok",
        "values": {"threads": 1, **({"topk": topk} if topk else {}), **values_of(cell)[measure]},
        "environment": ENVIRONMENT,
        "started_at": "2030-01-01T10:00:00.000+00:00",
        "ended_at": "2030-01-01T10:00:01.000+00:00",
        "command": command(cell),
    }
    return Record(measure=measure, **{**fields, **changes})


def failure(cell: Cell, measure: str, status: str = "oom", message: str = HOSTILE) -> Record:
    values = {"threads": 1, **dict(cell.settings)}
    return record(cell, measure, status=status, values=values, error_type="OutOfMemory", error_message=message)


def write_sample(folder: Path, *, study: str = "topk", **which) -> Store:
    """Every measure of all cells; bra topk=16 at the larger size runs out of memory, and one cell is pending."""
    store = open_store(folder, create=True)
    # what a test reads at once need not be on the disk before
    with patch("os.fsync"):
        for cell in cells(**which):
            store.add_cell(cell, study, DEFAULT_MEASURES)
            for measure in DEFAULT_MEASURES:
                is_lost = name(cell) == "bra16" and cell.height_px == 128 and measure in ("throughput", "memory")
                store.write_record(cell_key(cell), failure(cell, measure) if is_lost else record(cell, measure))
        store.add_cell(Cell(attn="axial"), study, ("flops",))
    return store
