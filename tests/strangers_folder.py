"""A results folder that somebody else wrote, a folder of the user's own beside it, and SLURM that knows no job."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from slurm_commands import stand_in

from ablations.study import Cell, cell_key
from runners import cancel, clean, collect, status
from runners.jobs.submission import Request, Submission, Work
from runners.store.record import Record
from runners.store.store import Store, open_store

CELL = Cell(attn="vanilla")
KEY = cell_key(CELL)
NAME = "study.1"
FOUND = Record(
    measure="flops",
    device_id="cpu",
    protocol=1,
    status="ok",
    values={"gmacs": 0.5},
    started_at="2026-01-01T00:00:00+00:00",
    ended_at="2026-01-01T00:00:09+00:00",
)
SUBMITTED = Submission(
    name=NAME,
    study="study",
    tasks=((Work(key=KEY, measures=("flops",)),),),
    request=Request(),
    submitted_at="2026-01-01T00:00:00+00:00",
    job="7",
)
VERBS = {"clean": clean, "collect": collect, "status": status, "cancel": cancel}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's own, beside the results."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    os.utime(folder / "thesis.tex", (1, 1))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One measured cell, whose job has ended."""
    store = open_store(tmp_path / "runs", create=True)
    store.add_cell(CELL, "study", ["flops"])
    store.write_record(KEY, FOUND)
    return store


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM that knows no job; what sbatch is told is in the file that is returned."""
    return stand_in(tmp_path, monkeypatch)


def run_all(store: Store) -> None:
    for verb in VERBS.values():
        verb.main(["--results", str(store.out)])


def untouched(victim: Path) -> bool:
    files = list(victim.rglob("*"))
    return [file.name for file in files] == ["thesis.tex"] and files[0].stat().st_mtime == 1


def write_submission(store: Store, **changes: object) -> None:
    folder = store.out / "jobs" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "submission.json").write_text(json.dumps({**asdict(SUBMITTED), **changes}))
    (folder / "settled-0").touch()
