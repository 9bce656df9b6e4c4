"""The sweep as a user runs it: real processes, real files, kill -9."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import attention_zoo
from runners.store.lease import holder
from runners.table import load

ROOT = Path(__file__).parents[1]


def quick(**changes: int) -> list[str]:
    """Flags of a cell that takes seconds."""
    values = {"topk": 1, "steps": 2, "threads": 1, "batch_size": 4, **changes}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


QUICK = quick()
MEASURES = ("accuracy", "flops", "memory", "throughput")


def sweep(out: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "runners/sweep.py", *arguments, "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "runners/sweep.py", *arguments, "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(question: Callable[[], Any], timeout: float = 120) -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (answer := question()) is not None:
            return answer
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def records(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("cells/*/records/*.json"))


def worker(out: Path, measure: str) -> psutil.Process | None:
    """The process that runs a cell, once it is at a measure."""
    for progress in out.glob("cells/*/progress.json"):
        held = holder(progress.parent / "lease.json")
        if held and held.state == "live" and json.loads(progress.read_text()).get("measure") == measure:
            return psutil.Process(held.pid)
    return None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("a sweep with a space")
    done = sweep(out, *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_command_records_a_whole_row(finished: Path) -> None:
    (row,) = load(finished).to_dict("records")
    assert row["status"] == "ok"
    measured = {"acc1", "val_loss", "gmacs", "params_m", "peak_infer_mib", "peak_train_mib", "peak_rss_mib"}
    measured |= {"infer_samples_per_sec", "infer_latency_ms", "train_step_ms", "train_backward_ms", "vs_vanilla"}
    assert not [name for name in measured if pd.isna(row[name])]
    assert row["gflops"] == pytest.approx(2 * row["gmacs"])
    assert row["vs_vanilla_low"] <= row["vs_vanilla"] <= row["vs_vanilla_high"]
    assert row["peak_train_mib"] > row["peak_infer_mib"] > row["params_m"] * 4 * 1e6 / 2**20
    assert (row["topk"], row["topk_effective"], row["regions"]) == (1, "1-1-1-full", "4x4-4x4-4x4-full")
    assert (row["steps"], row["threads"], row["batch_size"], row["n_eval"]) == (2, 1, 4, 1024)
    assert row["ceiling_percent"] == pytest.approx(61.1, abs=0.05)


@pytest.mark.slow
def test_no_process_is_left(finished: Path) -> None:
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(finished) in command]


@pytest.mark.slow
def test_the_same_command_again_measures_nothing_and_says_so(finished: Path) -> None:
    before = records(finished)
    done = sweep(finished, *QUICK)
    assert done.returncode == 0
    assert "skipped 1 of 1 cells" in done.stdout
    assert records(finished) == before


@pytest.mark.slow
def test_the_command_of_the_row_finds_its_cell(finished: Path) -> None:
    (command,) = load(finished)["command"]
    done = sweep(finished, *command.split()[2:])
    assert "skipped 1 of 1 cells" in done.stdout


@pytest.mark.slow
def test_another_topk_adds_a_row_and_force_an_attempt(finished: Path) -> None:
    flops = ["--measure", "flops"]
    before = records(finished)
    assert sweep(finished, "--topk", "8", *QUICK[2:], *flops).returncode == 0
    assert len(load(finished)) == 2
    assert sweep(finished, *QUICK, *flops, "--force").returncode == 0
    assert len(load(finished)) == 2
    assert set(before) < set(records(finished))
    assert sum(name.startswith("flops") and name.endswith("a2.json") for name in records(finished)) == 1


@pytest.mark.slow
def test_the_same_cell_twice_gives_the_same_accuracy(tmp_path: Path) -> None:
    accuracy = []
    for out in (tmp_path / "a", tmp_path / "b"):
        done = sweep(out, *quick(steps=12), "--measure", "accuracy", "--cluster", "debug")
        assert done.returncode == 0, done.stdout + done.stderr
        accuracy.append(load(out)[["acc1", "val_loss", "train_loss"]])
    pd.testing.assert_frame_equal(*accuracy, check_exact=True)


@pytest.mark.slow
def test_trained_weights_are_kept_if_asked_and_give_the_accuracy_of_the_row(tmp_path: Path) -> None:
    from runners.cells.weights import load_model
    from runners.data.loading import make_data
    from runners.train.evaluation import evaluate

    trained = [*QUICK, "--set", "bra.lepe_kernel=3", "--measure", "accuracy", "--cluster", "debug"]
    assert sweep(tmp_path, *trained).returncode == 0
    assert "weights" not in load(tmp_path) or load(tmp_path)["weights"].isna().all()
    again = sweep(tmp_path, *trained, "--save-weights")
    assert "1 cell trained before without --save-weights; --force" in again.stdout
    done = sweep(tmp_path, *trained, "--save-weights", "--force")
    assert done.returncode == 0 and "without --save-weights" not in done.stdout
    (row,) = load(tmp_path).to_dict("records")
    model, label = load_model(str(tmp_path / row["weights"]))
    assert "small, bra, lepe_kernel=3, topk=1" in label
    data = make_data(row["data"], row["height_px"], row["width_px"], row["batch_size"])
    found = evaluate(model, data, device=torch.device("cpu"))
    assert found["acc1"] == row["acc1"]
    assert found["val_loss"] == pytest.approx(row["val_loss"], rel=1e-5)


def test_weights_without_a_training_are_refused(tmp_path: Path) -> None:
    done = sweep(tmp_path, "--measure", "flops", "--save-weights")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert all(part in done.stderr for part in ("--save-weights", "flops", "accuracy"))


def test_weights_that_cannot_be_written_cost_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ablations.study import Cell
    from runners.cells import weights
    from runners.cells.run import Job, run_job
    from runners.store.store import StoreError, open_store

    def full(*_: object) -> None:
        raise StoreError("cannot write weights: No space left on device")

    store, cell = open_store(tmp_path, create=True), Cell(steps=1, batch_size=2, height_px=32, width_px=32)
    key = store.add_cell(cell, None, ["accuracy"])
    monkeypatch.setattr(weights, "write_whole", full)
    run_job(Job(out=tmp_path, key=key, cell=cell, attempts={"accuracy": 1}, save_weights=True))
    (row,) = load(tmp_path).to_dict("records")
    assert row["status"] == "ok" and row["acc1"] >= 0
    assert "weights" not in row or pd.isna(row["weights"])
    assert "cannot write weights: No space left on device" in capsys.readouterr().out
    assert not list(tmp_path.glob("cells/*/*.tmp"))


@pytest.mark.slow
def test_a_failed_measure_is_a_row_and_the_others_are_kept(tmp_path: Path) -> None:
    limited = [*quick(batch_size=256), "--measure", "flops,memory", "--memory-limit", "64"]
    done = sweep(tmp_path, *limited)
    assert done.returncode == 1
    (row,) = load(tmp_path).to_dict("records")
    found = row["status"], row["memory_status"], row["flops_status"]
    assert found == ("oom", "oom", "ok"), row["error_message"]
    assert "memory" in row["error_message"]
    again = sweep(tmp_path, *limited)
    assert "--retry oom" in again.stdout and again.returncode == 1
    assert len(records(tmp_path)) == 2
    retried = sweep(tmp_path, *limited[:-2], "--retry", "oom")
    assert retried.returncode == 0, retried.stdout
    (row,) = load(tmp_path).to_dict("records")
    assert (row["status"], row["attempts"]) == ("ok", 2)


LONG = ["--topk", "1", "--steps", "100000", "--threads", "1", "--batch-size", "4", "--measure", "flops,accuracy"]


@pytest.mark.slow
def test_a_killed_cell_is_a_row_and_nothing_is_lost(tmp_path: Path) -> None:
    with start(tmp_path, *LONG) as running:
        wait_for(lambda: worker(tmp_path, "accuracy")).send_signal(signal.SIGKILL)
        running.communicate(timeout=120)
    assert running.returncode == 1
    (row,) = load(tmp_path).to_dict("records")
    assert (row["status"], row["accuracy_status"], row["flops_status"]) == ("killed", "killed", "ok")
    assert "--retry killed" in sweep(tmp_path, *LONG, timeout=60).stdout


@pytest.mark.slow
def test_a_killed_sweep_leaves_its_cell_running_and_its_successor_waits_for_it(tmp_path: Path) -> None:
    arguments = [*quick(steps=150, batch_size=64), "--measure", "flops,accuracy"]
    with start(tmp_path, *arguments) as first:
        wait_for(lambda: worker(tmp_path, "accuracy"))
        first.kill()
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for it" in done.stdout
    assert [name.split(".")[0] for name in records(tmp_path)] == ["accuracy", "flops"]


@pytest.mark.slow
def test_everything_killed_is_lost_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with start(tmp_path, *LONG) as first:
        victim = wait_for(lambda: worker(tmp_path, "accuracy"))
        first.kill()
        victim.kill()
        psutil.wait_procs([victim], timeout=10)
    assert list(load(tmp_path)["status"]) == ["lost"]
    with start(tmp_path, *LONG) as second:
        successor = wait_for(lambda: worker(tmp_path, "accuracy"))
        assert successor.pid != victim.pid
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=60)
    assert [name.split(".")[0] for name in records(tmp_path)] == ["flops"]


@pytest.mark.slow
def test_ctrl_c_once_ends_the_job_and_says_how_to_go_on(tmp_path: Path) -> None:
    with start(tmp_path, *LONG) as running:
        job = wait_for(lambda: worker(tmp_path, "accuracy"))
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "go on with: python runners/sweep.py --topk 1" in output
    assert "Traceback" not in output
    assert not job.is_running()
    assert list(load(tmp_path)["status"]) == ["pending"]


@pytest.mark.slow
def test_a_time_limit_is_a_row(tmp_path: Path) -> None:
    done = sweep(tmp_path, *LONG, "--time", "0:00:20")
    assert done.returncode == 1
    (row,) = load(tmp_path).to_dict("records")
    assert (row["status"], row["flops_status"]) == ("timeout", "ok")
    assert "--time" in row["error_message"]


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/test_rivals.py has the harder case
def test_two_sweeps_at_once_measure_each_cell_once(tmp_path: Path) -> None:
    arguments = [*QUICK, "--seeds", "0,1", "--measure", "flops,accuracy"]
    with start(tmp_path, *arguments) as one, start(tmp_path, *arguments) as other:
        outputs = [process.communicate(timeout=240)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), outputs
    assert len(records(tmp_path)) == 4


@pytest.mark.slow
def test_a_users_mechanism_is_measured_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from attention_zoo import AttentionConfig\n"
        "from attention_zoo.mechanisms.vanilla import Vanilla\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Config(AttentionConfig):\n"
        "    strength: float = 1.0\n"
        "class Mine(Vanilla):\n"
        "    Config = Config\n"
    )
    command = [sys.executable, str(ROOT / "runners/sweep.py"), "--attn", "mine:Mine", "--set", "mine:Mine.strength=1,2"]
    command += ["--measure", "flops", "--out", "results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    table = load(tmp_path / "results")
    assert list(table["attention"]) == ["mine:Mine"] * 2
    assert table["gmacs"].gt(0).all()


BAD_STORES = {
    "a file": (lambda path: path.write_text(""), "is not a folder"),
    "another schema": (
        lambda path: (path.mkdir(), (path / "store.json").write_text('{"schema": 99}')),
        "schema version 99",
    ),
}


@pytest.mark.parametrize("what", BAD_STORES)
def test_a_results_folder_that_cannot_be_used_is_one_error(what: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    prepare, expected = BAD_STORES[what]
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    done = sweep(out, *QUICK)
    assert done.returncode == 2
    assert expected in done.stderr and str(out) in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_results_folder_is_one_error(tmp_path: Path) -> None:
    done = sweep(Path("/proc/results"), *QUICK)
    assert done.returncode == 2
    assert "/proc/results" in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = sweep(tmp_path / "none", "--attn", "all", "--topk", "1,4", "--dry-run")
    assert done.returncode == 0
    assert f"{len(attention_zoo.names()) + 1} cells" in done.stdout  # top-k doubles those of bra
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.exhaustive  # the contract tests measure each mechanism in one process
def test_every_mechanism_is_a_row_of_one_table(tmp_path: Path) -> None:
    # a size that no default window divides
    arguments = ["--attn", "all", "--measure", "flops,memory", "--resolution", "40x72", "--batch-size", "2"]
    done = sweep(tmp_path, *arguments, "--threads", "1", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    table = load(tmp_path)
    assert sorted(table["attention"]) == attention_zoo.names()
    assert set(table["status"]) == {"ok"}
    assert table[["gmacs", "peak_infer_mib", "peak_train_mib"]].gt(0).all(axis=None)
    assert all(f" {name} " in done.stdout for name in attention_zoo.names())
