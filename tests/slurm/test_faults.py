"""Every way to lose a job on a real SLURM: each is a status, and after `retry` the table is complete and equal."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from slurm.cluster import Cluster, wait_until
from slurm.zoo import MEASURED, held, hold_saved, job_of, records, rows, run, submit, tiny, wait_for_queue

pytestmark = pytest.mark.slurm

# long enough that none ends while the command that submitted it does
STEPS = ["--steps", "900"]


@pytest.fixture(scope="module")
def undisturbed(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of seeds 2, 3 and 4 without any fault."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(session_cluster, "sweep", *tiny(*STEPS, "--seeds", "2,3,4", "--cluster", "debug"), out=out)
    return rows(out)[MEASURED]


def test_each_death_has_its_status_and_retry_completes_the_table(
    cluster: Cluster, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    limited = [*STEPS, "--seeds", "9", "--time", "1", "--max-requeues", "0", "--name", "limited"]
    submit(cluster, *limited, "--slurm", "nodelist=n1", out=tmp_path)
    held(tmp_path, 9)
    submit(cluster, *STEPS, "--seeds", "0,1", "--name", "dies", "--slurm", "nodelist=n1", out=tmp_path)
    os.kill(held(tmp_path, 0), signal.SIGKILL)
    cancelled = held(tmp_path, 1)
    cluster.run("scancel", job_of(cluster, tmp_path, 1))
    hold_saved(tmp_path, 1, cancelled)

    submit(cluster, *STEPS, "--seeds", "2,3", "--name", "again", "--slurm", "nodelist=n2", out=tmp_path)
    requeued = held(tmp_path, 2, step=5)
    cluster.run("scontrol", "requeue", job_of(cluster, tmp_path, 2))
    hold_saved(tmp_path, 2, requeued)
    held(tmp_path, 3, step=5)
    cluster.fail_node("n2")
    assert "2 pending" in run(cluster, "status", "again", out=tmp_path, code=1)
    cluster.restore_nodes()
    wait_for_queue(cluster)

    status = run(cluster, "status", out=tmp_path, code=1)
    print(status)
    assert "5 cells: 2 killed, 1 timeout, 2 ok" in status
    table = rows(tmp_path)
    assert "was killed from outside" in table.loc[("vanilla", 0), "error_message"]
    assert "was cancelled" in table.loc[("vanilla", 1), "error_message"]
    assert "time limit" in table.loc[("vanilla", 9), "error_message"]
    assert all(Path(path).exists() for path in table["log_path"])

    assert "nothing" in run(cluster, "retry", "--status", "oom", out=tmp_path)
    run(cluster, "retry", "--time", "30", out=tmp_path)
    wait_for_queue(cluster)
    assert run(cluster, "status", out=tmp_path) == "5 cells: 5 ok\n"
    table = rows(tmp_path)
    assert len(table) == 5 and set(table["status"]) == {"ok"}
    # the limited run went on from its saved state, under its second attempt
    assert table.loc[("vanilla", 9), "resumed"] >= 1
    assert table.loc[("vanilla", 2), "resumed"] == 1
    for seed in (2, 3):
        assert table.loc[("vanilla", seed), "attempts"] == 1
        assert table.loc[("vanilla", seed), MEASURED].tolist() == undisturbed.loc[("vanilla", seed)].tolist()


def test_a_preempted_job_goes_on_to_the_same_row(cluster: Cluster, undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    submit(cluster, *STEPS, "--seeds", "4", "--name", "preempted", "--slurm", "nodelist=n1", out=tmp_path)
    first = held(tmp_path, 4, step=20)
    urgent = ["--partition", "urgent", "--exclusive", "--nodelist", "n1", "--output", "/dev/null", "--wrap", "sleep 1"]
    cluster.run("sbatch", *urgent)
    hold_saved(tmp_path, 4, first)
    wait_for_queue(cluster)
    table = rows(tmp_path)
    assert (table["status"].tolist(), table["resumed"].tolist()) == (["ok"], [1])
    assert len(records(tmp_path)) == 2
    pd.testing.assert_frame_equal(table[MEASURED], undisturbed.loc[[("vanilla", 4)]], check_exact=True)
    assert not list(tmp_path.glob("cells/*/training.*"))
    wait_until(lambda: not Path(f"/proc/{first}").exists())


def test_a_job_without_enough_memory_is_a_row(cluster: Cluster, tmp_path: Path) -> None:
    submit(cluster, "--steps", "500", "--mem", "200M", "--name", "small", out=tmp_path)
    wait_for_queue(cluster)
    assert "memory" in run(cluster, "status", out=tmp_path, code=1)
    (row,) = rows(tmp_path).to_dict("records")
    assert row["status"] in ("oom", "lost") and row["error_type"] == "OutOfMemory"
