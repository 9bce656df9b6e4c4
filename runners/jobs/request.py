"""What jobs ask of SLURM, from the command line, an earlier submission or a study's defaults."""

import hashlib
import math
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace

from runners.cli.options import SLURM_FLAGS, read_minutes
from runners.jobs.submissions import Request

DEFAULT_MIN = 60
MAX_MIN = 60 * 24 * 365


def make_request(
    options: Namespace, defaults: Iterable[tuple[str, str]] = (), before: Request | None = None
) -> Request:
    """Read what jobs ask for: the command line, else what was asked `before`, else the study's own defaults.

    Raises:
        ValueError: a study's default is malformed.
    """
    chosen: dict[str, str] = dict(before.options) if before else {}
    numbers: dict[str, int | None] = {}
    for name, value in () if before else defaults:
        if name in ("time", "nodes", "gpus-per-node", "cpus-per-task"):
            numbers[name.replace("-", "_")] = _number(name, value)
        else:
            chosen[name] = value
    for name in SLURM_FLAGS:
        value = getattr(options, name)
        if value is not None and name in ("nodes", "gpus_per_node", "cpus_per_task"):
            numbers[name] = value
        elif value is not None:
            chosen[name] = value
    chosen |= dict(options.slurm or ())
    if options.time is not None:
        numbers["time"] = math.ceil(options.time)
    minutes = numbers.pop("time", None) or (before.time_min if before else DEFAULT_MIN)
    if minutes > MAX_MIN:
        raise ValueError(f"--time {options.time:g}: SLURM takes at most {MAX_MIN} min, a year")
    for name in ("max_parallel", "cells_per_job", "max_requeues"):
        if getattr(options, name) is not None:
            numbers[name] = getattr(options, name)
    exclusive = options.exclusive or bool(before and before.exclusive)
    changed = {name: value for name, value in numbers.items() if value is not None}
    return replace(before or Request(), options=chosen, time_min=minutes, exclusive=exclusive, **changed)


def _number(name: str, value: str) -> int:
    try:
        return math.ceil(read_minutes(value)) if name == "time" else int(value)
    except ValueError as error:
        raise ValueError(f"the study's default {name}={value}: {error}") from error


def study_name(given: str | None, cells: Iterable[str], measures: Sequence[str]) -> str:
    """Name of a study that has none: the same for the same cells and measures."""
    text = " ".join([*sorted(cells), *measures])
    return given or f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
