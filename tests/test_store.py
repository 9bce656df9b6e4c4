"""The results folder under everything that happens to it: races, full disks, damage, foreign folders."""

import errno
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ablations.study import Cell, cell_key
from runners.record import STATUSES, Record, RecordName
from runners.store import SCHEMA, StoreError, open_store

SPAWN = multiprocessing.get_context("spawn")
CELL = Cell(settings=(("topk", 4),))
KEY = cell_key(CELL)
FOUND = Record(
    measure="accuracy",
    device_id="cpu-any_1.0",
    protocol=2,
    status="ok",
    values={"acc1": 91.5, "note": 'a ",\n"samples": of trouble'},
    samples={"losses": [2.3, 1.1]},
    environment={"host": "n1", "versions": {"torch": "2.14"}},
    started_at="2030-01-02T03:04:05.000+00:00",
    ended_at="2030-01-02T03:05:05.000+00:00",
    command="python runners/sweep.py --attn bra --topk 4",
    log_path="logs/1.out",
)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "hostile 'name' with spaces", create=True)
    store.add_cell(CELL, "topk", ["accuracy"])
    return store


def mounted(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(arguments)} needs privileges: {done.stderr.strip()}")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_many(out: Path, writer: int, count: int) -> None:
    store = open_store(out, create=False)
    for number in range(count):
        samples = {"padding": [writer] * 2000}
        store.write_record(KEY, replace(FOUND, values={"writer": writer, "number": number}, samples=samples))


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
    assert store.wanted(KEY) == ["accuracy", "flops"]


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


# --- records


def test_a_record_comes_back(store):
    path = store.write_record(KEY, FOUND)
    assert path.name == "accuracy.cpu-any_1.0.v2.a1.json"
    assert store.records(KEY) == [FOUND]
    name = RecordName("accuracy", "cpu-any_1.0", 2, 1)
    assert store.record_names(KEY) == [name]
    assert store.read_record(KEY, name, samples=False) == replace(FOUND, samples={})


