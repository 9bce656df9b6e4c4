"""The plan before a sweep, and the table after it, as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.study import Cell, cell_key
from runners.cells.plan import Plan, estimate_seconds
from runners.jobs.progress import count, format_seconds
from runners.store.columns import COMPUTED
from runners.store.files import list_names
from runners.store.names import as_text, cell_name
from runners.store.store import Store
from runners.table import load, save

COLUMNS = (
    *("model", "attention", "topk", "topk_schedule", "regions", "window", "resolution", "seed"),
    *("acc1", "miou", "ap50", "ap", "ap_mask", "gmacs", "head_gmacs", "params_m", "peak_infer_mib", "peak_train_mib"),
    *("infer_samples_per_sec", "vs_vanilla", "train_step_ms", "disturbed", "status"),
)

CONDITIONS = ("task", "head", "layout", "baseline", "data", "steps", "batch_size", *COMPUTED)
"""Columns that are shown where they differ."""


def print_plan(plan: Plan, measures: tuple[str, ...]) -> None:
    """Print the cells of a dry run, their count and a rough estimate of the time."""
    seconds = [estimate_seconds(cell, measures) for cell in plan.cells]
    for cell, estimate in zip(plan.cells, seconds, strict=True):
        print(f"{cell_key(cell)}  {cell_name(cell)}  {cell.steps} steps  about {format_seconds(estimate)}")
    for note in plan.notes:
        print(f"note: {note}")
    print(
        f"{len(plan.cells)} cells, measuring {', '.join(measures)}; about {format_seconds(sum(seconds))} on two cores"
    )


def print_unkept(store: Store, plan: Plan, prefix: str = "weights") -> None:
    """Say of how many cells the accuracy was measured without keeping files of this name, which no later run has."""
    keys = [cell_key(cell) for cell in plan.cells]
    trained = [key for key in keys if any(name.measure == "accuracy" for name in store.record_names(key))]
    files = {key: list_names(str(store.folder(key))) for key in trained}
    if lacking := sum(not any(name.startswith(f"{prefix}.") for name in files[key]) for key in trained):
        print(f"{count(lacking, 'cell')} trained before without --save-{prefix}; --force trains them again")


def print_results(out: Path, rows: pd.DataFrame, cells: Sequence[Cell]) -> None:
    """Print rows, with all that differs between their cells; `table.csv` holds every column of every row of the folder.

    Raises:
        StoreError: the table cannot be written.
    """
    rows, swept = _with_swept(rows, cells)
    before = COLUMNS.index("seed")
    columns = [*COLUMNS[:before], *swept, *COLUMNS[before:]]
    lacking = {column for column in columns if not rows[column].notna().any()}
    if not rows["disturbed"].fillna(False).any():
        lacking.add("disturbed")
    shown = rows[[column for column in columns if column not in lacking]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    for data, ceiling in rows.groupby("data")["ceiling_percent"].max().dropna().items():
        print(f"acc1 on {data}: {ceiling:.1f} is what a model gets that sees the objects but cannot relate them")
    save(load(out), out / "table.csv")
    print(f"table: {out / 'table.csv'}; in Python: runners.table.load({str(out)!r})")


def _with_swept(rows: pd.DataFrame, cells: Sequence[Cell]) -> tuple[pd.DataFrame, list[str]]:
    """Rows with a column for each setting of a mechanism that differs between its cells; all columns that differ."""
    fields = {cell_key(cell): {**dict(cell.defaults), **dict(cell.settings)} for cell in cells}
    found: dict[str, dict[str, set[str]]] = {}
    for cell in cells:
        for name, value in fields[cell_key(cell)].items():
            found.setdefault(name, {}).setdefault(cell.attn, set()).add(as_text(value))
    settings = [name for name, values in found.items() if any(len(texts) > 1 for texts in values.values())]
    settings = sorted(name for name in settings if name not in COLUMNS)
    chosen: dict[str, Any] = {
        name: [as_text(fields[key][name]) if name in fields.get(key, {}) else None for key in rows["cell_key"]]
        for name in settings
    }
    conditions = [name for name in CONDITIONS if rows[name].nunique(dropna=False) > 1]
    return rows.assign(**chosen), [*settings, *conditions]
