"""A sweep on a real SLURM gives the table of a local one, with accounting and without."""

import json
from pathlib import Path

import pandas as pd
import pytest

from slurm.cluster import Cluster, wait_until
from slurm.zoo import MEASURED, records, rows, run, submit, tasks_of, tiny, wait_for_queue

pytestmark = pytest.mark.slurm

TWELVE = ["--attn", "vanilla,swin", "--seeds", "0,1,2,3,4,5", "--steps", "2", "--name", "twelve"]


@pytest.fixture(scope="module")
def twelve(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of twelve cells in arrays, in a folder that a shell would trip over."""
    out = tmp_path_factory.mktemp("twelve") / "results 'here'"
    jobs = ["--cells-per-job", "2", "--max-parallel", "4", "--save-weights"]
    said = submit(session_cluster, *TWELVE, *jobs, out=out)
    # six tasks, and the cluster's arrays have four at most
    assert "8 cells in 4 tasks" in said and "4 cells in 2 tasks" in said
    assert "you can log out now" in said
    status = run(session_cluster, "status", "twelve", out=out, code=1)
    assert "12 cells: " in status and "ETA" in status
    wait_for_queue(session_cluster)
    return out


def test_the_table_equals_the_local_one(session_cluster: Cluster, twelve: Path, tmp_path: Path) -> None:
    run(session_cluster, "sweep", *tiny(*TWELVE[:-2], "--cluster", "debug"), out=tmp_path)
    there, here = rows(twelve), rows(tmp_path)
    assert len(there) == 12 and set(there["status"]) == {"ok"}
    pd.testing.assert_frame_equal(there[MEASURED], here[MEASURED], check_exact=True)
    assert list(there["device_id"]) == list(here["device_id"])


def test_a_row_says_how_it_ran(twelve: Path) -> None:
    table = rows(twelve)
    assert not table["code_changed"].any()
    assert table["node_shared"].all()
    assert table["slurm_job"].notna().all()
    assert set(table["study"]) == {"twelve"}
    assert set(table["threads"]) == {1}
    assert all((twelve / weights).is_file() for weights in table["weights"])


def test_the_verbs_after_the_end(session_cluster: Cluster, twelve: Path) -> None:
    before = records(twelve)
    assert run(session_cluster, "status", "twelve", out=twelve) == "12 cells: 12 ok\n"
    assert "12 rows in" in run(session_cluster, "collect", "twelve", "--table", str(twelve / "t.parquet"), out=twelve)
    assert len(pd.read_parquet(twelve / "t.parquet")) == 12
    again = submit(session_cluster, *TWELVE, out=twelve)
    assert "skipped 12 cells that are done" in again and "submitted" not in again
    assert "nothing" in run(session_cluster, "retry", out=twelve)
    assert "no job" in run(session_cluster, "cancel", "twelve", out=twelve)
    assert len(tasks_of(session_cluster, "twelve", 6)) == 6
    assert "_0_log.out" in run(session_cluster, "clean", "--dry-run", out=twelve)
    run(session_cluster, "clean", out=twelve)
    assert not [path for path in twelve.glob("jobs/twelve.*/*") if path.suffix not in (".json", "")]
    assert "would remove 0" in run(session_cluster, "clean", "--dry-run", out=twelve)
    assert "skipped 12 cells that are done" in submit(session_cluster, *TWELVE, out=twelve)
    assert run(session_cluster, "status", out=twelve) == "12 cells: 12 ok\n"
    assert records(twelve) == before


def test_what_slurm_refuses_is_one_line_and_nothing_is_submitted(session_cluster: Cluster, twelve: Path) -> None:
    bad = {
        ("--partition", "moon"): ["moon", "cpu, urgent"],
        ("--mem", "900G"): ["--mem=900G", "configuration is not available"],
        ("--slurm", "no-such-option=1"): ["no-such-option"],
        ("--seeds", "7"): ["'twelve' exists", "--name"],
        ("--device", "tpu"): ["--device", "'tpu'"],
    }
    for arguments, expected in bad.items():
        said = submit(session_cluster, *tiny("--force", *arguments, flags=TWELVE), out=twelve, code=2)
        assert said.count("\n") == 1, said
        for part in expected:
            assert part in said
    assert session_cluster.is_idle() and len(list(twelve.glob("jobs/*/submission.json"))) == 2


def test_timing_has_a_job_and_a_node_of_its_own_and_changed_code_is_told(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    flags = ["--steps", "2", "--measure", "throughput,flops", "--exclusive", "--mem", "4G", "--name", "alone"]
    said = submit(cluster, *flags, out=tmp_path)
    assert said.count("submitted job") == 2
    for path in tmp_path.glob("jobs/*/submission.json"):
        content = json.loads(path.read_text())
        if content["part"] != "timing":
            path.write_text(json.dumps({**content, "code": {**content["code"], "source_sha256": "other"}}))
    cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    wait_for_queue(cluster)
    found = {}
    for path in tmp_path.glob("cells/*/records/*.json"):
        text = path.read_text()
        found[path.name.partition(".")[0]] = json.loads(text)["environment"]
    assert found["throughput"]["node_shared"] is False and found["flops"]["node_shared"] is True
    assert found["throughput"]["code_changed"] is False and found["flops"]["code_changed"] is True
    assert found["throughput"]["slurm_job"] != found["flops"]["slurm_job"]
    assert rows(tmp_path)["status"].tolist() == ["ok"]


def test_a_cluster_without_accounting(cluster_without_accounting: Cluster, tmp_path: Path) -> None:
    cluster = cluster_without_accounting
    submit(cluster, "--seeds", "0,1", "--steps", "2", "--name", "plain", out=tmp_path)
    assert "2 cells: " in run(cluster, "status", "plain", out=tmp_path, code=1)
    wait_for_queue(cluster)
    assert "2 ok" in run(cluster, "collect", "plain", out=tmp_path)
    submit(cluster, "--seeds", "2", "--steps", "100000", "--name", "ends", out=tmp_path)
    wait_until(lambda: list(tmp_path.glob("cells/*/lease.json")), 120)
    cluster.run("scancel", "--user", "root")
    # until SLURM has forgotten it, so that the log alone says why
    wait_until(lambda: not cluster.squeue("--states=all"))
    assert "1 killed" in run(cluster, "collect", "ends", out=tmp_path)
    (row,) = [row for row in rows(tmp_path).to_dict("records") if row["status"] != "ok"]
    assert "cancelled" in row["error_message"] and Path(row["log_path"]).exists()
