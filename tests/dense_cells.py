"""Cells of dense tasks for tests, from the words of a command line."""

from pathlib import Path
from typing import Any

import torch

from ablations.study import Cell
from runners.cells.functions import FUNCTIONS
from runners.cells.job import Job, Run
from runners.cells.plan import Plan
from runners.cells.run import place
from runners.cli.options import read_command
from runners.store.store import open_store
from runners.sweep import make_sweep
from runners.train.distributed import ALONE

TINY = ["width=16", "box_width=32", "rois_per_image=16", "proposals=50", "masks=10"]
HEADS = {
    "segment": "--task segment --set head.width=16 --set head.fpn_width=16",
    "detect": "--task detect --set head.width=16",
    "instance": f"--task instance {' '.join(f'--set head.{field}' for field in TINY)}",
}
"""A narrow head of each task, as a laptop trains it."""


def plan(line: str) -> Plan:
    return make_sweep(read_command(line.split())).plan


def one(line: str) -> Cell:
    (cell,) = plan(line).cells
    return cell


def measured(cell: Cell, measure: str, out: Path, **options: Any) -> dict[str, Any]:
    """Columns of a measure of a cell, by the function that a job runs."""
    device = torch.device("cpu")
    store = open_store(out, create=True)
    key = store.add_cell(cell, measures=[measure])
    job = Job(out=out, key=key, cell=cell, attempts={measure: 1}, device="cpu", workers=0, **options)
    return FUNCTIONS[measure](Run(store, job, device, place(device, 1), ALONE))[0]
