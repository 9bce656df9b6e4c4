"""Malformed command lines: exit code 2, one line that names flag, value and what is allowed, and no torch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from runners.cli.options import read_command

SWEEP = Path(__file__).parents[1] / "runners" / "sweep.py"

MALFORMED = {
    "--topk 0": ["--topk", "'0'", "at least 1"],
    "--topk 1,,4": ["--topk", "'1,,4'", "empty value"],
    "--topk four": ["--topk", "'four'", "integer"],
    "--topk 1-4-sixteen-full": ["--topk", "'1-4-sixteen-full'", "by dashes"],
    "--topk full": ["--topk", "'full'", "integer"],
    "--regions 7 --region-size 8": ["--regions 7", "--region-size 8", "two spellings"],
    "--regions -1": ["--regions", "at least 1"],
    "--region-size big": ["--region-size", "'big'", "'auto'"],
    "--resolution 10": ["--resolution", "'10'", "32 to 16384"],
    "--resolution 1e9": ["--resolution", "'1e9'", "32 to 16384"],
    "--resolution 64x": ["--resolution", "'64x'", "HxW"],
    "--set swin": ["--set", "'swin'", "MECHANISM.FIELD=VALUE"],
    "--set swin.window=": ["--set", "empty value"],
    "--measure speed": ["--measure", "'speed'", "throughput"],
    "--retry ok": ["--retry", "'ok'", "oom"],
    "--cluster moon": ["--cluster", "'moon'", "local"],
    "--seeds -1": ["--seeds", "at least 0"],
    "--steps 0": ["--steps", "'0'", "at least 1"],
    "--steps 5 --epochs 1": ["--epochs", "--steps"],
    "--time 0": ["--time", "'0'", "H:MM:SS"],
    "--memory-limit 1": ["--memory-limit", "'1'", "at least 64"],
    "--save-weights yes": ["yes"],
    "--precision fp8": ["--precision", "'fp8'", "bf16"],
    "--nonsense": ["--nonsense"],
    "--partition gpu": ["--partition", "--cluster slurm", "local"],
    "--cluster slurm --mem lots": ["--mem", "'lots'", "K, M, G or T"],
    "--cluster slurm --slurm Comment=x": ["--slurm", "'Comment=x'", "OPTION=VALUE"],
    "--cluster slurm --slurm array=0-3": ["--slurm", "array", "set by the sweep"],
    "--cluster slurm --slurm cpus_per_task=3": ["--slurm", "cpus-per-task", "flag of its own"],
    "--cluster slurm --nodes 0": ["--nodes", "'0'", "at least 1"],
    "--cluster slurm --name a/b": ["--name", "'a/b'", "letters"],
}


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_values_end_with_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    # argparse takes "-1" for a flag unless it is attached
    arguments = ["--regions=-1"] if line == "--regions -1" else ["--seeds=-1"] if line == "--seeds -1" else line.split()
    with pytest.raises(SystemExit) as stop:
        read_command(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in MALFORMED[line]:
        assert part in message


def test_values_are_axes_in_the_order_given() -> None:
    options = read_command(
        [
            "--attn",
            "bra,swin",
            "--topk",
            "8,1,8",
            "--resolution",
            "64,96x128",
            "--seeds",
            "2,0",
            "--set",
            "swin.window=2,4x6",
            "--time",
            "1:30:00",
        ]
    )
    assert options.attn == ("bra", "swin")
    assert options.topk == ("8", "1")
    assert options.resolution == ((64, 64), (96, 128))
    assert options.seeds == (2, 0)
    assert options.set == [("swin.window", ("2", "4x6"))]
    assert options.time == 90


@pytest.mark.parametrize("arguments", [["--help"], ["--topk", "four"], ["--study", "list"], ["--study", "nope"]])
def test_what_needs_no_zoo_does_not_import_torch(arguments: list[str]) -> None:
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['sweep.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(SWEEP)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'pandas', 'timm', 'submitit', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # a promise of under a second on an idle machine; the margin is for a busy one
    assert time.monotonic() - started < 5
