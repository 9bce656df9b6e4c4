"""Results that commit ccf8f11 wrote, whose modules had other names: they load, and its jobs can be looked after."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from slurm_commands import stand_in
from submitit.helpers import DelayedSubmission

from attention_zoo import names, resolve
from runners import cancel, collect, retry, status
from runners.cells import run
from runners.jobs import submissions
from runners.jobs.task import ArrayTask
from runners.rows.selection import read_rows
from runners.store.columns import impl_today
from runners.store.store import open_store
from runners.table import load

DATA = Path(__file__).parent / "data" / "results_ccf8f11"
SUBMISSION = "study.f8956151"
TABLES = sorted((Path(__file__).parents[1] / "results").glob("*.csv"))
SAMPLES = [path for path in TABLES if path.stem != "published"]  # what papers report is no table of ours

ENDED, KILLED, WAITING = "f991da5a09accba5", "a014ff78d3e05627", "1c6bf956161896f7"
"""Cells of job 7: one ended at the time limit, one killed in its training, and one that still waits."""


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(DATA, copy, symlinks=True)  # submitit left a link to a path of the machine that wrote it
    # a clone gives every file the time of today, and this one is the heartbeat of a process that is gone
    os.utime(copy / "cells" / KILLED / "lease.json", (0, 0))
    return copy


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM as it is some time later: task 1 was lost with its node, task 2 waits; `calls` is what was asked of it."""
    return stand_in(
        tmp_path,
        monkeypatch,
        squeue=f"echo '7_2|{SUBMISSION}|PENDING|Priority|'",
        sacct=f"echo '7_1|{SUBMISSION}|NODE_FAIL|0:0|None|n1'",
    )


# --- tables


def test_a_folder_loads_as_the_table_that_its_own_version_made(folder):
    before = pd.read_csv(folder / "table.csv")
    load(folder).to_csv(folder / "now.csv", index=False)
    now = pd.read_csv(folder / "now.csv")
    assert before["impl"].dropna().tolist() == ["gather-dense-dense-full"] * 2 + ["dense-dense-dense-dense"]
    assert now["impl"].dropna().tolist() == ["plain-dense-dense-full"] * 2 + ["plain-plain-plain-plain"]
    # a cell without a record was silent about `deterministic`, which cells say themselves since then
    same = [name for name in before if name not in ("impl", "deterministic") and name in now]
    assert len(same) > 90
    pd.testing.assert_frame_equal(now[same], before[same])


def test_names_of_cells_are_completed_by_what_their_records_say(folder):
    rows = read_rows(folder).set_index("cell_key")
    assert rows.loc[KILLED, "configuration"] == "bra topk=4"
    assert rows.loc[WAITING, "settings"] == {}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_committed_tables_load_with_the_names_of_today(path):
    before = pd.read_csv(path, dtype={"impl": "string"})
    rows = read_rows(path)
    assert len(rows) == len(before) > 0
    for attention, was, now in zip(rows["attention"], before["impl"], rows["impl"], strict=True):
        if pd.notna(was):
            known = {*resolve(attention).impls, "reference", "full"}
            assert len(now.split("-")) == len(was.split("-")) and set(now.split("-")) <= known


@pytest.mark.parametrize(
    ("attention", "before", "today"),
    [
        ("swin", "gather-gather-gather-full", "plain-plain-plain-full"),
        ("vanilla", "dense", "plain"),
        ("sliding", "gather-reference", "tiles-reference"),
        ("bra", "gather-dense-dense-full", "plain-dense-dense-full"),
        ("mine.package:Class", "gather-reference", "plain-reference"),
        (None, "gather", "plain"),
        ("swin", None, None),
    ],
)
def test_an_implementation_is_called_as_today(attention, before, today):
    assert impl_today(attention, before) == today


@pytest.mark.parametrize("name", names())
def test_what_ran_before_is_a_way_in_which_a_mechanism_computes_today(name):
    cls = resolve(name)
    for before in cls.old_impls:
        today = impl_today(name, before)
        assert today in cls.impls
        # what a configuration asked for by that name, unless it leaves the choice to the mechanism
        assert cls.old_impls[before] in (today, "auto")


# --- jobs


def test_status_tells_what_waits_and_what_became_of_the_others(folder, slurm, capsys):
    assert status.main(["study", "--all", "--out", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 cells: 1 pending, 1 killed, 1 lost, 1 ok")
    assert [line.split()[0] for line in lines[1:]] == ["pending", "killed", "lost", "ok"]
    assert "7_2" in lines[1] and "lost its node" in lines[2]
    row = load(folder).set_index("cell_key").loc[KILLED]
    assert (row["flops_status"], row["accuracy_status"], row["attempts"]) == ("ok", "killed", 1)


def test_collect_writes_every_row(folder, slurm, tmp_path):
    assert collect.main(["study", "--out", str(folder), "--table", str(tmp_path / "table.csv")]) == 0
    found = pd.read_csv(tmp_path / "table.csv").set_index("cell_key")["status"]
    assert {key: found[key] for key in (ENDED, KILLED, WAITING)} == {
        ENDED: "lost",
        KILLED: "killed",
        WAITING: "pending",
    }


def test_cancel_ends_the_job_that_waits(folder, slurm, capsys):
    assert cancel.main(["study", "--out", str(folder)]) == 0
    assert capsys.readouterr().out == "cancelled 1 job\n"
    assert "scancel --quiet 7_2" in slurm.read_text().splitlines()


def test_retry_submits_what_failed_with_the_settings_of_its_submission(folder, slurm):
    assert retry.main(["study", "--out", str(folder)]) == 0
    store = open_store(folder, create=False)
    earlier, latest = submissions.read_all(store, "study")
    assert (earlier.job, latest.job, latest.request) == ("7", "8", earlier.request)
    assert latest.measures == {KILLED: ("accuracy",), ENDED: ("flops", "accuracy")}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_job_that_waited_runs_with_the_code_of_today(folder, slurm, threads, monkeypatch):
    task = DelayedSubmission.load(folder / "jobs" / SUBMISSION / "7_2_submitted.pkl").function
    assert type(task) is ArrayTask
    task.out = folder
    number = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    for name, value in {
        **number,
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(folder / "jobs" / SUBMISSION),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(run.FUNCTIONS, "accuracy", lambda _: ({"acc1": 12.5}, {}))
    task()
    row = load(folder).set_index("cell_key").loc[WAITING]
    assert (row["status"], row["acc1"], row["slurm_job"]) == ("ok", 12.5, "7_2")
    assert row["gmacs"] > 0 and row["threads"] == 1
