"""The script for a device that is lent for minutes, on the CPU, with TF32, memory and energy behind the seam."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from attention_zoo import names
from benchmarks import device as module
from benchmarks.device import LARGEST, Row, main, plan, read, run
from runners.machine import conditions
from runners.machine.accelerator import Meter
from runners.machine.hardware import hardware
from runners.measure import energy

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_the_plan_has_what_was_asked_for_the_most_telling_first():
    rows = plan(quick=False)
    assert {row.attn for row in rows} == {*names()}
    for side in (224, 512):
        for batch in (1, 64):
            for precision in ("fp32", "tf32", "amp-bf16"):
                assert {r.attn for r in rows if (r.side, r.batch, r.precision) == (side, batch, precision)} == {
                    *names()
                }
    assert {row.impl for row in rows if row.impl} >= {"dense", "flex"}
    assert any(row.compiled for row in rows) and any(row.energy for row in rows)
    assert any(row.batch == LARGEST for row in rows)
    assert len({str(row) for row in rows}) == len(rows)
    assert all(row.precision == "amp-bf16" for row in rows[: len(names())])


@pytest.fixture
def gpu(monkeypatch):
    """The CPU with what it lacks of a GPU: TF32, an allocator's peak of 100 MiB, and 30 W of a board."""
    clock = iter(range(10**6))
    seam = replace(
        hardware(CPU),
        has_tf32=lambda: True,
        peak_mib=lambda: (100.0, 128.0),
        meter=lambda: Meter(lambda: 30.0 * next(clock), "board"),
        state=lambda: {"clock_mhz": 1755},
    )
    monkeypatch.setattr(energy, "WINDOW_S", 0.01)
    for place in (conditions, module, energy):
        monkeypatch.setattr(place, "hardware", lambda device: seam)


@pytest.mark.slow
def test_every_row_of_the_quick_plan_is_measured_and_kept(gpu, tmp_path, capsys):
    assert main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("results/device_quick_*.csv")
    table = pd.read_csv(path)
    assert len(table) == len(plan(quick=True)) and set(table["status"]) == {"ok"}, table.get("error_message")
    timed = table[(table["batch"] > 0) & ~table["energy"]]
    assert (timed["infer_ms"] > 0).all() and (timed["train_ms"] > timed["infer_ms"] / 10).all()
    assert set(timed["peak_train_mib"]) == {100.0} and set(timed["clock_mhz"]) == {1755}
    assert timed.set_index("precision").loc["tf32", "matmul_precision"].tolist() == ["high"] * 4
    assert set(table.loc[table["batch"] == LARGEST, "max_batch"]) == {4}
    (drawn,) = table.loc[table["energy"], "energy_kind"]
    assert drawn == "board"
    capsys.readouterr()
    assert main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    assert f"0 of {len(table)} rows to go" in capsys.readouterr().out


def test_it_ends_at_its_budget_goes_on_behind_what_is_there_and_survives_a_bad_row(tmp_path, monkeypatch):
    rows = [Row("bra", 64, 1, "fp32"), Row("swin", 64, 1, "fp32"), Row("pvt", 64, 1, "fp32")]

    def fail_on_swin(row, *_):
        if row.attn == "swin":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"infer_ms": 1.0}

    monkeypatch.setattr(module, "measure", fail_on_swin)
    found = list(run(rows, {}, CPU, "small", 4, 60.0))
    assert [row["status"] for row in found] == ["ok", "oom", "ok"]
    assert list(run(rows, {}, CPU, "small", 4, module.ROW_S - 1)) == []
    again = list(run(rows, {found[0]["name"]: found[0]}, CPU, "small", 4, 60.0))
    assert [row["attn"] for row in again] == ["swin", "pvt"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(found[0]), json.dumps(found[1])[:-9], "7"]))
    assert [*read(path)] == [found[0]["name"]]


def test_bad_flags_are_one_line(capsys):
    for flags, words in ((["--device", "tpu"], "tpu"), (["--device", "cpu", "--budget", "0"], "--budget")):
        with pytest.raises(SystemExit) as ended:
            main(flags)
        assert ended.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_script_says_how_it_is_used():
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [ROOT / "benchmarks" / "device.sh", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "--quick" in done.stdout
