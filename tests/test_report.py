"""The page of the report: it holds every row, marks what was disturbed, and nothing in a row leaves its place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from report_pages import SAMPLE, Elements, folder, without_drawn_figures
from sample_results import HOSTILE, failure, write_sample

from ablations.study import Cell, cell_key
from runners.report import main
from runners.reporting import payload
from runners.reporting.page import to_html
from runners.rows import ranking, selection
from runners.rows.selection import described, read_rows
from runners.store.names import visible

__all__ = ["folder", "without_drawn_figures"]  # fixtures

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page(folder):
    return to_html(selection.read_rows(folder), str(folder))


# --- the page


def test_the_table_shows_the_column_in_which_two_rows_differ():
    rows = selection.read_rows(next((ROOT / "results").glob("sample_*.csv")))
    columns = {column["name"]: column for column in payload.table(rows)["columns"]}
    shown = [name for name, column in columns.items() if column["main"]]
    assert "batch_size" in shown and "layout" not in shown
    identity = [name for name in shown if name in ("configuration", "resolution", "seed", "batch_size")]
    assert not rows.duplicated(identity).any()
    alone = {column["name"]: column for column in payload.table(rows[rows["batch_size"] == 64])["columns"]}
    assert not alone["batch_size"]["main"]


def test_a_disturbed_row_is_marked_in_the_table_the_charts_and_the_page(folder):
    rows = read_rows(folder)
    rows["disturbed"] = pd.array([index == 0 for index in range(len(rows))], dtype="boolean")
    assert {c["name"] for c in payload.table(rows)["columns"] if c["main"]} >= {"disturbed"}
    points = payload.points(rows, ranking.groups(rows))["points"]
    assert [p["name"] for p in points if p["disturbed"]] == [rows["configuration"].iloc[0]]
    assert "disturbed the timing of 1 rows" in Elements(to_html(rows, "x")).text


def test_the_page_holds_every_row_its_command_and_its_environment(page, folder):
    elements = Elements(page)
    table, points = (json.loads(text) for text in elements.scripts[:2])
    columns = {column["name"]: column for column in table["columns"]}
    rows = read_rows(folder)
    assert table["size"] == len(rows) == 37
    commands = [columns["command"]["levels"][code] if code >= 0 else None for code in columns["command"]["codes"]]
    assert set(commands) - {None} == set(rows["command"].dropna())
    assert sorted(filter(None, columns["gmacs"]["values"])) == pytest.approx(sorted(rows["gmacs"].dropna()))
    assert columns["gmacs"]["unit"] == "GMAC"
    assert "Test Processor" in elements.text
    assert "0123abc" in elements.text
    assert len(points["points"]) == 13
    lost = [point for point in points["points"] if point["status"] == "oom"]
    assert [point["name"] for point in lost] == ["bra topk=16"]
    assert "throughput: out of memory" in lost[0]["message"]


def test_the_page_asks_the_network_for_nothing(page):
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not (attributes.get("src") or "data:").startswith(("http", "//"))
        assert not (attributes.get("href") or "#").startswith(("http", "//"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")


def test_no_text_of_a_result_becomes_a_tag(tmp_path):
    store = write_sample(tmp_path, seeds=1, sides=(64,), study="x")
    cell = Cell(attn="swin", seed=7)
    store.add_cell(cell)
    hostile = failure(cell, "accuracy", "error")
    hostile.command = HOSTILE
    hostile.environment = {"host": HOSTILE, "git_sha": HOSTILE, "device_name": HOSTILE}
    store.write_record(cell_key(cell), hostile)
    harmless = Elements(to_html(selection.read_rows(SAMPLE), "s"))
    elements = Elements(to_html(read_rows(tmp_path), HOSTILE, HOSTILE))
    assert {tag for tag, _ in elements.tags} == {tag for tag, _ in harmless.tags}
    assert len(elements.scripts) == len(harmless.scripts)
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in elements.text
    levels = {text for column in json.loads(elements.scripts[0])["columns"] for text in column.get("levels", [])}
    assert visible(HOSTILE) in levels


def test_script_data_survives_the_trip_and_holds_no_tag():
    data = {"text": HOSTILE + "\u2028<!--", "numbers": [1, 0.5, None]}
    text = payload.to_script(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028") & set(text)


def test_infinite_losses_stay_infinite(folder):
    rows = read_rows(folder).assign(val_loss=pd.array([float("inf")] * 37, dtype="Float64"))
    (column,) = [c for c in json.loads(payload.to_script(payload.table(rows)))["columns"] if c["name"] == "val_loss"]
    assert set(column["values"]) == {float("inf")}


def test_versions_of_a_protocol_that_do_not_mix_are_pointed_out(folder):
    rows = read_rows(folder)
    rows.loc[0, "accuracy_protocol"] = 2
    assert "accuracy_protocol: rows of versions 1, 2" in Elements(to_html(rows, "x")).text


def test_the_script_runs_from_the_checkout_and_writes_the_page(tmp_path):
    out = tmp_path / "report.html"
    arguments = [sys.executable, "runners/report.py", "--results", str(SAMPLE), "--out", str(out)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{out}\n")
    assert "vanilla reaches 97.1" in Elements(out.read_text()).text


# --- rows


def test_the_committed_table_can_be_read(capsys, tmp_path):
    assert main(["--results", str(SAMPLE), "--format", "csv"]) == 0
    copy = tmp_path / "copy.csv"
    copy.write_text(capsys.readouterr().out)
    pd.testing.assert_frame_equal(selection.read_rows(copy), selection.read_rows(SAMPLE), check_column_type=False)


def test_configurations_and_conditions_have_readable_names():
    rows = pd.DataFrame(
        {
            "attention": ["bra", "bra", "swin", None],
            "topk": pd.array([4, None, None, None], dtype="Int64"),
            "topk_schedule": [None, "1-4-16-full", None, None],
            "settings": ["topk=4;lepe=false", "topk=1-4-16-full", "", None],
        }
    )
    found = described(rows.reindex(columns=[*rows, "model", *selection.CONDITIONS]))
    assert list(found["configuration"]) == ["bra topk=4 lepe=false", "bra topk=1-4-16-full", "swin", "unknown"]
    assert list(found["settings"]) == [{"topk": "4", "lepe": "false"}, {"topk": "1-4-16-full"}, {}, {}]
    assert set(found["conditions"]) == {"all rows"}
    assert list(selection.as_read(found)["settings"]) == ["topk=4;lepe=false", "topk=1-4-16-full", "", ""]