def test_a_record_is_one_strict_json_object(store):
    values = {
        "nan": math.nan,
        "inf": math.inf,
        "numpy": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "path": Path("a"),
        "nested": [{1: -math.inf}],
    }
    path = store.write_record(KEY, replace(FOUND, values=values, samples={"x": np.array([1.0, math.nan])}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["values"] == {
        "nan": None,
        "inf": "inf",
        "numpy": 0.5,
        "count": 3,
        "flag": True,
        "path": "a",
        "nested": [{"1": "-inf"}],
    }
    assert content["samples"] == {"x": [1.0, None]}


def test_an_unknown_status_is_refused(store):
    with pytest.raises(StoreError, match=r"one of ok, unsupported.*'fine'"):
        store.write_record(KEY, replace(FOUND, status="fine"))
    for status in STATUSES:
        store.write_record(KEY, replace(FOUND, status=status))


def test_an_attempt_is_never_overwritten(store):
    first = store.write_record(KEY, FOUND)
    before = first.read_bytes()
    second = store.write_record(KEY, replace(FOUND, values={"acc1": 50.0}))
    assert second.name == "accuracy.cpu-any_1.0.v2.a2.json"
    assert first.read_bytes() == before
    assert [record.attempt for record in store.records(KEY)] == [1, 2]


def test_attempts_are_counted_for_each_protocol_device_and_measure(store):
    assert store.next_attempt(KEY, "accuracy", "cpu-any_1.0", 2) == 1
    for number in range(10):
        store.write_record(KEY, replace(FOUND, attempt=number + 1))
    assert store.next_attempt(KEY, "accuracy", "cpu-any_1.0", 2) == 11
    assert store.next_attempt(KEY, "accuracy", "cpu-any_1.0", 3) == 1
    assert store.next_attempt(KEY, "accuracy", "cuda", 2) == 1
    assert store.next_attempt(KEY, "memory", "cpu-any_1.0", 2) == 1


def test_the_file_name_decides_what_a_record_is(store):
    path = store.write_record(KEY, FOUND)
    path.rename(path.with_name("memory.gpu.v3.a7.json"))
    assert [record.name for record in store.records(KEY)] == [RecordName("memory", "gpu", 3, 7)]


def test_fields_of_a_newer_version_are_ignored(store):
    path = store.write_record(KEY, FOUND)
    path.write_text(path.read_text().replace("{", '{"colour": "blue", ', 1))
    assert store.records(KEY) == [FOUND]


def test_concurrent_writers_of_one_attempt_lose_nothing(store):
    writers, count = 4, 20
    processes = [SPAWN.Process(target=write_many, args=(store.out, w, count)) for w in range(writers)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        # a reader beside the writers sees whole records only
        assert {record.status for record in store.records(KEY)} <= {"ok"}
        time.sleep(0.02)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * writers
    records = store.records(KEY)
    assert [record.attempt for record in records] == list(range(1, writers * count + 1))
    found = sorted((record.values["writer"], record.values["number"]) for record in records)
    assert found == [(writer, number) for writer in range(writers) for number in range(count)]
    assert all(record.samples == {"padding": [record.values["writer"]] * 2000} for record in records)
    assert not [name for name in os.listdir(store.folder(KEY) / "records") if name.endswith(".tmp")]


def test_a_record_is_on_disk_before_it_has_its_name(store, monkeypatch):
    events = []
    sync, link = os.fsync, os.link

    def log_sync(descriptor: int) -> None:
        events.append(f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        sync(descriptor)

    def log_link(source: Path, target: Path) -> None:
        events.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", log_sync)
    monkeypatch.setattr(os, "link", log_link)
    store.write_record(KEY, FOUND)
    assert events == ["sync file", "name", "sync folder"]


@pytest.mark.parametrize("extra", [-1, 0, 1, 1 << 16])
def test_a_large_record_is_read_whole(store, extra):
    path = store.write_record(KEY, replace(FOUND, samples={"x": ""}))
    store.write_record(KEY, replace(FOUND, samples={"x": "y" * ((1 << 16) - path.stat().st_size + extra)}))
    assert [record.status for record in store.records(KEY)] == ["ok", "ok"]


def test_a_file_system_without_hard_links(store, monkeypatch):
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for number in (1, 2):
        assert store.write_record(KEY, FOUND).name.endswith(f".a{number}.json")
    assert store.records(KEY) == [FOUND, replace(FOUND, attempt=2)]


# --- damage


def test_a_record_cut_off_anywhere_is_lost_and_superseded(store):
    path = store.write_record(KEY, FOUND)
    whole = path.read_bytes()
    name = FOUND.name
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for samples in (False, True):
            record = store.read_record(KEY, name, samples=samples)
            assert record.status == "lost", length
            assert str(path) in record.error_message
            assert record.name == name
    assert store.next_attempt(KEY, *name[:3]) == 2
    assert store.write_record(KEY, FOUND).name.endswith(".a2.json")
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 400,
        b"\xff\xfe",
        b"{}\n",
        b"[]\n",
        b'{"status": "ok",\n"environment": {},\n"samples": {}}\n',
        {"values": []},
        {"started_at": 5},
        {"ended_at": None},
        {"status": ["ok"]},
        {"environment": []},
    ],
)
def test_a_damaged_record_is_lost_with_its_file_named(store, content):
    path = store.write_record(KEY, FOUND)
    if isinstance(content, dict):
        # written by somebody else: one object on the same three lines, a field of another type
        parts = {**json.loads(path.read_text()), **content}
        head = {name: value for name, value in parts.items() if name not in ("environment", "samples")}
        tail = f',\n"environment": {json.dumps(parts["environment"])},\n"samples": {{}}}}\n'
        content = (json.dumps(head)[:-1] + tail).encode()
    path.write_bytes(content)
    store.write_record(KEY, replace(FOUND, measure="memory"))
    lost, whole = store.records(KEY)
    assert (lost.status, lost.name) == ("lost", FOUND.name)
    assert str(path) in lost.error_message
    assert whole.status == "ok"


def test_a_full_disk_leaves_whole_records_and_a_clear_error(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    try:
        store = open_store(folder / "runs", create=True)
        store.add_cell(CELL)
        big = replace(FOUND, samples={"x": list(range(2000))})
        with pytest.raises(StoreError, match=r"cannot write .*records/accuracy.*json: No space left on device"):
            for _ in range(100):
                store.write_record(KEY, big)
        kept = store.records(KEY)
        assert len(kept) > 3
        assert {record.status for record in kept} == {"ok"}
        assert len(os.listdir(store.folder(KEY) / "records")) == len(kept)
        with pytest.raises(StoreError, match="No space left on device"):
            store.write_record(KEY, big)
        store.write_progress(KEY, {"padding": "x" * 100_000})
        assert store.read_progress(KEY) == {}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_short_write_leaves_no_half_record(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"records/accuracy.*a1\.json: File too large"):
            store.write_record(KEY, replace(FOUND, samples={"x": list(range(9000))}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(store.folder(KEY) / "records") == []


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
        mounted(folder, "--bind", str(folder))
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
    assert (store.studies(KEY), store.wanted(KEY)) == (["topk"], ["accuracy"])


def test_progress_is_replaced_and_may_be_absent(store):
    assert store.read_progress(KEY) == {}
    store.write_progress(KEY, {"step": 1, "loss": math.nan})
    store.write_progress(KEY, {"step": 2, "loss": 0.5})
    assert store.read_progress(KEY) == {"step": 2, "loss": 0.5}
    (store.folder(KEY) / "progress.json").write_text('{"step"')
    assert store.read_progress(KEY) == {}
