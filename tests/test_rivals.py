"""Sweeps beside one another in a results folder, and a folder that goes away under one: work is done once, or not."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from ablations.study import Cell, cell_key
from runners import cancel, status
from runners.cells.run import Job
from runners.cells.source import code_of
from runners.jobs import local, local_sweeps
from runners.jobs.options import RunOptions
from runners.jobs.progress import Display
from runners.jobs.sweep import Sweep
from runners.machine.environment import device_id
from runners.measures import MEASURES
from runners.store.files import StoreError
from runners.store.lease import acquire
from runners.store.record import Record
from runners.store.states import forget_states
from runners.store.store import Store, open_store
from runners.table import load

ROOT = Path(__file__).parents[1]
SWEEP = Sweep(attn="vanilla", seeds=3, measures=["flops"], resolution=32, threads=1)
CELLS = [cell_key(cell) for cell in SWEEP.plan.cells]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "runs", create=True)


@pytest.fixture
def run(store: Store) -> local.LocalRun:
    run = SWEEP.local(store, RunOptions(cluster="debug"))
    run.console = Console(file=io.StringIO())
    return run


def flops(run: local.LocalRun, **changes: object) -> Record:
    here = device_id(run.device, 1)
    code = {"attention_hash": code_of("vanilla").hash}
    values = {"measure": "flops", "device_id": here, "status": "ok", "values": {"gmacs": 1.0, **code}} | changes
    return Record(**values, protocol=MEASURES[str(values["measure"])].protocol)


def measured(store: Store) -> dict[str, int]:
    return {key: len(store.record_names(key)) for key in store.cell_keys()}


@pytest.mark.parametrize("device", ["here", "elsewhere"])
def test_what_a_rival_has_measured_meanwhile_is_not_measured_again(
    store: Store, run: local.LocalRun, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    done: list[str] = []

    def rival_is_faster(job: Job) -> None:
        done.append(job.key)
        store.write_record(job.key, flops(run))
        for key in CELLS:  # behind our back
            if not store.record_names(key):
                store.write_record(key, flops(run, **({} if device == "here" else {"device_id": "cpu-elsewhere"})))

    monkeypatch.setattr(local, "run_job", rival_is_faster)
    run.run()
    assert done == CELLS[:1]  # MACs do not depend on the device
    assert measured(store) == dict.fromkeys(CELLS, 1) and run.is_complete()


def test_another_devices_times_are_not_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Sweep(attn="vanilla", measures=["memory"], threads=1).local(store, RunOptions(cluster="debug"))
    key = cell_key(run.plan.cells[0])
    done: list[str] = []

    def measure(job: Job) -> None:
        done.append(job.key)
        device = "cpu-elsewhere" if len(done) == 1 else device_id(run.device, 1)
        store.write_record(key, flops(run, measure="memory", device_id=device))

    monkeypatch.setattr(local, "run_job", measure)
    run.run()
    assert len(done) == 2 and run.is_complete()


def test_a_cell_that_a_rival_holds_comes_last(
    store: Store, run: local.LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in SWEEP.plan.cells:
        store.add_cell(cell)
    lease, done = acquire(store.lease_path(CELLS[0])), list[str]()

    def measure(job: Job) -> None:
        done.append(job.key)
        store.write_record(job.key, flops(run))
        if len(done) == 2:
            lease.release()

    monkeypatch.setattr(local, "run_job", measure)
    run.run()
    assert done == [*CELLS[1:], CELLS[0]]


def test_a_job_asks_again_under_the_lease(store: Store, run: local.LocalRun) -> None:
    from runners.cells.run import run_job

    cell = SWEEP.plan.cells[0]
    key = store.add_cell(cell)
    store.write_record(key, flops(run, device_id="cpu-elsewhere"))
    run_job(Job(out=store.out, key=key, cell=cell, attempts={"flops": 1}))
    assert measured(store) == {key: 1}


@pytest.mark.slow
def test_rival_sweeps_in_opposite_order_share_the_work(tmp_path: Path) -> None:
    flags = ["--attn", "vanilla", "--resolution", "32", "--batch-size", "4", "--threads", "1", "--measure", "flops"]

    def start(seeds: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "runners/sweep.py", *flags, "--seeds", seeds, "--results", str(tmp_path)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    both = [start("0,1,2,3"), start("3,2,1,0")]
    texts = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    counts = Counter(path.parent.parent.name for path in tmp_path.glob("cells/*/records/flops.*"))
    assert sorted(counts.values()) == [1, 1, 1, 1]


# --- a folder that goes away


def test_nothing_is_made_anew_where_a_folder_was(store: Store, run: local.LocalRun) -> None:
    store.add_cell(SWEEP.plan.cells[0])
    store.out.rename(store.out.with_name("moved"))
    for write in (
        lambda: store.add_cell(Cell(seed=9), "study", ["flops"]),
        lambda: store.write_record(CELLS[0], flops(run)),
        lambda: store.write_lost(CELLS[0], {"error_type": "x"}),
        lambda: forget_states(store, CELLS[0]),
        lambda: store.lease_path(CELLS[0]),
        run.run,
    ):
        with pytest.raises(StoreError, match=f"results folder {store.out} is gone"):
            write()
    store.write_progress(CELLS[0], {"step": 1})
    with local_sweeps.announced(store, None):
        pass
    assert not store.out.exists()


def test_a_sweep_ends_where_its_folder_is_renamed(
    store: Store, run: local.LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(job: Job) -> None:
        store.write_record(job.key, flops(run))
        store.out.rename(store.out.with_name("moved"))

    monkeypatch.setattr(local, "run_job", measure)
    with pytest.raises(StoreError, match="is gone"):
        run.run()
    assert not store.out.exists()


def test_a_cell_that_cannot_be_written_costs_itself_alone(
    store: Store, run: local.LocalRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (store.out / "cells").mkdir()
    (store.out / "cells" / CELLS[0]).symlink_to(tmp_path)
    monkeypatch.setattr(local, "run_job", lambda job: store.write_record(job.key, flops(run)))
    run.run()
    assert not run.is_complete()
    assert {key: len(store.record_names(key)) for key in CELLS} == {CELLS[0]: 0, CELLS[1]: 1, CELLS[2]: 1}


# --- who is at work


def test_a_sweep_is_seen_and_can_be_ended(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_cell(SWEEP.plan.cells[0], "night")
    command = [
        sys.executable,
        "-c",
        "import sys, time; from pathlib import Path; from runners.jobs.local_sweeps import announced;"
        "from runners.store.store import open_store\n"
        "with announced(open_store(Path(sys.argv[1]), create=False), 'night'):\n"
        "    print('ready', flush=True); time.sleep(60)",
        str(store.out),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (found,) = local_sweeps.alive(store, "night")
        assert (found.pid, found.study) == (process.pid, "night")
        assert local_sweeps.alive(store, "day") == []
        status.main(["--results", str(store.out)])
        assert f"pid {process.pid} on " in capsys.readouterr().out
        assert cancel.main(["night", "--results", str(store.out)]) == 0
        assert f"ended the sweep of pid {process.pid}" in capsys.readouterr().out
        assert process.wait(10) != 0
    assert local_sweeps.alive(store) == []
    with local_sweeps.announced(store, None):
        assert len(os.listdir(store.out / "sweeps")) == 2  # what the killed one left is gone
    assert os.listdir(store.out / "sweeps") == []


def test_a_sweep_of_another_machine_is_not_ended_here(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_cell(SWEEP.plan.cells[0])
    (store.out / "sweeps").mkdir()
    owner = {"host": "n7", "boot_id": "elsewhere", "pid_namespace": "x", "pid": os.getpid(), "started": time.time()}
    (store.out / "sweeps" / "sweep.1234abcd.json").write_text(json.dumps(owner))
    assert cancel.main(["--results", str(store.out)]) == 0
    assert f"pid {os.getpid()} on n7 is not ours to end" in capsys.readouterr().out


def test_a_log_file_gets_a_line_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.jobs.progress.QUIET_S", 0.05)
    with (tmp_path / "log").open("w") as file, Display(Console(file=file), [1.0]) as display:
        display.begin(0, "cell")
        for step in range(20):
            display.step({"measure": "accuracy", "step": step, "steps": 20, "loss": 0.5})
            time.sleep(0.01)
    lines = (tmp_path / "log").read_text().splitlines()
    assert 2 <= len(lines) <= 6 and "accuracy, step" in lines[1]


def test_a_sweep_in_this_process_shows_its_progress_too(
    store: Store, run: local.LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[object]()

    def measure(job: Job) -> None:
        store.write_progress(job.key, {"measure": "flops", "step": 3})
        deadline = time.monotonic() + 5
        while not shown and time.monotonic() < deadline:
            time.sleep(0.02)
        store.write_record(job.key, flops(run))

    def step(display: Display, progress: dict[str, object]) -> None:
        if threading.current_thread() is not threading.main_thread():
            shown.append(progress.get("step"))

    monkeypatch.setattr(local, "run_job", measure)
    monkeypatch.setattr(Display, "step", step)
    run.run()
    assert 3 in shown


def test_the_documented_command_merges_folders_and_copies_no_lease(store: Store, run: local.LocalRun) -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("rsync "))
    if shutil.which("rsync") is None:
        pytest.skip("no rsync here")
    theirs = open_store(store.out.with_name("theirs"), create=True)
    for one, seeds in ((store, (0, 1)), (theirs, (1, 2))):
        for seed in seeds:
            key = one.add_cell(SWEEP.plan.cells[seed], one.out.name, ["flops"])
            one.write_record(key, flops(run, values={"gmacs": 1.0 if one is store else 2.0}))
    theirs.write_progress(CELLS[2], {"step": 1})
    with acquire(theirs.lease_path(CELLS[2])), local_sweeps.announced(theirs, None):
        words = shlex.split(command.replace(" theirs/ mine/", f" {theirs.out}/ {store.out}/"))
        subprocess.run(words, check=True)
        assert store.holder(CELLS[2]) is None and local_sweeps.alive(store) == []
    found = load(store.out).set_index("cell_key")
    assert [found.loc[key, "gmacs"] for key in CELLS] == [1.0, 1.0, 2.0]
    assert found.loc[CELLS[1], "study"] == "runs;theirs" and set(found["status"]) == {"ok"}
    assert not [path.name for path in store.folder(CELLS[2]).iterdir() if path.name.startswith(("lease", "progress"))]
