"""Results folders that somebody else wrote: nothing outside of them is touched, and nothing that they name is run."""

import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from strangers_folder import (
    CELL,
    FOUND,
    KEY,
    NAME,
    SUBMITTED,
    run_all,
    slurm,
    store,
    untouched,
    victim,
    write_submission,
)

from ablations.study import Cell
from runners import clean, retry
from runners.jobs import submissions
from runners.jobs.options import SlurmOptions
from runners.jobs.request import make_request
from runners.jobs.submission import Request, TaskNote, Work
from runners.store.files import StoreError
from runners.store.states import forget_states
from runners.store.store import Store
from runners.table import load

__all__ = ["slurm", "store", "victim"]  # fixtures


# --- paths


@pytest.mark.parametrize("where", ["cells", "cell", "logs", "records", "studies", "wanted", "jobs", "submission"])
def test_a_link_is_not_followed(store: Store, victim: Path, slurm: Path, where: str) -> None:
    cell = store.folder(KEY)
    write_submission(store)
    (cell / "logs").mkdir()
    place = {
        "cells": store.out / "cells",
        "cell": cell,
        "jobs": store.out / "jobs",
        "submission": store.out / "jobs" / NAME,
    }.get(where, cell / where)
    shutil.rmtree(place)
    place.symlink_to(victim)
    run_all(store)
    assert untouched(victim)
    refused = []
    for write in (
        lambda: store.add_cell(CELL, "other", ["memory"]),
        lambda: store.write_record(KEY, FOUND),
        lambda: forget_states(store, KEY),
        lambda: store.write_lost(KEY, {"error_type": "x"}),
        lambda: submissions.write(store, SUBMITTED),
    ):
        try:
            write()
        except StoreError as error:
            refused.append(str(error))
    # logs are written by jobs alone
    assert len(refused) == {"cells": 4, "cell": 4, "logs": 0}.get(where, 1)
    assert all(str(place) in reason for reason in refused)
    store.write_progress(KEY, {"step": 1})
    assert untouched(victim)


@pytest.mark.parametrize(
    "name",
    ["lease.json", "lease.json.lock", "progress.json", "lost.json", "cell.json", "training.cpu", "studies/study"],
)
def test_a_file_that_is_a_link_is_not_written_through(store: Store, victim: Path, name: str) -> None:
    path = store.folder(KEY) / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim / ("thesis.tex" if name != "lease.json.lock" else "new"))
    assert store.holder(KEY) is None or store.holder(KEY).state in ("dead", "unknown")
    store.add_cell(CELL, "study", ["flops"])
    store.write_progress(KEY, {"step": 1})
    store.write_lost(KEY, {"error_type": "x"})
    forget_states(store, KEY)
    from runners.store.lease import Lease, acquire

    if name == "lease.json.lock":
        with pytest.raises(StoreError, match=r"lease\.json"):
            acquire(store.lease_path(KEY))
    elif isinstance(lease := acquire(store.lease_path(KEY)), Lease):
        lease.release()
    assert untouched(victim)


@pytest.mark.parametrize("name", ["../../victim", "{victim}", "study.2", "", 5, None, ["a"]])
def test_a_submission_of_another_name_is_left_alone(
    store: Store, victim: Path, slurm: Path, capsys: pytest.CaptureFixture[str], name: object
) -> None:
    write_submission(store, name=str(victim) if name == "{victim}" else name)
    run_all(store)
    assert untouched(victim)
    assert submissions.read_all(store) == []
    assert (store.out / "jobs" / NAME / "submission.json").exists()
    assert str(store.out / "jobs" / NAME) in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "../../victim"},
        {"part": "../../../../victim/x"},
        {"tasks": [[{"key": "../../victim", "measures": ["flops"]}]]},
        {"tasks": [[{"key": KEY, "measures": ["../x"]}]]},
        {"tasks": [[{"key": KEY, "measures": "flops"}]], "request": []},
        {"tasks": 5},
        {"submitted_at": "soon"},
        {"submitted_at": "2026-01-01T00:00:00"},
        {"job": "7; rm"},
        {"job": 7},
        {"device": "--help"},
        {"code": None},
        {"memory_limit_mib": "1"},
        {"request": {"options": {"x y": "1"}}},
        {"request": {"cells_per_job": 0}},
        {"request": {"nodes": True}},
    ],
)
def test_a_submission_that_none_can_have_written_is_not_read(store: Store, changes: dict[str, object]) -> None:
    write_submission(store)
    assert submissions.read_all(store) == [SUBMITTED]
    write_submission(store, **changes)
    assert submissions.read_all(store) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"device_ids": {KEY: "../../x"}},
        {"device_ids": {}},
        {"device_ids": [KEY]},
        {"attempts": {KEY: {"flops": "1"}}},
        {"attempts": {"../x": {"flops": 1}}},
        {"attempts": {KEY: {"../x": 1}}},
        {"protocols": {}},
        {"started_at": "now"},
        {"job": None},
    ],
)
def test_a_note_that_no_task_can_have_written_is_not_read(store: Store, changes: dict[str, object]) -> None:
    write_submission(store)
    note = TaskNote(
        job="7_0",
        restarts=0,
        environment={},
        device_ids={KEY: "cpu"},
        attempts={KEY: {"flops": 1}},
        protocols={"flops": 1},
        started_at="2026-01-01T00:00:00+00:00",
    )
    submissions.write_note(store, NAME, 0, note)
    assert submissions.read_note(store, NAME, 0) == note
    (store.out / "jobs" / NAME / "task-0.json").write_text(json.dumps({**asdict(note), **changes}))
    assert submissions.read_note(store, NAME, 0) is None


