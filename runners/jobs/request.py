"""What jobs ask of SLURM, from what is asked now, an earlier submission or a study's defaults."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from runners.jobs.options import SlurmOptions, check_processes, minutes
from runners.jobs.submission import Request

MAX_MIN = 60 * 24 * 365

HARMLESS = {
    *("partition", "account", "qos", "constraint", "mem", "mem-per-cpu", "mem-per-gpu", "mem-bind", "tmp", "nodelist"),
    *("exclude", "reservation", "licenses", "comment", "nice", "priority", "hint", "begin", "deadline"),
    *("gres", "gres-flags", "gpus", "gpus-per-task", "gpu-bind", "gpu-freq", "cpu-freq", "tres-per-task", "contiguous"),
    *("sockets-per-node", "cores-per-socket", "threads-per-core", "ntasks-per-core", "ntasks-per-socket", "core-spec"),
    *("exclusive", "oversubscribe", "overcommit", "spread-job", "switches", "time-min", "mail-type", "dependency"),
    *("distribution", "prefer", "power", "profile", "acctg-freq", "delay-boot", "hold", "wckey"),
}
"""Options of sbatch that say where and when a job runs, not what: `retry` takes them from a file."""

NUMBERS = {field.name for field in fields(Request)} - {"options", "exclusive"}
"""Fields of a request that are numbers; everything else is text for sbatch."""


def make_request(
    asked: SlurmOptions,
    time_min: float | None = None,
    *,
    defaults: Iterable[tuple[str, str]] = (),
    before: Request | None = None,
) -> Request:
    """Join what is asked now, else what was asked `before`, else the study's own defaults.

    Raises:
        ValueError: a study's default is malformed, a time limit is over a year, the processes of a node are not one per
            GPU, or what was asked before may make jobs run something and is not asked for now.
    """
    options: dict[str, str] = dict(before.options) if before else {}
    for name in options.keys() - HARMLESS - dict(asked.slurm).keys():
        raise ValueError(
            f"the submission on disk asks sbatch for {name}={options[name]}, which may decide what a job runs; give "
            f"--slurm {name}={options[name]} to ask for it again"
        )
    numbers: dict[str, Any] = {}
    for name, value in () if before else defaults:
        number = "time_min" if name == "time" else name.replace("-", "_")
        if number in NUMBERS:
            numbers[number] = _number(name, value)
        else:
            options[name] = value
    for option in fields(SlurmOptions):
        value = getattr(asked, option.name)
        if option.name in NUMBERS and value is not None:
            numbers[option.name] = value
        elif isinstance(value, str):
            options[option.name] = value
    if time_min is not None:
        numbers["time_min"] = math.ceil(time_min)
    if numbers.get("time_min", 0) > MAX_MIN:
        raise ValueError(f"--time {numbers['time_min']}: SLURM takes at most {MAX_MIN} min, a year")
    base = before or Request()
    exclusive = asked.exclusive or base.exclusive
    made = replace(base, **numbers, options=options | dict(asked.slurm), exclusive=exclusive)
    check_processes(made.procs_per_node, made.gpus_per_node)
    return made


def _number(name: str, value: str) -> int:
    try:
        return math.ceil(minutes(value)) if name == "time" else int(value)
    except ValueError as error:
        raise ValueError(f"the study's default {name}={value}: {error}") from error


def study_name(given: str | None, cells: Iterable[str], measures: Sequence[str]) -> str:
    """Name of a study that has none: the same for the same cells and measures."""
    text = " ".join([*sorted(cells), *measures])
    return given or f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
