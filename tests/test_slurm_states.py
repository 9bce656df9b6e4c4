"""What SLURM and a log say of a job, as a status; and requests that are refused before SLURM is asked.

The programs squeue and sacct are replaced by ones that print what real ones printed; tests/slurm has the real ones.
"""

import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.study import Cell, cell_key
from runners.jobs import slurm, submissions
from runners.jobs.launch import Order, check_shared, launch, short_time
from runners.jobs.options import RunOptions, SlurmOptions
from runners.jobs.outcomes import judge, look, reconcile
from runners.jobs.request import make_request, study_name
from runners.jobs.slurm import JobState, SlurmError
from runners.jobs.submission import Request, Submission, TaskNote, Work
from runners.jobs.sweep import Sweep
from runners.store.files import StoreError
from runners.store.store import Store, open_store

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 11, 22, tzinfo=UTC)

TIME_LIMIT = "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-22T18:14:22 DUE TO TIME LIMIT ***\n"
NODE = "slurmstepd: error: *** JOB 4 ON n2 CANCELLED AT 2026-11-22T18:14:22 DUE TO NODE FAILURE, SEE LOG ***\n"
CANCELLED = "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-22T18:14:22 ***\n"
MEMORY = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
KILLED = "srun: error: n1: task 0: Killed\n"
TRACEBACK = (
    "Traceback (most recent call last):\nValueError: no such thing\nsrun: error: n1: task 0: Exited with exit code 1\n"
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """programs(squeue="...", ...) -> these print that, and no other program of SLURM is found; None fails."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(**outputs: str | None) -> None:
        for name in ("squeue", "sacct", "sbatch", "scancel", "scontrol", "sinfo", "srun"):
            output = outputs.get(name)
            lines = ["echo error: not here >&2", "exit 1"] if output is None else ["cat <<'END'", output, "END"]
            (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
            (folder / name).chmod(0o755)

    return make


def test_who_is_in_the_queue_lives_whatever_accounting_believes(programs) -> None:
    programs(
        squeue="7_0|a.1|PENDING|BeginTime|\n7_1|a.1|COMPLETED|None|n1\n9|a.2|RUNNING|None|n2",
        sacct="7_0|a.1|NODE_FAIL|0:0|None|n1\n7_1|a.1|COMPLETED|0:0|None|n1\n7_2|a.1|RUNNING|0:0|None|n2",
    )
    states = slurm.poll(["a.1", "a.2"], NOW)
    assert {task: state.state for task, state in states.items()} == {
        ("a.1", 0): "PENDING",
        ("a.1", 1): "COMPLETED",
        ("a.2", 0): "RUNNING",
    }
    assert states["a.1", 0].is_pending and states["a.1", 0].is_alive and not states["a.1", 1].is_alive


def test_tasks_that_never_started_and_steps_out_of_memory_are_told_apart(programs) -> None:
    sacct = "7_[1-2,4%3]|a.1|CANCELLED by 0|0:0|None|None assigned\n7_0|a.1|FAILED|9:0|None|n1"
    programs(squeue="", sacct=f"{sacct}\n7_0.batch|batch|FAILED|9:0||n1\n7_0.0|python|OUT_OF_MEMORY|0:125||n1")
    states = slurm.poll(["a.1"], NOW)
    assert {index: state.state for (_, index), state in states.items()} == {
        **dict.fromkeys((1, 2, 4), "CANCELLED"),
        0: "OUT_OF_MEMORY",
    }


def test_without_accounting_the_queue_alone_speaks_and_without_a_controller_nobody_is_judged(programs) -> None:
    programs(squeue="7_0|a.1|TIMEOUT|TimeLimit|n1")
    assert slurm.poll(["a.1"], NOW)["a.1", 0].state == "TIMEOUT"
    programs(sacct="")
    with pytest.raises(SlurmError, match="not here"):
        slurm.poll(["a.1"], NOW)


@pytest.mark.parametrize(
    ("state", "code", "log", "expected"),
    [
        ("OUT_OF_MEMORY", "0:125", "", "oom OutOfMemory"),
        ("FAILED", "9:0", MEMORY + KILLED, "oom OutOfMemory"),
        ("TIMEOUT", "0:0", "", "timeout TimeLimit"),
        ("NODE_FAIL", "0:0", "", "killed NodeFailure"),
        ("CANCELLED", "0:0", "", "killed Cancelled"),
        ("PREEMPTED", "0:0", "", "killed Preempted"),
        ("FAILED", "0:9", "", "killed Killed"),
        ("FAILED", "9:0", KILLED, "killed Killed"),
        ("FAILED", "1:0", TRACEBACK, "error JobDied"),
        ("FAILED", "127:0", "python: not found\n", "error JobDied"),
        ("COMPLETED", "0:0", "", "lost JobLost"),
        (None, "", "", "lost JobLost"),
        (None, "", TIME_LIMIT, "timeout TimeLimit"),
        (None, "", NODE, "killed NodeFailure"),
        (None, "", CANCELLED, "killed Cancelled"),
        (None, "", MEMORY, "oom OutOfMemory"),
        (None, "", KILLED, "killed Killed"),
        (None, "", TRACEBACK, "error JobDied"),
        # an earlier run of the same job is another story
        ("FAILED", "1:0", f"{MEMORY}Starting with JobEnvironment()\n{TRACEBACK}", "error JobDied"),
    ],
)
def test_a_dead_job_has_a_reason(state: str | None, code: str, log: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    fate = judge(JobState("12_3", state, exit_code=code, nodes="n1") if state else None, path)
    assert f"{fate.status} {fate.error_type}" == expected
    if state:
        assert "12_3" in fate.message and "n1" in fate.message


@pytest.mark.parametrize(("log", "expected"), [(None, "Cancelled"), (TIME_LIMIT, "TimeLimit"), (MEMORY, "OutOfMemory")])
def test_a_task_that_slurm_forgot_was_cancelled_if_it_was_told_to_end(
    log: str | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    if log:
        path.write_text(log)
    assert judge(None, path if log else None, cancelled=True).error_type == expected
    assert judge(JobState("12_3", "NODE_FAIL"), None, cancelled=True).error_type == "NodeFailure"


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


def test_a_folder_that_other_machines_have_of_their_own_is_refused() -> None:
    check_shared(Path("/tmp/x"), {"here"}, "here")
    check_shared(Path("/home/me/x"), {"n1", "n2"}, "here")
    with pytest.raises(StoreError, match="/tmp of n1 is another folder"):
        check_shared(Path("/tmp/x"), {"n1", "here"}, "here")


def test_a_request_takes_the_command_line_before_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = (("time", "2:00:00"), ("partition", "gpu"), ("gpus-per-node", "2"))
    asked = SlurmOptions(partition="cpu", slurm={"reservation": "night"}, nodes=2)
    request = make_request(asked, defaults=defaults)
    assert (request.time_min, request.world_size) == (120, 4)
    assert request.sbatch_options(8) == {
        "partition": "cpu",
        "reservation": "night",
        "time": 120,
        "nodes": 2,
        "ntasks-per-node": 2,
        "gpus-per-node": 2,
        "cpus-per-task": 8,
    }
    again = make_request(SlurmOptions(), 30, defaults=defaults, before=request)
    assert (again.time_min, again.options, again.gpus_per_node) == (30, request.options, 2)
    with pytest.raises(ValueError, match="nodes=many"):
        make_request(SlurmOptions(), defaults=(("nodes", "many"),))


def test_a_time_that_a_guess_finds_too_short_is_a_warning() -> None:
    def order(time_min: int, measures: tuple[str, ...] = ("flops", "memory"), **request: Any) -> Order:
        cells = {"small": (Cell(batch_size=1), measures), "large": (Cell(layout="stl", height_px=224), measures)}
        return Order(study="s", cells=cells, request=Request(time_min=time_min, **request))

    warning = short_time(order(1))
    assert warning is not None
    for part in ("warning", "--time 1 min", "flops, memory of bra stl 224x64", "about"):
        assert part in warning
    assert short_time(order(60)) is None
    # a GPU may be quicker, and a training goes on in a further run
    assert short_time(order(1, gpus_per_node=1)) is None
    assert short_time(order(1, ("accuracy",))) is None


def test_the_same_cells_have_the_same_name() -> None:
    assert study_name(None, ["b", "a"], ["flops"]) == study_name(None, ["a", "b"], ["flops"])
    assert study_name(None, ["a"], ["flops"]) != study_name(None, ["a"], ["memory"])
    assert study_name("mine", [], []) == "mine"
    assert Order(study="s", cells={}, request=Request()).device == "auto"


def test_without_slurm_the_sweep_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "runners/sweep.py", "--cluster", "slurm", "--out", str(tmp_path / "out")]
    environment = {"PATH": "/nonexistent", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no sbatch on the PATH" in done.stderr


@pytest.mark.parametrize("name", ["night.csv", "night.parquet"])
def test_collect_writes_the_table_in_either_format(programs, tmp_path: Path, name: str) -> None:
    from runners import collect

    programs(squeue="", sacct="7|s.1|TIMEOUT|0:0|None|n1")
    dead_submission(tmp_path, began=True)
    assert collect.main(["s", "--out", str(tmp_path), "--table", str(tmp_path / name)]) == 0
    read = pd.read_csv if name.endswith(".csv") else pd.read_parquet
    assert sorted(read(tmp_path / name)["status"]) == ["lost", "timeout"]


@pytest.mark.parametrize("verb", ["status", "collect", "retry", "cancel", "clean"])
def test_a_verb_without_results_is_one_line(verb: str, tmp_path: Path) -> None:
    command = [sys.executable, f"runners/{verb}.py", "--out", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no results in" in done.stderr


# --- what cannot be submitted


@pytest.fixture
def cluster(programs, tmp_path: Path) -> Store:
    """An empty results folder, and a cluster of this machine that takes every job as job 8."""
    programs(
        squeue="",
        sacct="",
        sbatch="Submitted batch job 8",
        scontrol=f"MaxArraySize = 1001\nNodeName=n1 NodeHostName={socket.gethostname()}",
        sinfo="n1",
        scancel="",
    )
    return open_store(tmp_path / "runs", create=True)


def order(study: str = "study") -> Order:
    cells = [Cell(attn="vanilla", seed=seed) for seed in range(2)]
    return Order(study=study, cells={cell_key(cell): (cell, ("flops",)) for cell in cells}, request=Request())


def test_arrays_that_are_switched_off_become_single_jobs(cluster: Store, programs) -> None:
    hosts = f"NodeName=n1 NodeHostName={socket.gethostname()}"
    shown = {"squeue": "", "sacct": "", "sbatch": "Submitted batch job 8", "sinfo": "n1", "scancel": ""}
    programs(**shown, scontrol=f"MaxArraySize            = 0\n{hosts}")
    assert slurm.max_array_size() == 1
    submitted = launch(cluster, order(), print).submitted
    assert [len(submission.tasks) for submission in submitted] == [1, 1]


@pytest.mark.parametrize("failing", ["payload", "number"])
def test_a_submission_that_could_not_be_made_leaves_nothing(
    cluster: Store, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    cancelled: list[str] = []
    real = submissions.write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def write(store: Store, submission: Submission) -> None:
        if submission.job:
            raise StoreError("cannot write submission.json: No space left on device")
        real(store, submission)

    monkeypatch.setattr(slurm, "cancel", lambda jobs: cancelled.extend(jobs))
    if failing == "payload":
        monkeypatch.setattr("submitit.helpers.DelayedSubmission.dump", full)
    else:
        monkeypatch.setattr(submissions, "write", write)
    with pytest.raises(StoreError, match="No space left on device"):
        launch(cluster, order(), print)
    assert [path.name for path in (cluster.out / "jobs").iterdir() if path.name.startswith(("study.", "."))] == []
    assert cancelled == ([] if failing == "payload" else ["8"])
    assert not (cluster.out / "jobs" / "studies" / "study.json").exists()


@pytest.mark.parametrize(
    ("name", "cluster_name", "refused"),
    [("100%j", "slurm", "%"), ("5 % more", "slurm", "%"), ("100%j", "local", "%j"), ("5 % more", "local", "")],
)
def test_a_folder_whose_name_holds_a_number_for_logs(
    tmp_path: Path, name: str, cluster_name: str, refused: str
) -> None:
    sweep, options = Sweep(attn="vanilla", measures=["flops"]), RunOptions(cluster=cluster_name)
    if refused:
        with pytest.raises(StoreError, match=f"{re.escape(name)}.*{refused} stands for a number"):
            sweep.open(tmp_path / name, options)
        assert not list(tmp_path.iterdir())
    else:
        assert sweep.open(tmp_path / name, options).out.is_dir()


def test_a_submission_of_the_future_is_waited_for_no_longer(cluster: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.jobs.outcomes.SUBMIT_GRACE_S", 0.1)
    when = "2999-01-01T00:00:00+00:00"
    submissions.write(cluster, Submission(name="a.1", study="a", tasks=(), request=Request(), submitted_at=when))
    reconcile(cluster)
    assert submissions.read_all(cluster) == []
