"""The clusters of the tests, one at a time: with accounting for the whole session, without for a module."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, missing, running_cluster


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """Sockets have names of at most 107 characters, and pytest's own folders are deep."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_cluster(short_folder: Path) -> Iterator[Cluster]:
    """Two nodes with accounting."""
    if reason := missing():
        pytest.skip(reason)
    with running_cluster(short_folder / "a", accounting=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def module_cluster_without_accounting(short_folder: Path) -> Iterator[Cluster]:
    """Two nodes that forget a job seconds after its end."""
    if reason := missing():
        pytest.skip(reason)
    with running_cluster(short_folder / "b", accounting=False, min_job_age_s=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with accounting, its queue empty before and after the test."""
    yield session_cluster
    session_cluster.cancel_all()


@pytest.fixture
def cluster_without_accounting(module_cluster_without_accounting: Cluster) -> Iterator[Cluster]:
    """The cluster without accounting, its queue empty before and after the test."""
    yield module_cluster_without_accounting
    module_cluster_without_accounting.cancel_all()
