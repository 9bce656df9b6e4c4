"""A submitter that is killed loses nothing, and the same command again submits what is missing, once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.zoo import ROOT, environment, records, rows, run, submit, tasks_of, wait_for_queue

pytestmark = pytest.mark.slurm

# sbatch itself is the real one: this decides when its caller is killed
SBATCH = """#!/bin/bash
[ "$1" = --test-only ] && exec {real} "$@"
{before}
{real} "$@"
{after}
"""
MOMENTS = {
    "before sbatch": ("kill -9 $PPID; exit 1", ""),
    "while sbatch runs": ("kill -9 $PPID; sleep 3", ""),
    "after sbatch": ("", "kill -9 $PPID"),
}


@pytest.mark.parametrize(
    "moment",
    # nothing has happened yet before sbatch: the least of the three
    [pytest.param(moment, marks=pytest.mark.exhaustive if moment == "before sbatch" else ()) for moment in MOMENTS],
)
def test_a_killed_submitter_loses_and_doubles_nothing(cluster: Cluster, moment: str, tmp_path: Path) -> None:
    out, study = tmp_path / "out", f"killed-{moment.replace(' ', '-')}"
    arguments = ["--seeds", "0,1", "--measure", "flops", "--name", study]
    programs = tmp_path / "bin"
    programs.mkdir()
    before, after = MOMENTS[moment]
    (programs / "sbatch").write_text(SBATCH.format(real=shutil.which("sbatch"), before=before, after=after))
    (programs / "sbatch").chmod(0o755)
    path = cluster.environment["PATH"]
    cluster.environment["PATH"] = f"{programs}:{path}"
    try:
        submit(cluster, *arguments, out=out, code=-signal.SIGKILL)
    finally:
        cluster.environment["PATH"] = path
    said = submit(cluster, *arguments, out=out)
    assert ("submitted job" in said) == (moment == "before sbatch"), said
    wait_for_queue(cluster)
    assert len(tasks_of(cluster, study, 2)) == 2
    assert rows(out)["status"].tolist() == ["ok", "ok"]
    assert [name.partition(".")[0] + name[-8:] for name in records(out)] == ["flops.a1.json"] * 2
    assert "that are done" in submit(cluster, *arguments, out=out)


def test_a_killed_status_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    submit(cluster, "--seeds", "0", "--measure", "flops", "--name", "watched", out=tmp_path)
    command = [sys.executable, "runners/status.py", "--watch", "5", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(cluster), stdout=subprocess.DEVNULL) as watching:
        wait_for_queue(cluster)
        os.kill(watching.pid, signal.SIGKILL)
    assert run(cluster, "status", "watched", out=tmp_path) == "1 cell: 1 ok\n"
    assert len(tasks_of(cluster, "watched", 1)) == 1


def test_cancel_ends_what_waits_and_runs_and_retry_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    submit(cluster, "--seeds", "0,1", "--measure", "flops", "--name", "cancelled", out=tmp_path)
    assert "2 cells: 2 pending" in run(cluster, "status", "cancelled", out=tmp_path, code=1)
    assert "cancelled 2 jobs" in run(cluster, "cancel", "cancelled", out=tmp_path)
    cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    wait_for_queue(cluster)
    assert "2 lost" in run(cluster, "status", "cancelled", out=tmp_path, code=1)
    assert set(rows(tmp_path)["error_type"]) == {"Cancelled"}
    run(cluster, "retry", "cancelled", out=tmp_path)
    wait_for_queue(cluster)
    assert rows(tmp_path)["status"].tolist() == ["ok", "ok"]
