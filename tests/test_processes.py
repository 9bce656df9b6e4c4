"""One cell trained by several processes of this machine: what is asked, refused, started, and made of the dead."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from ablations.study import Cell
from runners import Sweep
from runners.cells import run as cells
from runners.cells.job import Job
from runners.cells.shares import check_shares
from runners.cli.options import given, read_command
from runners.jobs import local
from runners.jobs import processes as several
from runners.jobs.executors import Running
from runners.jobs.options import RunOptions, SlurmOptions
from runners.jobs.request import make_request
from runners.machine.environment import check_local_ranks
from runners.store.lease import holder
from runners.store.store import open_store
from runners.train import distributed as ours

# --- what is asked


def test_processes_are_asked_for_by_either_flag_and_gpus_alone_by_slurm() -> None:
    for flag in ("--procs-per-node", "--gpus-per-node"):
        assert RunOptions(**given(read_command([flag, "2"]), RunOptions)).processes == 2
    assert RunOptions().processes == 1
    request = make_request(SlurmOptions(procs_per_node=3, nodes=2))
    assert request.world_size == 6
    assert request.sbatch_options() == {"time": 60, "nodes": 2, "ntasks-per-node": 3}
    # a GPU of an earlier submission has one process, too
    with pytest.raises(ValueError, match="--procs-per-node 3 and --gpus-per-node 2"):
        make_request(SlurmOptions(procs_per_node=3), before=make_request(SlurmOptions(gpus_per_node=2)))


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two numbers": ({"procs_per_node": 2, "gpus_per_node": 4}, ["2", "4", "one of the two"]),
    "none": ({"procs_per_node": 0}, ["procs_per_node=0", "at least 1"]),
    "one process": (
        {"procs_per_node": 2, "cluster": "debug"},
        ["procs_per_node=2", "cluster=debug", "local and slurm"],
    ),
    "the alias": ({"gpus_per_node": 2, "cluster": "debug"}, ["gpus_per_node=2", "cluster=debug"]),
    "too small a batch": ({"procs_per_node": 65}, ["batch_size=64", "65 processes", "65 or more"]),
    "several nodes": ({"procs_per_node": 2, "nodes": 2}, ["nodes", "cluster=slurm"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_several_processes_cannot_do_is_one_error_before_any_work(what: str, tmp_path: Path) -> None:
    options, parts = REFUSED[what]
    with pytest.raises(ValueError) as error:
        Sweep(measures="accuracy", batch_size=64).run(tmp_path / "none", **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_processes_without_a_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="procs_per_node=2: nothing is trained to measure flops"):
        Sweep(measures="flops").run(tmp_path / "none", procs_per_node=2)


def test_a_batch_must_have_an_image_for_each_process_and_a_pair_of_files() -> None:
    drawn, files = Cell(batch_size=3), Cell(batch_size=5, data="imagefolder:/x")
    check_shares([drawn], 3)
    check_shares([files], 2)
    check_shares([Cell(batch_size=1)], 1)
    with pytest.raises(ValueError, match="batch_size=3: a batch cannot be shared out to 4 processes; allowed: 4"):
        check_shares([drawn], 4)
    with pytest.raises(ValueError, match=r"batch_size=5: a batch cannot be shared out in pairs to 3 .*allowed: 6"):
        check_shares([files], 3)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    check_local_ranks("cpu", 64, "x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_local_ranks("auto", 2, "--procs-per-node 2")
    check_local_ranks("cpu", 4, "--procs-per-node 4")
    with pytest.raises(ValueError, match=r"--procs-per-node 3: .* this machine shows 2; give 2 or fewer"):
        check_local_ranks("cuda", 3, "--procs-per-node 3")
    with pytest.raises(ValueError, match=r"--procs-per-node 2 with --device cuda:1: .*allowed: cpu, cuda"):
        check_local_ranks("cuda:1", 2, "--procs-per-node 2")


def test_each_local_rank_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(ours, "rendezvous", lambda *_, **__: iter([(distributed.HashStore(), 2, 4)]))
    with ours.setup(4, torchrun(2, 4)) as group:
        assert (group.rank, taken) == (2, [2])


# --- how they are started, and what becomes of those that die


def torchrun(rank: int, size: int, attempt: int = 0) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": 1, "MASTER_ADDR": "localhost"}
    return {name: str(value) for name, value in {**place, "TORCHELASTIC_RESTART_COUNT": attempt}.items()}


def test_an_attempt_finds_nothing_that_an_earlier_one_said(monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = distributed.HashStore(), list[str]()
    monkeypatch.setattr(ours, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    monkeypatch.setattr(ours, "LEAVE_S", 0.01)
    for attempt in range(2):
        with ours.setup(2, torchrun(0, 2, attempt)) as first, ours.setup(2, torchrun(1, 2, attempt)) as second:
            waiting = in_background(lambda group=second: found.append(next(group.orders())))
            waiting.join(0.2)
            assert waiting.is_alive()
            first.lead(f"order {attempt}")
            waiting.join(10)
    assert found == ["order 0", "order 1"]


def in_background(body: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def test_a_memory_limit_holds_in_a_process_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    @contextlib.contextmanager
    def limit(device: torch.device, limit_mib: int | None) -> Iterator[None]:
        limits.append(limit_mib)
        yield
        limits.append(None)

    monkeypatch.setattr(cells, "memory_limit", limit)
    monkeypatch.setattr(cells, "train", lambda *_: limits.append(0))
    out = open_store(tmp_path, create=True).out
    group: Any = SimpleNamespace(orders=lambda: iter(["key"]))
    cells.follow(out, {"key": Cell(threads=torch.get_num_threads())}, "cpu", group, memory_limit_mib=256)
    assert limits == [256, 0, None]


class Ended:
    """A job that has ended without a word."""

    paths = SimpleNamespace(stdout=Path("/nonexistent"))

    def done(self) -> bool:
        return True


def test_what_is_no_training_has_a_job_of_one_process_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], int]] = []

    def start_local(job: Job, folder: Path, mechanism: Path | None, count: int) -> Running:
        started.append((list(job.attempts), count))
        return Running(Ended.paths.stdout, Ended())

    monkeypatch.setattr(local, "start_local", start_local)
    Sweep(measures=["flops", "memory", "accuracy"]).run(tmp_path, procs_per_node=2)
    # each job dies at its first measure
    assert started == [(["flops", "memory"], 1), (["memory"], 1), (["accuracy"], 2)]


def test_more_threads_than_processors_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    monkeypatch.setattr(local, "start_local", lambda *_: Running(Ended.paths.stdout, Ended()))
    Sweep(measures=["accuracy"], threads=2).run(tmp_path, procs_per_node=4)
    assert "warning" not in capsys.readouterr().out
    Sweep(measures=["accuracy"], threads=4).run(tmp_path, procs_per_node=4)
    assert "warning: 4 processes of 4 threads on 8 processors; threads=2" in capsys.readouterr().out


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_sweep_under_nohup_survives_the_terminal(handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: list[set[int]] = []

    def call(*_: Any) -> list[None]:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, set()))
        return [None]

    monkeypatch.setattr(several, "elastic_launch", lambda *_: call)
    mask, before = signal.pthread_sigmask(signal.SIG_BLOCK, set()), signal.signal(signal.SIGHUP, handler)
    try:
        several.run_processes(Job(out=Path("/none"), key="", cell=Cell(), attempts={}), Path("/none"), 2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (signal.SIGHUP in blocked[0]) == (handler is signal.SIG_IGN)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == mask


def test_what_rank_0_could_not_record_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "elastic_launch", lambda *_: lambda *_: ["StoreError: no folder", None])
    with pytest.raises(several.ChildFailed, match="no folder"):
        several.run_processes(Job(out=Path("/none"), key="", cell=Cell(), attempts={}), Path("/none"), 2)


@pytest.mark.parametrize(
    ("code", "status", "how"), [(-9, "killed", "was ended by SIGKILL"), (1, "error", "ended with code 1")]
)
def test_processes_that_die_too_often_are_a_record(
    code: int, status: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(config: Any, entry: Any) -> Any:
        def call(*_: Any) -> Any:
            failure = several.ProcessFailure(local_rank=1, pid=2, exitcode=code, error_file="/nonexistent")
            raise several.ChildFailedError("x", {1: failure})

        assert (config.nproc_per_node, config.max_restarts) == (2, several.MAX_RESTARTS)
        return call

    monkeypatch.setattr(several, "elastic_launch", launch)
    cell, store = Cell(threads=torch.get_num_threads()), open_store(tmp_path, create=True)
    key = store.add_cell(cell, None, ["accuracy"], "cpu")
    job = Job(out=store.out, key=key, cell=cell, attempts={"accuracy": 1}, device="cpu")
    for _ in "again", "and again":  # the second finds that the measure has been recorded
        several.run_processes(job, tmp_path / "log", 2)
    (record,) = store.records(key)
    assert (record.status, record.attempt, record.error_type) == (status, 1, "JobDied")
    assert f"rank 1 of 2 {how}; all were started 4 times" in str(record.error_message)
    assert holder(store.lease_path(key)) is None
