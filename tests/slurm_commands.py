"""Stand-ins for SLURM's commands, for tests that need what it says and no cluster."""

import os
from pathlib import Path

import pytest


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **says: str) -> Path:
    """Put commands first on the path that know no job, or say what they are given; in the file are the calls."""
    programs = {
        "squeue": "true",
        "sacct": "true",
        "scancel": "true",
        "srun": "true",  # submitit looks whether it is there
        "sbatch": "echo Submitted batch job 8",
        "scontrol": f"echo MaxArraySize = 1001; echo NodeName=n1 NodeHostName={os.uname().nodename}",
        "sinfo": "echo n1",
        **says,
    }
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name, command in programs.items():
        (folder / name).write_text(f"#!/bin/sh\necho {name} \"$@\" >> '{calls}'\n{command}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return calls


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """programs(squeue="...", ...) -> these print that, and no other program of SLURM is found; None fails."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(**outputs: str | None) -> None:
        for name in ("squeue", "sacct", "sbatch", "scancel", "scontrol", "sinfo", "srun"):
            output = outputs.get(name)
            lines = ["echo error: not here >&2", "exit 1"] if output is None else ["cat <<'END'", output, "END"]
            (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
            (folder / name).chmod(0o755)

    return make
