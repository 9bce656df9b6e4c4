"""What is asked of SLURM: options, names and times, and what is refused or undone where it cannot be submitted."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_commands import programs

from ablations.study import Cell, cell_key
from runners.jobs import slurm, submissions
from runners.jobs.launch import Order, check_shared, launch, short_time
from runners.jobs.options import RunOptions, SlurmOptions
from runners.jobs.outcomes import reconcile
from runners.jobs.request import make_request, study_name
from runners.jobs.submission import Request, Submission
from runners.jobs.sweep import Sweep
from runners.store.files import StoreError
from runners.store.store import Store, open_store

__all__ = ["programs"]  # a fixture


ROOT = Path(__file__).parents[1]


def test_a_folder_that_other_machines_have_of_their_own_is_refused() -> None:
    check_shared(Path("/tmp/x"), {"here"}, "here")
    check_shared(Path("/home/me/x"), {"n1", "n2"}, "here")
    with pytest.raises(StoreError, match="/tmp of n1 is another folder"):
        check_shared(Path("/tmp/x"), {"n1", "here"}, "here")


def test_a_request_takes_the_command_line_before_the_study() -> None:
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
