"""The results folder: cells, their studies, and folders that cannot be used."""

import json
import math
import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ablations.study import Cell, cell_key
from runners.store.record import Record
from runners.store.store import SCHEMA, StoreError, open_store

CELL = Cell(settings=(("topk", 4),))
KEY = cell_key(CELL)
FOUND = Record(measure="accuracy", device_id="cpu", protocol=1, status="ok", values={"acc1": 91.5})


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "hostile 'name' with spaces", create=True)
    store.add_cell(CELL, "topk", ["accuracy"])
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- cells


def test_a_cell_comes_back(store):
    assert store.cells() == {KEY: CELL}
    content = json.loads((store.folder(KEY) / "cell.json").read_text())
    assert content["cell"] == {"settings": {"topk": 4}}
    assert content["schema"] == SCHEMA
    assert content["label"] == "bra topk=4 small 64x64 digit-vote seed 0"


def test_the_cell_of_all_defaults_comes_back(store):
    key = store.add_cell(Cell())
    assert store.cells()[key] == Cell()


def test_studies_and_wanted_measures_add_up(store):
    before = files(store.out)
    store.add_cell(CELL, "topk", ["accuracy"])
    store.add_cell(CELL)
    assert files(store.out) == before
    store.add_cell(CELL, "pareto", ["flops"])
    assert store.studies(KEY) == ["pareto", "topk"]
    assert store.wanted(KEY) == {None: ["accuracy", "flops"]}


def test_a_new_field_with_a_default_finds_the_old_cells(store):
    @dataclass(frozen=True, kw_only=True)
    class NewerCell(Cell):
        drop_path: float = 0.0

    store.write_record(KEY, FOUND)
    newer = NewerCell(settings=CELL.settings)
    assert store.add_cell(newer) == KEY
    assert [record.values for record in store.records(cell_key(newer))] == [FOUND.values]
    assert cell_key(NewerCell(settings=CELL.settings, drop_path=0.1)) != KEY


def test_a_cell_of_a_newer_version_is_left_out(store):
    path = store.folder("0123456789abcdef") / "cell.json"
    path.parent.mkdir()
    path.write_text('{"schema": 1, "cell": {"drop_path": 0.1}}')
    assert store.cells() == {KEY: CELL}


def test_a_damaged_cell_file_is_written_again(store):
    path = store.folder(KEY) / "cell.json"
    whole = path.read_text()
    path.write_text(whole[:20])
    assert store.cells() == {}
    store.add_cell(CELL)
    assert path.read_text() == whole


@pytest.mark.parametrize("name", ["../evil", "", ".hidden", "a/b", "a b"])
def test_a_name_that_is_no_file_name(store, name):
    with pytest.raises(StoreError, match="letters, digits"):
        store.add_cell(CELL, measures=[name])
    with pytest.raises(StoreError, match="letters, digits"):
        store.write_record(KEY, replace(FOUND, device_id=name))
    assert store.record_names(KEY) == []


# --- folders


def test_another_schema_version_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"schema": 7}')
    message = re.escape(f"{tmp_path} have schema version 7, this program reads and writes {SCHEMA}")
    for create in (False, True):
        with pytest.raises(StoreError, match=message):
            open_store(tmp_path, create=create)
    assert files(tmp_path) == ["store.json"]


@pytest.mark.parametrize("content", ["", '{"sche', "[]", "{}"])
def test_a_damaged_store_file_is_named(tmp_path, content):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"store\.json cannot be read"):
        open_store(tmp_path, create=True)


def test_reading_creates_nothing(tmp_path):
    for out in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match=f"no results in {re.escape(str(out))}"):
            open_store(out, create=False)
    assert list(tmp_path.iterdir()) == []


def test_opening_again_changes_nothing(store):
    before = files(store.out)
    assert open_store(store.out, create=True) == open_store(store.out, create=False) == store
    assert files(store.out) == before


@pytest.mark.parametrize("below", ["", "runs", "deep/er"])
def test_a_folder_that_is_or_lies_below_a_file(tmp_path, below):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for create in (True, False):
        with pytest.raises(StoreError, match=re.escape(str(file)) + ("" if below else " is not a folder")):
            open_store(file / below, create=create)
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "read only"
    open_store(folder, create=True)
    if os.geteuid() == 0:
        # permissions do not stop root, a read-only mount does
        mount = ["mount", "--bind", str(folder), str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a read-only folder needs privileges: {done.stderr.strip()}")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    else:
        folder.chmod(0o555)
    try:
        assert open_store(folder, create=False).cells() == {}
        for out in (folder, folder / "new"):
            with pytest.raises(StoreError, match=rf"{re.escape(str(out))} cannot be written: .+"):
                open_store(out, create=True)
        with pytest.raises(StoreError, match="cannot write"):
            open_store(folder, create=False).add_cell(CELL)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            folder.chmod(0o755)
    assert files(folder) == ["store.json"]


def test_a_folder_whose_name_is_too_long(tmp_path):
    for create in (True, False):
        with pytest.raises(StoreError, match="xxx"):
            open_store(tmp_path / ("x" * 300), create=create)


def test_what_file_systems_and_desktops_leave_behind_is_ignored(store):
    for stray in ("", f"{KEY}/studies", f"{KEY}/wanted"):
        (store.out / "cells" / stray / ".nfs0123").touch()
    (store.out / "cells" / "notes.txt").write_text("mine")
    assert store.cells() == {KEY: CELL}
    assert (store.studies(KEY), store.wanted(KEY)) == (["topk"], {None: ["accuracy"]})


def test_progress_is_replaced_and_may_be_absent(store):
    assert store.read_progress(KEY) == {}
    store.write_progress(KEY, {"step": 1, "loss": math.nan})
    store.write_progress(KEY, {"step": 2, "loss": 0.5})
    assert store.read_progress(KEY) == {"step": 2, "loss": 0.5}
    (store.folder(KEY) / "progress.json").write_text('{"step"')
    assert store.read_progress(KEY) == {}
