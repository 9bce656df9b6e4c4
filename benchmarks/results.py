"""The saved report of a machine: raw samples and where they come from, as JSON, and its tables in Markdown.

    {"rows": what came of the samples, for readers,
     "runs": [{"environment": ..., "measured": [samples of each work]}, ...]}

A work that is measured again takes the place of its earlier samples; runs without any left are dropped.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import Measured
from benchmarks.tables import TITLES, markdown, rows_of
from runners.machine.environment import ALLOCATOR, device_id, environment

VARIABLES = (*ALLOCATOR, "OMP_", "KMP_", "MKL_")
"""Beginnings of the environment variables that decide where memory comes from and how threads wait for each other."""
GIVEN = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
"""Those that the command was given; libraries set some when they are imported later."""


def here() -> dict[str, Any]:
    """What of this process and machine can move a number."""
    return {**environment("cpu"), "variables": GIVEN}


def read(path: Path) -> dict[str, Any]:
    """Read a saved report.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text())
        measured_in(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a saved report ({type(error).__name__}: {error})") from error
    return dict(content)


def measured_in(content: dict[str, Any]) -> list[Measured]:
    """List what a report holds, in the order of the sections."""
    found = [Measured.of(one) for run in content["runs"] for one in run["measured"]]
    return sorted(found, key=lambda one: list(TITLES).index(one.section))


def save(measured: Sequence[Measured], folder: Path) -> Path:
    """Add measurements to this machine's report, and write it and its tables; return the path of the JSON file.

    Raises:
        ValueError: the report that is there cannot be read.
    """
    path = folder / f"benchmarks_{device_id(torch.device('cpu'))}.json"
    anew = {(one.section, one.work) for one in measured}
    runs = []
    for run in read(path)["runs"] if path.exists() else []:
        kept = [one for one in run["measured"] if (one["section"], one["work"]) not in anew]
        runs += [{**run, "measured": kept}] if kept else []
    about, added = here(), [asdict(one) for one in measured]
    if runs and runs[-1]["environment"] == about:
        runs[-1]["measured"] += added
    else:
        runs.append({"environment": about, "measured": added})
    write(path, runs)
    return path


def write(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write runs with what comes of their samples, as JSON and beside it as tables in Markdown."""
    sections = rows_of(measured_in({"runs": runs}))
    rows = [asdict(row) for rows in sections.values() for row in rows]
    path.write_text(json.dumps({"rows": rows, "runs": runs}, indent=1, allow_nan=False) + "\n")
    path.with_suffix(".md").write_text(markdown(sections, _machines(run["environment"] for run in runs)))


def _machines(environments: Iterable[dict[str, Any]]) -> list[str]:
    """Describe where the runs took place, each place once."""
    lines: dict[str, None] = {}
    for about in environments:
        versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "timm"))
        commit = f"{about['git_sha']}{' with changes' if about['git_dirty'] else ''}"
        variables = ", ".join(f"{name}={value}" for name, value in about["variables"].items()) or "none"
        lines[
            f"{about['cpu_model']}, {about['cores_usable']} cores, {about['threads']} threads; {versions}; "
            f"commit {commit}; allocator and thread variables given to the command: {variables}"
        ] = None
    return list(lines)
