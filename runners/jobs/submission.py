"""What a submission to SLURM says, and whether something that was read can be one: its words become paths and flags."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from types import NoneType
from typing import Any

from runners.machine.environment import check_device
from runners.store.names import is_key, is_name
from runners.store.pictures import MOST_IMAGES
from runners.store.store import PARTS

_OPTION = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an array asks of SLURM: options of sbatch by their long names, and how it goes on after a time limit.

    `time_min` is the limit of one run in minutes, `max_requeues` None stands for as long as a run gets further.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    time_min: int = 60
    nodes: int = 1
    gpus_per_node: int | None = None
    procs_per_node: int | None = None
    cpus_per_task: int | None = None
    max_parallel: int | None = None
    cells_per_job: int = 1
    max_requeues: int | None = None
    exclusive: bool = False

    @property
    def world_size(self) -> int:
        """Processes of a job: one per GPU, or as many on each node as are asked for, or one."""
        return self.nodes * (self.gpus_per_node or self.procs_per_node or 1)

    @property
    def target(self) -> tuple[str | int | None, ...]:
        """What decides on which kind of device a job runs."""
        chosen = (self.options.get(name) for name in ("partition", "constraint", "nodelist", "gres", "gpus"))
        return *chosen, self.gpus_per_node

    def sbatch_options(self, cpus: int | None = None, *, exclusive: bool = False) -> dict[str, str | int]:
        """All that sbatch is told beside names and files."""
        numbers = {
            "time": self.time_min,
            "nodes": self.nodes,
            "ntasks-per-node": self.world_size // self.nodes,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task or cpus,
            "exclusive": "" if exclusive else None,
        }
        return {**self.options, **{name: value for name, value in numbers.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Measures of one cell that a task is to make."""

    key: str
    measures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How cells are measured, and which of them count as missing: the same of an order and of its submissions."""

    device: str = "auto"
    memory_limit_mib: int | None = None
    patience_s: float = 60.0
    workers: int | None = None
    checkpoint_every_s: float = 30.0
    save_weights: bool = False
    tensorboard: bool = False
    save_predictions: int = 0
    retry: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Submission(Asked):
    """One array; task i does `tasks[i]`, one cell after another.

    `code` is `environment.code` of the process that submitted, `job` the number that SLURM gave, None until it did.
    """

    name: str
    study: str
    tasks: tuple[tuple[Work, ...], ...]
    request: Request
    part: str = ""
    code: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: str = ""
    job: str | None = None

    @property
    def time(self) -> datetime:
        """When it was submitted."""
        return datetime.fromisoformat(self.submitted_at)

    @property
    def measures(self) -> dict[str, tuple[str, ...]]:
        """Measures by cell."""
        return {work.key: work.measures for task in self.tasks for work in task}


@dataclass(frozen=True, kw_only=True)
class TaskNote:
    """What a task says when it begins: where it runs, and the number that the record of each measure will get."""

    job: str
    restarts: int
    environment: Mapping[str, Any]
    device_ids: Mapping[str, str]
    attempts: Mapping[str, Mapping[str, int]]
    protocols: Mapping[str, int]
    started_at: str


def check(submission: Submission, name: str) -> None:
    """Refuse what `write` has not written: names become paths, and times are reckoned with.

    Raises:
        ValueError, TypeError: a field cannot be used.
    """
    works = [work for task in submission.tasks for work in task]
    names = [submission.name, submission.study, *(measure for work in works for measure in work.measures)]
    if submission.name != name or not all(map(is_name, names)) or submission.part not in PARTS:
        raise ValueError("a name that is not its own")
    if not all(is_key(work.key) for work in works):
        raise ValueError("a key that no cell has")
    if submission.time.tzinfo is None:
        raise ValueError("a time without a time zone")
    if submission.job is not None and not re.fullmatch(r"[0-9]+", submission.job):
        raise ValueError("a job that SLURM has not numbered")
    flags, limit = (submission.save_weights, submission.tensorboard, submission.force), submission.memory_limit_mib
    if not isinstance(submission.code, Mapping) or not all(isinstance(status, str) for status in submission.retry):
        raise TypeError("fields of other types")
    if {*map(type, flags)} != {bool} or type(limit) not in (int, NoneType):
        raise TypeError("fields of other types")
    for seconds in (submission.patience_s, submission.checkpoint_every_s):
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise TypeError("a patience or an interval that is no time")
    if submission.workers is not None and (type(submission.workers) is not int or submission.workers < 0):
        raise TypeError("workers that are no number")
    if type(submission.save_predictions) is not int or not 0 <= submission.save_predictions <= MOST_IMAGES:
        raise TypeError("pictures that are no number")
    check_device(submission.device)
    _check_request(submission.request)


def _check_request(request: Request) -> None:
    for option in fields(Request):
        value, default = getattr(request, option.name), option.default
        if option.name == "options":
            if not all(_OPTION.fullmatch(name) and isinstance(text, str) for name, text in value.items()):
                raise ValueError("options that sbatch does not have")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise TypeError(f"{option.name} is a flag")
        elif value is not None or default is not None:
            low = 0 if option.name == "max_requeues" else 1
            if type(value) is not int or not low <= value < 2**31:
                raise TypeError(f"{option.name} is a number")


def is_sound(note: TaskNote) -> bool:
    """Whether a note that was read names files and numbers that `write_note` can have written."""
    attempts = [pair for by_measure in note.attempts.values() for pair in by_measure.items()]
    names = [*note.device_ids.values(), *(measure for measure, _ in attempts)]
    numbers = [note.restarts, *(attempt for _, attempt in attempts), *note.protocols.values()]
    started = datetime.fromisoformat(note.started_at)
    return (
        isinstance(note.job, str)
        and isinstance(note.environment, Mapping)
        and started.tzinfo is not None
        and all(map(is_key, [*note.device_ids, *note.attempts]))
        and all(map(is_name, names))
        and all(type(number) is int and 0 <= number < 10**9 for number in numbers)
        and all(measure in note.protocols for measure, _ in attempts)
        and note.attempts.keys() <= note.device_ids.keys()
    )
