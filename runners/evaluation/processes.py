"""Several processes that evaluate one model together, as torchrun starts them; each takes a share of the images."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""How long one process waits for the answers of another; torchrun ends all of them when one fails."""


class Place(NamedTuple):
    """Which of the processes this is: of all, and on its machine."""

    rank: int
    world_size: int
    local_rank: int

    def device(self, device: torch.device) -> torch.device:
        """Return this process's own device of those like `device`."""
        if device.type == "cuda" and device.index is None and self.world_size > 1:
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device

    def gather(self, part: T) -> list[T] | None:
        """Return the parts of all processes on the first, None on the others."""
        if self.world_size == 1:
            return [part]
        parts: list[T] | None = [part] * self.world_size if self.rank == 0 else None
        distributed.gather_object(part, parts)
        return parts


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Place]:
    """Join the processes that torchrun started, if it did: it exports RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        ValueError: these variables are no numbers.
    """
    try:
        place = Place(*(int(environment.get(name, alone)) for name, alone in _VARIABLES))
    except ValueError as error:
        raise ValueError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun exports them") from error
    if place.world_size == 1:
        yield place
        return
    # answers are few and small, and are gathered on the CPU wherever the model is
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield place
    finally:
        distributed.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
