"""One cell trained by real processes under torchrun's agent, as a user runs it: killed, told to end, out of time."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_processes import in_background
from test_sweep import start, wait_for
from training_ranks import processes, run, spread

from ablations.study import Cell
from runners import Sweep
from runners.store.lease import holder
from runners.store.store import open_store
from runners.table import load

__all__ = ["processes", "spread"]  # fixtures

# as many steps as take seconds: progress, from which a test sees where a training is, is written twice a second
CELL: dict[str, Any] = {"attn": "bra", "topk": 1, "resolution": 32, "batch_size": 16, "threads": 1, "steps": 96}
FLAGS = [word for name, value in CELL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def train(out: Path, batch_size: int = 16, **options: Any) -> Any:
    sweep = Sweep(measures=["accuracy"], **{**CELL, "batch_size": batch_size})
    rows = sweep.run(out, procs_per_node=2, save_weights=True, **options)
    (row,) = rows.to_dict("records")
    return row


def weights(out: Path) -> dict[str, torch.Tensor]:
    from attention_zoo.published.weights import read_weights

    (row,) = load(out).to_dict("records")
    return dict(read_weights(out / row["weights"]).state)


def losses(out: Path) -> list[float]:
    store = open_store(out, create=False)
    (key,) = store.cell_keys()
    return next(list(record.samples["loss"]) for record in store.records(key) if record.status == "ok")


def ranks(out: Path, step: int = 1) -> list[psutil.Process] | None:
    """The processes that train, rank 0 first, once they have done some steps; None until then."""
    for progress in out.glob("cells/*/progress.json"):
        held, said = holder(progress.parent / "lease.json"), json.loads(progress.read_text())
        if held and held.state == "live" and said.get("pid", held.pid) == held.pid and said.get("step", 0) >= step:
            first = psutil.Process(held.pid)
            others = [p for p in first.parent().children() if p != first and "spawn_main" in " ".join(p.cmdline())]
            return [first, *others]
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a training that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    row = train(out)
    assert (row["status"], row["world_size"], row["resumed"], row["steps"]) == ("ok", 2, 0, CELL["steps"])
    assert not list(out.rglob("training.*"))
    return out


def two_ranks(group: Any) -> Any:
    """The same training by processes that find each other as those of a job of SLURM do."""
    from runners.cells.models import build_model
    from runners.data.loading import make_data

    cell = Cell(attn="bra", settings=(("topk", 1),), height_px=32, width_px=32, batch_size=16)
    return run(group, build_model(cell), make_data(cell.data, 32, 32, 16), steps=CELL["steps"])


@pytest.mark.slow
def test_the_bits_are_those_of_a_job_of_slurm_of_the_same_size(whole: Path, spread: Any) -> None:
    expected_losses, row, expected = spread(two_ranks)[0]
    found = weights(whole)
    assert losses(whole) == expected_losses
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert load(whole)["acc1"].tolist() == [row["acc1"]]


@pytest.mark.slow
def test_killed_processes_start_again_and_end_bit_for_bit_as_if_nothing_had_been(whole: Path, tmp_path: Path) -> None:
    def kill() -> None:
        # a notice, so that a state is saved: otherwise that is once in half a minute
        (first, *_) = wait_for(lambda: ranks(tmp_path, step=5), 600)
        first.send_signal(signal.SIGUSR2)
        (saved,) = wait_for(lambda: list(tmp_path.rglob("training.*")) or None, 600)
        step = json.loads(saved.read_bytes().splitlines()[0])["step"]
        first.wait(60)
        (_, second) = wait_for(lambda: ranks(tmp_path, step=step + 1 + os.getpid() % 16), 600)
        second.kill()

    killer = in_background(kill)
    row = train(tmp_path)
    killer.join(10)
    assert not killer.is_alive()
    assert (row["status"], row["world_size"], row["attempts"]) == ("ok", 2, 1)
    assert row["resumed"] >= 1
    assert losses(tmp_path) == losses(whole)
    found, expected = weights(tmp_path), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def family() -> Iterator[list[psutil.Process]]:
    """Processes of which none may outlive the test."""
    found: list[psutil.Process] = []
    yield found
    _, alive = psutil.wait_procs(found, timeout=30)
    for process in alive:
        process.kill()
    assert found and not alive


def started(sweep: psutil.Process, out: Path, family: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that train for a sweep, once they do; `family` gets all that it has started."""
    found = wait_for(lambda: ranks(out), 600)
    family += sweep.children(recursive=True)
    assert len(found) == 2 and {*found} <= {*family}
    return list(found)


LONG = [*FLAGS[:-1], "100000", "--measure", "accuracy", "--procs-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_a_sweep_that_is_told_to_end_leaves_no_process(
    number: signal.Signals, tmp_path: Path, family: list[psutil.Process]
) -> None:
    with start(tmp_path, *LONG) as running:
        started(psutil.Process(running.pid), tmp_path, family)
        running.send_signal(number)
        output, _ = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "go on with: python runners/sweep.py" in output and "Traceback" not in output
    assert list(load(tmp_path)["status"]) == ["pending"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_processes_do_not_outlive_what_started_them(tmp_path: Path, family: list[psutil.Process]) -> None:
    with start(tmp_path, *LONG) as running:
        first, _ = started(psutil.Process(running.pid), tmp_path, family)
        first.parent().kill()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        running.communicate(timeout=120)
    assert list(load(tmp_path)["status"]) == ["killed"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_time_limit_ends_all_processes(tmp_path: Path, family: list[psutil.Process]) -> None:
    with start(tmp_path, *LONG, "--time", "1") as running:
        sweep = psutil.Process(running.pid)
        wait_for(
            lambda: sum("spawn_main" in " ".join(p.cmdline()) for p in sweep.children(recursive=True)) == 2 or None
        )
        family += sweep.children(recursive=True)
        running.communicate(timeout=240)
    (row,) = load(tmp_path).to_dict("records")
    assert (row["status"], running.returncode) == ("timeout", 1) and "--time" in row["error_message"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_memory_limit_is_a_row(tmp_path: Path) -> None:
    # 64 MiB would not do for the threads of gloo
    row = train(tmp_path, batch_size=512, memory_limit=256)
    assert row["status"] == "oom"
