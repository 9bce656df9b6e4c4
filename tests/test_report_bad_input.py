"""The report refuses what it cannot show in one line, and leaves the older page where it was."""

import pandas as pd
import pytest
from report_pages import SAMPLE, Elements, folder, without_drawn_figures
from sample_results import DEVICE, record, write_sample

from ablations.study import Cell, cell_key
from runners.report import main
from runners.rows import selection
from runners.rows.selection import read_rows
from runners.store.store import open_store

__all__ = ["folder", "without_drawn_figures"]  # fixtures


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("report.py: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("margin", ["0", "-1", "none", "101"])
def test_a_margin_that_is_none(capsys, folder, margin):
    with pytest.raises(SystemExit) as end:
        main(["--results", str(folder), "--margin", margin])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "--margin" in message and repr(margin) in message and message.count("\n") == 1


def test_results_that_are_not_there(capsys, tmp_path):
    assert "does not exist" in refused(capsys, "--results", tmp_path / "nowhere")
    assert "no store.json" in refused(capsys, "--results", tmp_path)


def test_results_without_a_row(capsys, tmp_path):
    open_store(tmp_path / "empty", create=True)
    assert "no rows in" in refused(capsys, "--results", tmp_path / "empty")


def test_a_single_row(capsys, tmp_path):
    store = open_store(tmp_path, create=True)
    store.add_cell(Cell())
    store.write_record(cell_key(Cell()), record(Cell(settings=(("topk", 4),)), "flops"))
    assert "one row only" in refused(capsys, "--results", tmp_path, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_missing_column(capsys, tmp_path):
    pd.read_csv(SAMPLE).drop(columns=["seed", "status"]).to_csv(tmp_path / "t.csv", index=False)
    assert "lacks the columns seed, status" in refused(capsys, "--results", tmp_path / "t.csv")


def test_a_file_that_is_no_table(capsys, tmp_path):
    (tmp_path / "t.csv").write_bytes(b'a,b\n"1\n\xff')
    assert "cannot be read as a CSV table" in refused(capsys, "--results", tmp_path / "t.csv")


def test_an_unknown_study_lists_the_known(capsys, folder):
    assert "unknown study 'tokp'; these results have topk" in refused(capsys, "--results", folder, "--study", "tokp")


def test_rows_of_several_devices(capsys, tmp_path):
    store = write_sample(tmp_path / "r", seeds=2, sides=(64,))
    cell = Cell(attn="vanilla")
    store.write_record(cell_key(cell), record(cell, "throughput", device_id="cuda-x"))
    out = tmp_path / "r.html"
    message = refused(capsys, "--results", tmp_path / "r", "--out", out)
    assert f"{DEVICE}, cuda-x" in message
    assert "--mixed-devices" in message
    assert main(["--results", str(tmp_path / "r"), "--out", str(out), "--mixed-devices"]) == 0
    assert "2 devices, which are kept apart" in Elements(out.read_text()).text


def test_flops_of_another_device_are_not_another_device(tmp_path):
    store = write_sample(tmp_path, seeds=1, sides=(64,))
    cell = Cell(attn="swin", seed=9)
    store.add_cell(cell)
    store.write_record(cell_key(cell), record(cell, "flops", device_id="cuda-x", values={"gmacs": 1.0}))
    assert selection.devices(read_rows(tmp_path)) == [DEVICE]


@pytest.mark.parametrize("name", ["", "nowhere/r.html"])
def test_an_output_that_cannot_be_written(capsys, tmp_path, folder, name):
    assert "--out" in refused(capsys, "--results", folder, "--out", tmp_path / name)


def test_a_failed_report_leaves_the_older_one(capsys, tmp_path, folder):
    out = tmp_path / "r.html"
    out.write_text("older")
    refused(capsys, "--results", folder, "--study", "nothing", "--out", out)
    assert out.read_text() == "older"
    assert list(tmp_path.iterdir()) == [out]
