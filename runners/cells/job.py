"""What a job is asked for, where it runs, and a job at work."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ablations.study import Cell
from runners.store.store import Store
from runners.train.distributed import Group


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is asked for; plain data that any process can read.

    `attempts` names the measures, in order, and the number that each one's record should get: a measure whose next
    number is another has been done by somebody else in the meantime.
    `patience_s` is how long timing a disturbed cell again may take, `workers` how many processes read images, None as
    many as there are processors to spare; `checkpoint_every_s` is the time between two saved states of a training.
    `save_predictions` is the number of validation images that are drawn with what the trained model says of them.
    `part` is set where two jobs of one cell run side by side and measure different things.
    """

    out: Path
    key: str
    cell: Cell
    attempts: Mapping[str, int]
    device: str = "auto"
    memory_limit_mib: int | None = None
    save_weights: bool = False
    tensorboard: bool = False
    save_predictions: int = 0
    part: str = ""
    patience_s: float = 60.0
    workers: int | None = None
    checkpoint_every_s: float = 30.0


@dataclass(frozen=True)
class Place:
    """Where a job runs: the name of its kind of device, and what can move a number there."""

    device_id: str
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A job at work; of several processes `group.rank` 0 alone has runs, the others `follow`."""

    store: Store
    job: Job
    device: torch.device
    place: Place
    group: Group

    def say(self, **progress: Any) -> None:
        """Write how far it is."""
        mine = {"slurm_job": self.place.environment.get("slurm_job"), "updated_at": now()}
        self.store.write_progress(self.job.key, {**progress, **mine}, self.job.part)


def now() -> str:
    """Present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
