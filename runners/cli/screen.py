"""The plan before a sweep, and the table after it, as text."""

from pathlib import Path

import pandas as pd

from ablations.study import cell_key
from runners.cells.plan import Plan, estimate_seconds
from runners.jobs.progress import count, format_seconds
from runners.store.names import cell_name
from runners.store.store import Store
from runners.table import load

COLUMNS = (
    *("attention", "topk", "topk_schedule", "regions", "window", "resolution", "seed"),
    *("acc1", "gmacs", "params_m", "peak_infer_mib", "peak_train_mib"),
    *("infer_samples_per_sec", "vs_vanilla", "train_step_ms", "disturbed", "status"),
)


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


def print_unkept(store: Store, plan: Plan) -> None:
    """Say of how many cells the accuracy was measured without keeping the weights, which no later run has."""
    keys = [cell_key(cell) for cell in plan.cells]
    trained = [key for key in keys if any(name.measure == "accuracy" for name in store.record_names(key))]
    if lacking := sum(not any(store.folder(key).glob("weights.*.pth")) for key in trained):
        print(f"{count(lacking, 'cell')} trained before without --save-weights; --force trains them again")


def print_results(out: Path, rows: pd.DataFrame) -> None:
    """Print rows and where they are; `table.csv` holds every column of every row of the folder."""
    load(out).to_csv(out / "table.csv", index=False)
    lacking = {column for column in COLUMNS if not rows[column].notna().any()}
    if not rows["disturbed"].fillna(False).any():
        lacking.add("disturbed")
    shown = rows[[column for column in COLUMNS if column not in lacking]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    for data, ceiling in rows.groupby("data")["ceiling_percent"].max().dropna().items():
        print(f"acc1 on {data}: {ceiling:.1f} is what a model gets that sees the objects but cannot relate them")
    print(f"table: {out / 'table.csv'}; in Python: runners.table.load({str(out)!r})")
