"""The table that `load` joins from records: which rows, which columns, which status."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ablations.study import Cell, cell_key
from runners.measures import STATUSES
from runners.store.columns import COLUMNS
from runners.store.record import Record
from runners.store.store import StoreError, open_store
from runners.table import load

CELL = Cell(settings=(("topk", 4),), height_px=48, seed=3)
KEY = cell_key(CELL)
HERE = {"device": "cpu", "host": "n1", "git_sha": "abc", "git_dirty": False, "versions": {"torch": "2.14", "timm": "1"}}


def record(measure: str = "accuracy", device_id: str = "cpu", protocol: int = 1, **fields) -> Record:
    common = {"status": "ok", "environment": HERE, "started_at": "2030-01-01T10:00:00.000+00:00"}
    return Record(measure=measure, device_id=device_id, protocol=protocol, **{**common, **fields})


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path, create=True)
    store.add_cell(CELL, "topk")
    return store


def only_row(store) -> pd.Series:
    table = load(store.out)
    assert len(table) == 1
    return table.iloc[0]


# --- columns


def test_the_readme_lists_every_column():
    readme = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    columns = readme[readme.index("## Columns") :]
    listed = [line for line in columns.splitlines() if line.startswith("| `")]
    assert listed == [f"| `{name}` | {c.dtype} | {c.unit} | {c.description} |" for name, c in COLUMNS.items()]


def test_the_readme_explains_every_status():
    readme = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    listed = [line for line in readme[readme.index("### Status") : readme.index("## Columns")].splitlines()]
    assert [line for line in listed if line.startswith("| `")] == [
        f"| `{status.name}` | {status.meaning} |" for status in STATUSES.values()
    ]
    assert f"the gravest of its measures: {', '.join(STATUSES)}." in " ".join(listed)


def test_an_empty_folder_has_every_column(tmp_path):
    open_store(tmp_path, create=True)
    table = load(str(tmp_path))
    assert len(table) == 0
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {n: c.dtype for n, c in COLUMNS.items()}


def test_dtypes_do_not_depend_on_the_rows(store):
    store.write_record(KEY, record(values={"acc1": 90, "n_eval": 5.0, "disturbed": True}))
    store.add_cell(Cell(seed=8))
    table = load(store.out)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {n: c.dtype for n, c in COLUMNS.items()}
    row = table.set_index("cell_key").loc[KEY]
    assert (row.acc1, row.n_eval, row.disturbed) == (90.0, 5, True)


def test_a_value_of_another_type_is_missing_and_costs_nothing_else(store):
    odd = {
        "acc1": "a lot",
        "val_loss": math.inf,
        "train_loss": math.nan,
        "n_eval": 2.5,
        "compile": "yes",
        "topk": 2**70,
        "steps": 1e300,
    }
    store.write_record(KEY, record(values={**odd, "acc5": 99.0, "regions": 7, "depths": [1, 1, 2, 1]}))
    row = only_row(store)
    assert row[["acc1", "train_loss", "n_eval", "topk"]].isna().all()
    assert (row.compile, row.steps) == (False, 400)  # which the cell says
    assert (row.val_loss, row.acc5, row.regions, row.depths) == (math.inf, 99.0, "7", "1-1-2-1")


def test_values_without_a_column_become_columns(store):
    mine = {
        "my_count": 3,
        "my_ratio": 0.5,
        "my_flag": True,
        "my_note": "x",
        "my_map": {"b": 1, "a": [2, 3]},
        "none": None,
    }
    store.write_record(KEY, record("my_measure", values={**mine, "worst": math.inf}))
    store.add_cell(Cell(seed=8))
    table = load(store.out)
    extra = {name: str(dtype) for name, dtype in table.dtypes.items() if name not in COLUMNS}
    assert extra == {
        "my_count": "Int64",
        "my_flag": "boolean",
        "my_map": "string",
        "my_measure_protocol": "Int64",
        "my_measure_status": "string",
        "my_note": "string",
        "my_ratio": "Float64",
        "none": "Float64",
        "worst": "Float64",
    }
    row = table.set_index("cell_key").loc[KEY]
    assert (row.my_map, row.worst, row.my_measure_status) == ("a=2-3;b=1", math.inf, "ok")
    assert table["my_count"].isna().sum() == 1


# --- identity


def test_a_row_says_what_the_cell_is(store):
    row = only_row(store)
    assert (row.cell_key, row.study, row.attention, row.layout, row.data) == (KEY, "topk", "bra", "small", "digit-vote")
    assert (row.height_px, row.width_px, row.resolution, row.seed, row.steps) == (48, 64, "48x64", 3, 400)
    assert (row.settings, row.topk, row.compile, row.batch_size) == ("topk=4", 4, False, 64)
    assert pd.isna(row.threads)
    assert pd.isna(row.topk_schedule)


def test_a_schedule_is_text_beside_the_number(store):
    key = store.add_cell(Cell(settings=(("lepe", False), ("region_size", "auto"), ("topk", "1-4-16-full"))))
    row = load(store.out).set_index("cell_key").loc[key]
    assert pd.isna(row.topk)
    assert (row.topk_schedule, row.region_size) == ("1-4-16-full", "auto")
    assert row.settings == "lepe=false;region_size=auto;topk=1-4-16-full"


def test_a_record_tells_what_the_cell_left_open(store):
    store.write_record(KEY, record(values={"threads": 2, "topk_effective": "4-4-4-1", "impl": "dense"}))
    row = only_row(store)
    assert (row.threads, row.topk_effective, row.impl) == (2, "4-4-4-1", "dense")


def test_studies_are_joined(store):
    store.add_cell(CELL, "pareto")
    assert only_row(store).study == "pareto;topk"


def test_a_damaged_cell_keeps_its_measurements(store):
    store.write_record(KEY, record(values={"acc1": 90.0}))
    (store.folder(KEY) / "cell.json").write_text('{"sche')
    (store.out / "cells" / "just-being-made").mkdir()
    row = only_row(store)
    assert (row.cell_key, row.status, row.acc1) == (KEY, "lost", 90.0)
    assert "cell.json" in row.error_message
    assert pd.isna(row.attention)


# --- rows


def test_devices_have_rows_of_their_own_and_share_the_flops(store):
    store.write_record(KEY, record("flops", "gpu", values={"gmacs": 0.5}, environment={"host": "n3"}, command="gpu"))
    store.write_record(KEY, record("accuracy", "cpu", values={"acc1": 80.0}, command="cpu"))
    store.write_record(KEY, record("accuracy", "gpu", values={"acc1": 81.0}, environment={**HERE, "host": "n2"}))
    store.write_record(KEY, record("throughput", "gpu", values={"infer_latency_ms": 3.0}))
    cpu, gpu = (row for _, row in load(store.out).iterrows())
    assert (cpu.device_id, cpu.acc1, cpu.gmacs, cpu.host) == ("cpu", 80.0, 0.5, "n1")
    assert cpu.command == "cpu"
    assert (gpu.device_id, gpu.acc1, gpu.gmacs, gpu.infer_latency_ms) == ("gpu", 81.0, 0.5, 3.0)
    assert pd.isna(cpu.infer_latency_ms)


def test_flops_alone_are_a_row(store):
    store.write_record(KEY, record("flops", "gpu", values={"gmacs": 0.5}))
    row = only_row(store)
    assert (row.device_id, row.gmacs, row.flops_status, row.status) == ("gpu", 0.5, "ok", "ok")


def test_the_latest_flops_count_unless_they_are_damaged(store):
    early, late = "2030-01-01T10:00:00.000+00:00", "2030-01-01T11:00:00.000+00:00"
    store.write_record(KEY, record("flops", "b", values={"gmacs": 1.0}, ended_at=early))
    store.write_record(KEY, record("accuracy", "b"))
    newest = store.write_record(KEY, record("flops", "a", values={"gmacs": 2.0}, ended_at=late))
    assert only_row(store).gmacs == 2.0
    newest.write_text("{")
    row = only_row(store)
    assert (row.gmacs, row.status) == (1.0, "ok")
    store.write_record(KEY, record("flops", "c", protocol=2, values={"gmacs": 3.0}, ended_at=""))
    assert only_row(store).gmacs == 3.0


def test_the_latest_attempt_of_the_highest_protocol_counts(store):
    for protocol, attempt, acc1 in [
        (1, 1, 10.0),
        (1, 2, 20.0),
        (2, 1, 30.0),
        (2, 9, 40.0),
        (2, 10, 50.0),
        (1, 11, 60.0),
    ]:
        store.write_record(KEY, record(protocol=protocol, attempt=attempt, values={"acc1": acc1}))
    store.write_record(KEY, record("memory", protocol=7, values={"peak_infer_mib": 5.0}))
    row = only_row(store)
    assert (row.acc1, row.accuracy_protocol, row.memory_protocol, row.attempts) == (50.0, 2, 7, 10)


def test_a_failed_attempt_hides_the_values_of_an_earlier_one(store):
    store.write_record(KEY, record(values={"acc1": 90.0}))
    store.write_record(KEY, record(status="diverged", error_type="Diverged", error_message="loss is nan"))
    row = only_row(store)
    assert pd.isna(row.acc1)
    assert (row.status, row.error_type, row.error_message) == ("diverged", "Diverged", "accuracy: loss is nan")


def test_the_command_of_a_row_measures_all_of_it(store):
    for measure in ("memory", "flops", "accuracy"):
        store.write_record(KEY, record(measure, command=f"python runners/sweep.py --seeds 1 --measure {measure}"))
    assert only_row(store).command == "python runners/sweep.py --seeds 1 --measure accuracy,flops,memory"


def test_what_differs_between_the_measures_of_a_row_is_shown(store):
    later = "2030-01-01T11:00:00.000+00:00"
    there = {**HERE, "host": "n2", "git_dirty": True, "versions": {"torch": "2.15", "timm": "1"}}
    store.write_record(KEY, record("memory", environment=there, command="early", log_path="1"))
    store.write_record(KEY, record("accuracy", started_at=later, command="late", log_path="2"))
    row = only_row(store)
    assert (row.host, row.git_sha, row.git_dirty) == ("n2;n1", "abc", True)
    assert row.versions == "timm=1;torch=2.15;timm=1;torch=2.14"
    assert (row.started_at, row.command, row.log_path) == (later, "late", "2")


def test_a_flag_that_is_down_in_all_measures_is_down_in_the_row(store):
    store.write_record(KEY, record("memory", environment={**HERE, "git_sha": "def"}))
    store.write_record(KEY, record("accuracy"))
    row = only_row(store)
    assert set(row.git_sha.split(";")) == {"abc", "def"}
    assert not pd.isna(row.git_dirty) and not row.git_dirty


def test_a_damaged_record_costs_its_own_measure_only(store):
    path = store.write_record(KEY, record(values={"acc1": 90.0}))
    store.write_record(KEY, record("memory", values={"peak_infer_mib": 7.5}))
    other = store.add_cell(Cell(seed=9))
    store.write_record(other, record(values={"acc1": 91.0}))
    path.write_bytes(path.read_bytes()[:-40])
    table = load(store.out).set_index("cell_key")
    row = table.loc[KEY]
    assert (row.status, row.accuracy_status, row.memory_status, row.peak_infer_mib) == ("lost", "lost", "ok", 7.5)
    assert str(path) in row.error_message
    assert (table.loc[other].status, table.loc[other].acc1) == ("ok", 91.0)
    store.write_record(KEY, record(values={"acc1": 92.0}))
    row = load(store.out).set_index("cell_key").loc[KEY]
    assert (row.status, row.acc1, row.attempts) == ("ok", 92.0, 2)


# --- folders


def test_results_of_another_schema_version_are_refused(tmp_path):
    (tmp_path / "store.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(StoreError, match="schema version 2"):
        load(tmp_path)


def test_loading_writes_nothing(store):
    store.write_record(KEY, record())
    before = {path: path.stat().st_mtime_ns for path in store.out.rglob("*")}
    load(store.out)
    assert {path: path.stat().st_mtime_ns for path in store.out.rglob("*")} == before


def test_the_table_does_without_torch():
    code = "import sys, runners.table, runners.store.lease; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
