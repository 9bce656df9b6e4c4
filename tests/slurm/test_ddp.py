"""One cell trained by two nodes of a real SLURM cluster, through the sweep's own command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dense_files import write_segfolder

from runners.store.store import Store, open_store
from runners.table import load
from slurm.cluster import Cluster, wait_until
from slurm.zoo import tiny

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
CELL = ["--attn", "bra", "--resolution", "32", "--steps", "20", "--batch-size", "64", "--threads", "1"]


def run(cluster: Cluster, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "runners/sweep.py", *tiny(*arguments, flags=CELL), "--out", str(out)],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def sweep(cluster: Cluster, out: Path, *arguments: str) -> str:
    done = run(cluster, out, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy(out: Path) -> Any:
    """The accuracy record of the one cell of a folder, None while there is none."""
    store: Store = open_store(out, create=False)
    (key,) = store.cell_keys()
    found = [record for record in store.records(key) if record.measure == "accuracy"]
    return found[-1] if found else None


def test_two_nodes_follow_the_loss_curve_of_one_process(cluster: Cluster, short_folder: Path) -> None:
    together, alone = short_folder / "together", short_folder / "alone"
    sweep(cluster, together, "--measure", "flops,accuracy", "--cluster", "slurm", "--nodes", "2")
    sweep(cluster, alone, "--measure", "flops,accuracy")
    wait_until(lambda: accuracy(together), timeout=240)
    wait_until(cluster.is_idle)
    two, one = accuracy(together), accuracy(alone)
    assert (two.status, two.error_message) == ("ok", None)
    assert len(two.samples["loss"]) == 20
    assert two.samples["loss"] == pytest.approx(one.samples["loss"], rel=1e-5)
    (row,) = load(together).to_dict("records")
    assert (row["status"], row["world_size"], row["batch_size"], row["resumed"]) == ("ok", 2, 64, 0)
    assert "at any batch size" in row["learning_rate_rule"]
    assert not list(together.rglob("training.*")), "the saved state outlived the training"


def test_two_nodes_train_a_dense_cell(cluster: Cluster, short_folder: Path) -> None:
    out, data = short_folder / "dense", write_segfolder(short_folder / "data")
    more = ["--task", "segment", "--data", f"segfolder:{data}", "--set", "head.width=16", "--save-weights"]
    flags = [*more, "--batch-size", "4", "--steps", "6", "--layout", "small32"]
    sweep(cluster, out, *flags, "--measure", "flops,accuracy", "--cluster", "slurm", "--nodes", "2")
    wait_until(lambda: accuracy(out), timeout=240)
    wait_until(cluster.is_idle)
    record = accuracy(out)
    assert (record.status, record.error_message) == ("ok", None)
    (row,) = load(out).to_dict("records")
    assert (row["status"], row["world_size"], row["task"], row["n_eval"]) == ("ok", 2, "segment", 3)
    assert row["miou"] > 0 and row["head_gmacs"] > 0 and (out / row["weights"]).is_file()


def test_a_batch_smaller_than_the_job_is_one_error(cluster: Cluster, short_folder: Path) -> None:
    arguments = ("--batch-size", "1", "--measure", "accuracy", "--cluster", "slurm", "--nodes", "2")
    done = run(cluster, short_folder / "few", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--batch-size 1" in done.stderr and "2 processes" in done.stderr