@pytest.mark.parametrize("key", ["..", "../x", "/etc", "", "a b", "a/b", "x" * 65])
def test_no_folder_outside_is_a_cell(store: Store, key: str) -> None:
    with pytest.raises(StoreError):
        store.folder(key)


def test_clean_removes_what_is_a_file_and_no_more(store: Store, slurm: Path, victim: Path) -> None:
    write_submission(store)
    job, logs = store.out / "jobs" / NAME, store.folder(KEY) / "logs"
    logs.mkdir()
    for folder in (job, logs):
        (folder / "1_log.out").write_text("log")
        (folder / "link").symlink_to(victim / "thesis.tex")
        (folder / "deeper").mkdir()
    assert clean.main(["--results", str(store.out)]) == 0
    assert untouched(victim)
    assert sorted(os.listdir(logs)) == ["deeper"]
    assert sorted(os.listdir(job)) == ["deeper", "settled-0", "submission.json"]


# --- code


def test_no_verb_imports_what_only_a_file_names(
    store: Store, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_cell(CELL, "study", ["flops", "accuracy"])
    theirs = Cell(attn="theirs_4711:Mine", seed=1)
    key = store.add_cell(theirs, "study", ["flops", "accuracy"])
    (tmp_path / "theirs_4711.py").write_text("raise AssertionError('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    works = tuple((Work(key=one, measures=("flops", "accuracy")),) for one in (KEY, key))
    submissions.write(store, replace(SUBMITTED, tasks=works))
    # the job of their cell died at it, so that a record of that is written
    note = TaskNote(
        job="7_1",
        restarts=0,
        environment={},
        device_ids={key: "cpu"},
        attempts={key: {"flops": 1, "accuracy": 1}},
        protocols={"flops": 1, "accuracy": 1},
        started_at="2026-01-01T00:00:00+00:00",
    )
    submissions.write_note(store, NAME, 1, note)
    submissions.note_cancel(store, NAME, 1)
    store.write_progress(key, {"measure": "flops", "slurm_job": "7_1"})
    run_all(store)
    rows = load(store.out).set_index("cell_key")
    assert (rows.loc[key, "flops_status"], rows.loc[key, "attention"]) == ("killed", "theirs_4711:Mine")
    capsys.readouterr()

    assert retry.main(["--results", str(store.out)]) == 1
    assert "--attn theirs_4711:Mine" in capsys.readouterr().err
    assert "theirs_4711" not in sys.modules
    (_, again) = submissions.read_all(store)
    assert again.measures == {KEY: ("accuracy",)}
    # now it is asked for, and so is run
    assert retry.main(["--results", str(store.out), "--attn", "theirs_4711:Mine"]) == 2
    assert "it ran" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["export", "chdir", "output", "container", "bcast"])
def test_an_option_that_decides_what_a_job_runs_is_not_taken_from_a_file(option: str) -> None:
    before = Request(options={"partition": "gpu", option: "x"})
    with pytest.raises(ValueError, match=f"--slurm {option}=x"):
        make_request(SlurmOptions(), before=before)
    harmless = replace(before, options={"partition": "gpu"})
    assert make_request(SlurmOptions(), before=harmless).options == {"partition": "gpu"}
    if option in ("export", "container"):  # others are the sweep's own
        asked = make_request(SlurmOptions(slurm={option: "y"}), before=before)
        assert asked.options == {"partition": "gpu", option: "y"}


# --- identity


def test_a_cell_is_what_its_key_says(store: Store) -> None:
    other = store.add_cell(Cell(attn="swin"))
    shutil.copy(store.folder(other) / "cell.json", store.folder(KEY) / "cell.json")
    row = load(store.out).set_index("cell_key").loc[KEY]
    assert (row["status"], row["gmacs"]) == ("lost", 0.5) and pd.isna(row["attention"])
    assert store.label(KEY) == KEY
    assert store.add_cell(CELL) == KEY
    assert load(store.out).set_index("cell_key").loc[KEY, "attention"] == "vanilla"


@pytest.mark.parametrize("name", ["label", "defaults"])
def test_what_the_key_does_not_hold_has_a_checksum(store: Store, name: str) -> None:
    path = store.folder(KEY) / "cell.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: {"topk": 99} if name == "defaults" else "swin"}))
    assert store.read_cell(KEY) is None


def test_a_record_does_not_say_what_its_cell_is(store: Store) -> None:
    claims = {"attention": "swin", "seed": 7, "cell_key": "../x", "study": "theirs", "status": "ok", "device_id": "x"}
    store.write_record(KEY, replace(FOUND, values={**claims, "acc1": 99.0, "regions": "4x4"}))
    (row,) = load(store.out).to_dict("records")
    assert (row["attention"], row["seed"], row["cell_key"], row["study"]) == ("vanilla", 0, KEY, "study")
    assert (row["device_id"], row["acc1"], row["regions"]) == ("cpu", 99.0, "4x4")
