"""The lists of measures, quantities and statuses, and that everything reads them."""

from dataclasses import replace

import pytest

from ablations.study import Cell
from runners import measures
from runners.cells.run import FUNCTIONS
from runners.figures.frames import failures
from runners.jobs.cell_status import sort_key
from runners.jobs.pending import pending
from runners.measures import CAN_RETRY, DONE, MEASURES, NOT_FAILED, RECORDED, STATUSES, Quantity, severity
from runners.reporting.payload import table
from runners.rows.ranking import groups
from runners.rows.selection import read_rows
from runners.store.columns import COLUMNS
from runners.store.record import Record, to_text
from runners.store.store import open_store

QUANTITIES = [value for value in vars(measures).values() if isinstance(value, Quantity)]


def test_every_measure_has_a_function_that_runs_it():
    first = ["flops", "throughput", "memory", "accuracy"]
    assert list(FUNCTIONS) == list(MEASURES) == [*first, "launches", "latency", "max_batch", "energy"]


def test_what_is_shown_of_a_measure_are_columns_of_the_table():
    assert {column for measure in MEASURES.values() for column in measure.shown} <= COLUMNS.keys()


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.column)
def test_a_quantity_is_a_column_of_its_measure_and_its_unit(quantity):
    assert COLUMNS[quantity.column].unit == quantity.unit
    assert quantity.measure in MEASURES


def test_the_words_of_each_list():
    assert set(RECORDED) == {"ok", "unsupported", "diverged", "timeout", "oom", "killed", "error"}
    assert set(NOT_FAILED) == {"ok", "pending", "running"}
    assert set(DONE) == {"ok", "unsupported"}
    assert set(CAN_RETRY) == {"error", "killed", "oom", "timeout", "diverged", "lost"}
    assert {name for name in STATUSES if STATUSES[name].may_pass} == set(CAN_RETRY) - {"diverged"}


def test_a_status_of_a_newer_version_is_a_failure_everywhere(tmp_path):
    store = open_store(tmp_path, create=True)
    key = store.add_cell(Cell(attn="bra"), measures=["accuracy"])
    path = store.write_record(key, Record(measure="accuracy", device_id="cpu", protocol=1, status="error"))
    path.write_text(to_text(replace(store.records(key)[0], status="melted", error_message="why"), key))

    rows = read_rows(tmp_path)
    assert rows["status"].tolist() == ["melted"]
    assert failures(rows, measures.ACCURACY) == {0: "melted"}
    assert [failure.status for group in groups(rows) for failure in group.failures] == ["melted"]
    assert table(rows)["failures"] == ["melted"]
    assert [record.status for record in pending(store, key, ["accuracy"], "cpu").failed] == ["melted"]
    assert severity("melted") < severity("error") < severity("ok")
    assert sort_key("running") < sort_key("melted") < sort_key("error")
