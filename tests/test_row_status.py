"""The status of a row of the table: what was recorded decides, then the lease."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from ablations.study import Cell, cell_key
from runners.store.lease import acquire
from runners.store.record import Record, to_text
from runners.store.store import open_store
from runners.table import load

CELL = Cell()
KEY = cell_key(CELL)
FAILED = {"error_type": "E", "error_message": "why"}


def record(measure: str, **fields) -> Record:
    return Record(measure=measure, device_id="cpu", protocol=1, **({"status": "ok"} | fields))


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path, create=True)
    store.add_cell(CELL)
    return store


def only_row(store) -> pd.Series:
    table = load(store.out)
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize(
    ("wanted", "recorded", "expected"),
    [
        ("", {}, "pending"),
        ("am", {}, "pending"),
        ("am", {"a": "ok"}, "pending"),
        ("am", {"a": "ok", "m": "ok"}, "ok"),
        ("a", {"a": "ok", "m": "ok"}, "ok"),
        ("", {"a": "ok"}, "ok"),
        ("am", {"a": "unsupported", "m": "ok"}, "unsupported"),
        ("am", {"a": "diverged", "m": "unsupported"}, "diverged"),
        ("am", {"a": "diverged", "m": "timeout"}, "timeout"),
        ("am", {"a": "oom", "m": "timeout"}, "oom"),
        ("am", {"a": "oom", "m": "killed"}, "killed"),
        ("am", {"a": "error", "m": "killed"}, "error"),
        ("am", {"a": "oom"}, "oom"),
        ("am", {"a": "lost"}, "lost"),
        ("a", {"a": "lost"}, "lost"),
        ("am", {"a": "lost", "m": "oom"}, "oom"),
        ("am", {"a": "of-the-future", "m": "error"}, "of-the-future"),
    ],
)
@pytest.mark.parametrize("lease", ["none", "live", "dead"])
def test_status_of_a_row(store, wanted, recorded, expected, lease):
    measures = {"a": "accuracy", "m": "memory"}
    store.add_cell(CELL, measures=[measures[letter] for letter in wanted])
    for letter, status in recorded.items():
        found = record(measures[letter], **(FAILED | {"status": "error", "log_path": letter}))
        path = store.write_record(KEY, found)
        path.write_text(to_text(replace(found, status=status), KEY) if status != "lost" else "{")
    if expected in ("pending", "lost") and lease != "none":
        expected = {"live": "running", "dead": "lost"}[lease]
    held = acquire(store.lease_path(KEY)) if lease == "live" else None
    if lease == "dead":
        store.lease_path(KEY).write_text("")
        os.utime(store.lease_path(KEY), (0, 0))
    row = only_row(store)
    if held is not None:
        held.release()
    assert row.status == expected
    unmeasured = {"none": "pending", "live": "running", "dead": "lost"}[lease]
    for letter, measure in measures.items():
        status = recorded.get(letter, unmeasured if letter in wanted else None)
        assert row[f"{measure}_status"] == status if status else pd.isna(row[f"{measure}_status"])
    culprit = [letter for letter, status in recorded.items() if status == expected != "lost"]
    if culprit and expected != "ok":
        assert (row.error_type, row.log_path) == ("E", culprit[0])


def test_every_failure_of_a_row_is_told(store):
    store.write_record(KEY, record("memory", status="oom", error_message="5 MiB too much"))
    path = store.write_record(KEY, record("accuracy"))
    path.write_text("{")
    message = only_row(store).error_message
    assert message.startswith(f"accuracy: {path} cannot be read")
    assert message.endswith("; memory: 5 MiB too much")


def test_a_killed_job_leaves_a_lost_row(store):
    store.add_cell(CELL, measures=["accuracy"])
    code = f"""
import pathlib, time
from runners.store.lease import acquire
acquire(pathlib.Path({str(store.lease_path(KEY))!r}))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert only_row(store).status == "running"
        process.send_signal(signal.SIGKILL)
    assert only_row(store).status == "lost"
