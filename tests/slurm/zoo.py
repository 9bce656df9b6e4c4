"""The programs of runners/ as a user of the cluster types them, and what they left on disk."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from runners.store.lease import holder
from runners.table import load
from slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]
# a training step of 10 to 25 ms; one thread, so that numbers are equal wherever they come from
TINY = ["--attn", "vanilla", "--resolution", "32", "--batch-size", "4", "--threads", "1", "--measure", "flops,accuracy"]
"""Flags of a cell that takes seconds, and their values, in pairs."""
MEASURED = ["acc1", "acc5", "val_loss", "train_loss", "gmacs", "params_m"]


def tiny(*arguments: str, flags: Sequence[str] = TINY) -> list[str]:
    """Those of `flags`, each with its value, that are not among the arguments, and the arguments."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in arguments for word in pair), *arguments]


def environment(cluster: Cluster) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**cluster.environment, "PYTHONPATH": path}


def run(cluster: Cluster, verb: str, *arguments: str, out: Path, code: int | None = 0) -> str:
    """Output of `runners/VERB.py`, which must end with `code`."""
    command = [sys.executable, f"runners/{verb}.py", *arguments, "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(cluster), capture_output=True, text=True, timeout=600, check=False
    )
    assert code in (None, done.returncode), f"{verb} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def submit(cluster: Cluster, *arguments: str, out: Path, code: int = 0) -> str:
    return run(cluster, "sweep", *tiny(*arguments), "--cluster", "slurm", out=out, code=code)


def wait_for_queue(cluster: Cluster, timeout: float = 600) -> None:
    """Wait until no job waits or runs."""
    wait_until(cluster.is_idle, timeout)


def rows(out: Path) -> pd.DataFrame:
    """The table by attention and seed."""
    return load(out).set_index(["attention", "seed"]).sort_index()


def records(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("cells/*/records/*.json"))


def key_of(out: Path, seed: int) -> str:
    """Key of the cell of a seed."""
    for path in out.glob("cells/*/cell.json"):
        if json.loads(path.read_text())["cell"].get("seed", 0) == seed:
            return path.parent.name
    raise AssertionError(f"no cell of seed {seed}")


def held(out: Path, seed: int, step: int = 1) -> int:
    """Wait until the cell of a seed is in training and stop the process: on no machine does it end before the blow.

    SLURM lets it go on (SIGCONT) before it sends a warning or an end.
    """
    folder = out / "cells" / wait_until(lambda: out.exists() and key_of(out, seed))

    def pid() -> int | None:
        lease = holder(folder / "lease.json")
        try:
            progress = json.loads((folder / "progress.json").read_text())
        except FileNotFoundError:
            return None
        return lease.pid if lease and lease.state == "live" and (progress.get("step") or 0) >= step else None

    found: int = wait_until(pid, 120)
    os.kill(found, signal.SIGSTOP)
    return found


def hold_saved(out: Path, seed: int, pid: int) -> None:
    """Stop it once more when it has saved its state, in the seconds after SIGTERM in which it might still end."""
    folder = out / "cells" / key_of(out, seed)
    wait_until(lambda: list(folder.glob("training.*")))
    with contextlib.suppress(ProcessLookupError):  # the seconds may be over already
        os.kill(pid, signal.SIGSTOP)


def job_of(cluster: Cluster, out: Path, seed: int) -> str:
    """Number of the job that runs the cell of a seed."""
    progress = json.loads((out / "cells" / key_of(out, seed) / "progress.json").read_text())
    return str(progress["slurm_job"])


def tasks_of(cluster: Cluster, study: str, least: int) -> list[str]:
    """Every task of a study's arrays that SLURM has ever run, once its accounting, which may lag, has the least."""

    def recorded() -> list[str]:
        lines = cluster.run("sacct", "--allocations", "--noheader", "--parsable2", "--format", "JobID,JobName")
        return [job for job, name in (line.split("|") for line in lines.splitlines()) if name.startswith(f"{study}.")]

    found: list[str] = wait_until(lambda: tasks if len(tasks := recorded()) >= least else None)
    return found
