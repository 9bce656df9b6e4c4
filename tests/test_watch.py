"""How a training that runs is watched: its progress and its end in `status`, its files beside the records."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ablations.study import Cell, cell_key
from runners import Sweep, clean
from runners.cells import functions, training
from runners.cells.run import Job, run_job
from runners.jobs import sweep as module
from runners.jobs.cell_status import statuses
from runners.jobs.submission import Request, Submission, Work, check
from runners.measures import MEASURES
from runners.rows.curves import read_curve
from runners.store.curve import board_folder, curve_path
from runners.store.lease import acquire
from runners.store.record import Record
from runners.store.states import forget_states
from runners.store.store import Store, open_store
from runners.sweep import main
from runners.table import load

CELL = Cell(attn="swin", batch_size=32)
KEY = cell_key(CELL)
NO_JOBS: Any = SimpleNamespace(submissions=[], alive={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "runs", create=True)
    store.add_cell(CELL, None, ["accuracy"])
    return store


def detail(store: Store, jobs: Any = NO_JOBS, **progress: Any) -> str:
    """What status says of the cell while a process of here holds it."""
    store.write_progress(KEY, {"measure": "accuracy", **progress})
    with acquire(store.lease_path(KEY)):
        (line,) = statuses(store, [KEY], jobs)
    assert line.status == "running"
    return line.detail


def test_a_running_training_says_when_it_ends_at_its_own_speed(store: Store) -> None:
    said = detail(store, step=100, steps=400, loss=1.23456, seconds_per_step=0.6)
    assert said == "accuracy, step 100/400, loss 1.235, 53 img/s, ETA 3 min"
    assert detail(store, step=400, steps=400, seconds_per_step=8.0) == "accuracy, step 400/400, 4.0 img/s, ETA 0 s"


def test_a_training_of_a_job_says_so_too(store: Store) -> None:
    submission = SimpleNamespace(name="study", tasks=[[Work(key=KEY, measures=("accuracy",))]])
    state = SimpleNamespace(nodes="n1", reason="", is_pending=False, job="7_0")
    jobs = SimpleNamespace(submissions=[submission], alive={("study", 0): state})
    assert (
        detail(store, jobs, step=300, steps=400, seconds_per_step=72)
        == "accuracy, step 300/400, 0.4 img/s, ETA 2 h 0 min"
    )


@pytest.mark.parametrize("pace", ["fast", 0, -1.0, True, 1e301, None, [1]], ids=str)
def test_a_speed_that_is_none_is_left_out(store: Store, pace: Any) -> None:
    assert detail(store, step=1, steps=4, loss="low", seconds_per_step=pace) == "accuracy, step 1/4"


def test_a_job_writes_its_speed_its_curve_and_tensorboard_without_which_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, cell = open_store(tmp_path, create=True), Cell(steps=3, batch_size=2, height_px=32, width_px=32)
    key = store.add_cell(cell, None, ["accuracy"])
    monkeypatch.setattr(functions, "PROGRESS_S", 0.0)
    run_job(Job(out=tmp_path, key=key, cell=cell, attempts={"accuracy": 1}, tensorboard=True))
    progress = store.read_progress(key)
    assert (progress["step"], progress["steps"]) == (3, 3) and 0 < progress["seconds_per_step"] < 600
    (row,) = load(tmp_path).to_dict("records")
    assert row["status"] == "ok"
    assert row["curve"] == str(curve_path(store, key, row["device_id"]).relative_to(tmp_path))
    (record,) = store.records(key)
    curve = read_curve(tmp_path / row["curve"])
    assert curve["loss"].tolist() == record.samples["loss"]
    assert curve["acc1"].iloc[-1] == row["acc1"]
    files = [*board_folder(store, key, row["device_id"]).glob("events.*")]
    is_there = importlib.util.find_spec("tensorboard") is not None
    assert bool(files) == is_there
    assert ("for TensorBoard" in capsys.readouterr().out) != is_there


def test_a_curve_that_cannot_be_written_is_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cell = open_store(tmp_path, create=True), Cell(steps=1, batch_size=2, height_px=32, width_px=32)
    key = store.add_cell(cell, None, ["accuracy"])
    monkeypatch.setattr(training, "curve_path", lambda store, key, device: store.folder(key) / "none" / "c.csv")
    run_job(Job(out=tmp_path, key=key, cell=cell, attempts={"accuracy": 1}))
    (row,) = load(tmp_path).to_dict("records")
    assert row["status"] == "ok" and pd.isna(row["curve"])


# --- what is asked for


def test_without_tensorboard_one_line_says_what_to_install_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboard=True.*pip install 'attention-zoo\[watch\]'"):
        Sweep(measures="accuracy").run(tmp_path / "none", tensorboard=True)
    arguments = ["--measure", "accuracy", "--tensorboard", "--results", str(tmp_path / "none")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--tensorboard" in message and "pip install" in message
    assert not [*tmp_path.iterdir()]


def test_jobs_are_told_of_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "launch", lambda store, order, say: orders.append(order))
    monkeypatch.setattr(module, "print_submission", lambda *_: None)
    for given in ({"tensorboard": True}, {}):
        Sweep(measures="accuracy", steps=1).run(tmp_path / "runs", cluster="slurm", **given)
    assert [order.tensorboard for order in orders] == [True, False]
    submission = Submission(name="a", study="a", tasks=(), request=Request(), submitted_at="2026-01-01T00:00:00+00:00")
    check(submission, "a")
    with pytest.raises(TypeError):
        check(Submission(**{**vars(submission), "tensorboard": "yes"}), "a")


# --- what is kept


def test_clean_and_force_leave_curves_until_the_next_training(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = MEASURES["accuracy"].protocol
    store.write_record(KEY, Record(measure="accuracy", device_id="cpu-x-1t", protocol=protocol, status="ok"))
    curve, board = curve_path(store, KEY, "cpu-x-1t"), board_folder(store, KEY, "cpu-x-1t") / "events.1"
    log = store.folder(KEY) / "logs" / "a.out"
    for path in (curve, board, log):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert clean.main(["--results", str(store.out)]) == 0
    forget_states(store, KEY)
    assert [path.exists() for path in (curve, board, log)] == [True, True, False]
