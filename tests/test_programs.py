"""Commands at the edges of a shell: readers that go, terminals that know ASCII alone, names that are no text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_results import write_sample

ROOT = Path(__file__).parents[1]
SAMPLE = sorted((ROOT / "results").glob("sample_*.csv"))[-1]
SEEDS = ",".join(map(str, range(2000)))


def shell(command: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, timeout=300
    )


@pytest.mark.parametrize(
    "command",
    [
        f"runners/report.py --format csv --results {SAMPLE}",
        "runners/sweep.py --study list",
        "runners/sweep.py --help",
        pytest.param(f"runners/sweep.py --seeds {SEEDS} --measure flops --dry-run", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_goes_is_no_error(command: str) -> None:
    done = shell(f"{sys.executable} {command} | true", PYTHONUNBUFFERED="1")
    assert done.stderr == b""


@pytest.mark.slow
def test_a_terminal_that_knows_ascii_alone_gets_ascii() -> None:
    done = shell(f"{sys.executable} runners/report.py --results {SAMPLE} --format markdown", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\xb1" in done.stdout


@pytest.mark.parametrize("verb", ["collect", pytest.param("status", marks=pytest.mark.slow)])
def test_a_folder_whose_name_is_no_text_is_a_folder(tmp_path: Path, verb: str) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"old\xff")
    write_sample(Path(os.fsdecode(folder)), seeds=1)
    command = [sys.executable, f"runners/{verb}.py", "--results", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode in (0, 1) and done.stderr == b""
    assert b"rows in" in done.stdout or b"cells:" in done.stdout


@pytest.mark.slow
def test_a_sweep_writes_into_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"old\xff")
    flags = ["--attn", "vanilla", "--resolution", "32", "--measure", "flops", "--results"]
    done = subprocess.run([sys.executable, "runners/sweep.py", *flags, folder], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "flags",
    [
        "--resolution 64 --resolution 96",
        "--topk 1,4 --topk 8",
        "--measure flops --measure memory",
        "--retry oom --retry timeout",
        "--set swin.window=2 --set swin.window=4",
    ],
)
def test_a_list_is_given_once(flags: str) -> None:
    done = shell(f"{sys.executable} runners/sweep.py {flags} --dry-run")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert flags.split()[0].encode() in done.stderr
