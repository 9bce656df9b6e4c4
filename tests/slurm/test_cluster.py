"""The cluster of these tests is a real one."""

import pytest

from slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm


def test_a_job_runs_over_two_nodes(cluster: Cluster) -> None:
    nodes = cluster.run("srun", "--nodes", "2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(nodes) == ["n1", "n2"]


def test_accounting_knows_a_job_that_failed(cluster: Cluster) -> None:
    cluster.run("sbatch", "--job-name", "fails", "--output", "/dev/null", "--wrap", "exit 3")
    command = ("sacct", "--name", "fails", "--allocations", "--noheader", "--parsable2", "--format", "State,ExitCode")
    assert wait_until(lambda: "FAILED|3:0" in cluster.run(*command))


def test_a_cluster_without_accounting_has_none(cluster_without_accounting: Cluster) -> None:
    assert cluster_without_accounting.run("srun", "echo", "works") == "works\n"
    assert cluster_without_accounting.run("sacct", check=False) == ""
