"""Records under everything that happens to them: races, full disks, damage, odd values."""

import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablations.study import Cell, cell_key
from runners.measures import RECORDED
from runners.store.record import MAX_VALUES, Record, RecordName, seal
from runners.store.store import StoreError, open_store

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


def unsealed(text: str, key: str | None = None) -> str:
    """A record without its checksum, and without its cell unless that is named."""
    head, rest = text.split("\n", 1)
    content = json.loads(head.removeprefix('{"record": ').removesuffix(","))
    del content["sha256"]
    if key is None:
        del content["cell_key"]
    return f'{{"record": {json.dumps(content)},\n{rest}'


def write_many(out: Path, writer: int, count: int) -> None:
    store = open_store(out, create=False)
    for number in range(count):
        samples = {"padding": [writer] * 2000}
        store.write_record(KEY, replace(FOUND, values={"writer": writer, "number": number}, samples=samples))


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
    assert content["record"]["values"] == {
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
    with pytest.raises(StoreError, match=r"one of error, .*'fine'"):
        store.write_record(KEY, replace(FOUND, status="fine"))
    for status in RECORDED:
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


def test_a_record_under_the_name_of_another_is_lost(store):
    path = store.write_record(KEY, FOUND)
    path.rename(path.with_name("memory.gpu.v3.a7.json"))
    (lost,) = store.records(KEY)
    assert (lost.name, lost.status) == (RecordName("memory", "gpu", 3, 7), "lost")


def test_a_record_of_another_cell_is_lost(store):
    path = store.write_record(KEY, FOUND)
    other = store.add_cell(Cell(seed=7))
    shutil.copytree(path.parent, store.folder(other) / "records")
    assert [record.status for record in store.records(other)] == ["lost"]
    assert KEY in store.records(other)[0].error_message
    assert store.records(KEY) == [FOUND]


def test_a_flipped_bit_anywhere_is_noticed(store):
    path = store.write_record(KEY, FOUND)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for samples in (False, True):
            assert store.read_record(KEY, FOUND.name, samples=samples).status == "lost", whole[at - 20 : at + 20]


def test_records_of_earlier_versions_have_no_checksum(store):
    path = store.write_record(KEY, FOUND)
    path.write_text(unsealed(path.read_text()))
    assert '"sha256"' not in path.read_text() and KEY not in path.read_text()
    assert store.records(KEY) == [FOUND]


def test_fields_of_a_newer_version_are_ignored(store):
    path = store.write_record(KEY, FOUND)
    path.write_text(seal(unsealed(path.read_text(), KEY).replace('"measure"', '"colour": "blue", "measure"', 1)))
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
        b'{"record": {},\n"environment": {},\n"samples": {}}\n',
        b'{"record": [],\n"environment": {},\n"samples": {}}\n',
        {"values": []},
        {"values": {f"value_{number}": 1 for number in range(MAX_VALUES + 1)}},
        {"values": {"nan": math.nan}},
        {"command": None},
        {"error_message": 5},
        {"ended_at": "yesterday"},
        {"started_at": "2030-01-02T03:04:05"},
        {"started_at": 5},
        {"ended_at": None},
        {"status": ["ok"]},
        {"environment": []},
    ],
)
def test_a_damaged_record_is_lost_with_its_file_named(store, content):
    path = store.write_record(KEY, FOUND)
    if isinstance(content, dict):
        # the same three lines and the right checksum, a field of another type
        parts = json.loads(unsealed(path.read_text(), KEY))
        parts["environment"] = content.pop("environment", parts["environment"])
        parts["record"] |= content
        lines = (f'"{name}": {json.dumps(parts[name])}' for name in ("record", "environment", "samples"))
        content = seal("{" + ",\n".join(lines) + "}\n").encode()
    path.write_bytes(content)
    store.write_record(KEY, replace(FOUND, measure="memory"))
    lost, whole = store.records(KEY)
    assert (lost.status, lost.name) == ("lost", FOUND.name)
    assert str(path) in lost.error_message
    assert whole.status == "ok"


def test_a_full_disk_leaves_whole_records_and_a_clear_error(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk needs privileges: {done.stderr.strip()}")
    try:
        store = open_store(folder / "runs", create=True)
        store.add_cell(CELL)
        big = replace(FOUND, samples={"x": list(range(2000))})
        with pytest.raises(StoreError, match=r"records/accuracy.*json.*No space left"):
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


@pytest.mark.parametrize("line", ["record", "environment", "samples"])
@pytest.mark.parametrize("deep", ["[" * 200_000 + "]" * 200_000, "[" * 200 + "]" * 200])
def test_a_record_that_is_nested_too_deeply_is_lost(store, line, deep):
    path = store.write_record(KEY, FOUND)
    text = unsealed(path.read_text(), KEY)
    inside = '"values": {' if line == "record" else f'"{line}": {{'
    path.write_text(seal(text.replace(inside, f'{inside}"x": {deep}, ', 1)))
    assert store.read_record(KEY, FOUND.name).status == "lost"
