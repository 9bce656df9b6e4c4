"""What became of the cells of a job that SLURM ended: whoever looks first writes it down, on a full disk too."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from slurm_commands import programs

from ablations.study import Cell, cell_key
from runners.jobs import submissions
from runners.jobs.outcomes import look
from runners.jobs.submission import Request, Submission, TaskNote, Work
from runners.store.files import StoreError
from runners.store.store import Store, open_store

__all__ = ["programs"]  # a fixture


def test_cancel_leaves_a_note_where_slurm_keeps_none(
    programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runners import cancel
    from runners.table import load

    dead_submission(tmp_path, began=False)
    programs(squeue="7|s.1|PENDING|Priority|", sacct="", scancel="")
    assert cancel.main(["s", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "cancelled 1 job\n"
    programs(squeue="", sacct="")
    look(open_store(tmp_path, create=False))
    assert set(load(tmp_path)["error_type"]) == {"Cancelled"}


def test_a_full_disk_keeps_no_job_alive(
    programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runners import cancel

    def full(*_: object) -> None:
        raise StoreError("cannot write s.1: No space left on device")

    dead_submission(tmp_path, began=False)
    programs(squeue="7|s.1|PENDING|Priority|", sacct="", scancel="")
    monkeypatch.setattr(submissions, "note_cancel", full)
    assert cancel.main(["s", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == "cancelled 1 job\n" and "No space left" in said.err


def dead_submission(out: Path, *, began: bool) -> Submission:
    """A task of two cells; if it began, it died in the training of the first."""
    store = open_store(out, create=True)
    cells = [Cell(seed=0), Cell(seed=1)]
    works = tuple(
        Work(key=store.add_cell(cell, "s", ["flops", "accuracy"]), measures=("flops", "accuracy")) for cell in cells
    )
    submission = Submission(
        name="s.1", study="s", tasks=(works,), request=Request(), submitted_at=submissions.now(), job="7"
    )
    submissions.write(store, submission)
    if began:
        note = TaskNote(
            job="7",
            restarts=0,
            environment={"host": "n1", "threads": 2},
            device_ids={work.key: "cpu-x" for work in works},
            attempts={work.key: {"flops": 1, "accuracy": 1} for work in works},
            protocols={"flops": 1, "accuracy": 1},
            started_at=submissions.now(),
        )
        submissions.write_note(store, "s.1", 0, note)
        store.write_progress(works[0].key, {"measure": "accuracy", "slurm_job": "7"})
    return submission


@pytest.mark.parametrize("began", [True, False])
def test_whoever_looks_first_writes_down_what_became_of_every_cell(programs, tmp_path: Path, began: bool) -> None:
    from runners.table import load

    programs(squeue="", sacct="7|s.1|TIMEOUT|0:0|None|n1")
    dead_submission(tmp_path / "out", began=began)
    store = open_store(tmp_path / "out", create=False)
    for _ in range(2):  # the second look finds everything settled
        assert not look(store).alive
    table = load(store.out).set_index("seed").sort_index()
    assert table["status"].tolist() == ["timeout" if began else "lost", "lost"]
    assert table["error_message"].str.contains("time limit").all()
    names = [name.file for name in store.record_names(cell_key(Cell()))]
    assert names == (["accuracy.cpu-x.v1.a1.json"] if began else [])
    assert submissions.unsettled(store, submissions.read_all(store)[0]) == []


def test_a_cell_whose_folder_cannot_be_written_hides_no_other(
    programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(squeue="", sacct="7|s.1|NODE_FAIL|0:0|None|n1")
    dead_submission(tmp_path / "out", began=False)
    store = open_store(tmp_path / "out", create=False)
    lock = store.lease_path(cell_key(Cell())).with_name("lease.json.lock")
    lock.mkdir()  # as good as a full disk: no lease can be taken
    look(store)
    assert "cannot write" in capsys.readouterr().err
    lost = {seed: store.read_lost(cell_key(Cell(seed=seed))) for seed in (0, 1)}
    assert lost[0] is None and lost[1] and "lost its node" in str(lost[1]["error_message"])
    assert submissions.unsettled(store, submissions.read_all(store)[0]) == [0]
    lock.rmdir()
    look(store)
    assert store.read_lost(cell_key(Cell())) and not submissions.unsettled(store, submissions.read_all(store)[0])


def test_a_task_begins_though_the_folder_of_one_cell_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runners.jobs import task as slurm_job

    submission = dead_submission(tmp_path, began=False)
    store = open_store(tmp_path, create=False)
    add_cell, cells = Store.add_cell, {cell_key(Cell(seed=seed)): Cell(seed=seed) for seed in (0, 1)}

    def full(self: Store, cell: Cell, *rest: Any) -> str:
        if cell.seed == 0:
            raise StoreError("cannot write flops.cpu: No space left on device")
        return add_cell(self, cell, *rest)

    monkeypatch.setattr(Store, "add_cell", full)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    note = slurm_job._begin(store, submission, 0, cells, {})
    assert note.attempts.keys() == cells.keys() and "No space left" in capsys.readouterr().out
    assert submissions.read_note(store, "s.1", 0) is not None


@pytest.mark.parametrize("name", ["night.csv", "night.parquet"])
def test_collect_writes_the_table_in_either_format(programs, tmp_path: Path, name: str) -> None:
    from runners import collect

    programs(squeue="", sacct="7|s.1|TIMEOUT|0:0|None|n1")
    dead_submission(tmp_path, began=True)
    assert collect.main(["s", "--out", str(tmp_path), "--table", str(tmp_path / name)]) == 0
    read = pd.read_csv if name.endswith(".csv") else pd.read_parquet
    assert sorted(read(tmp_path / name)["status"]) == ["lost", "timeout"]
