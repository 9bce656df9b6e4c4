"""Interleaved timing: what is compared runs in turns in one process, so that all of it meets the same disturbances.

Each round takes a sample of every contender, and every second round in the reverse order, so that none always follows
the same neighbour. A call that is not timed precedes each sample: who uses a model runs it again and again, and a
sample would pay for the caches and the heap as its neighbour leaves them, but not where the order makes a contender its
own neighbour. A comparison is made of the ratios within the rounds, never of times far apart. Contenders of a few
milliseconds are called several times for one sample.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

Samples = dict[str, list[float]]
"""Milliseconds of one call, for each contender one number a round."""

WARMUP_ROUNDS = 2
SLOW_S = 1.0
"""What takes longer is warm after one call."""
MIN_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `n` values."""

    median: float
    q25: float
    q75: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        q25, median, q75 = (float(q) for q in np.percentile(values, (25, 50, 75)))
        return Spread(median, q25, q75, len(values))


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    min_sample_s: float = MIN_SAMPLE_S,
) -> Samples:
    """Time contenders in turns, after warming up.

    Args:
        contenders: what each of them runs.
        rounds: samples of each.
        clock: seconds.
        min_sample_s: a faster contender is called more than once for a sample.
    """
    calls = {}
    for name, run in contenders.items():
        for _ in range(WARMUP_ROUNDS):
            start = clock()
            run()
            seconds = clock() - start
            if seconds > SLOW_S:
                break
        calls[name] = max(1, ceil(min_sample_s / max(seconds, 1e-6)))
    samples: Samples = {name: [] for name in contenders}
    order = list(contenders)
    gc.collect()
    for _ in range(rounds):
        for name in order:
            run = contenders[name]
            run()
            start = clock()
            for _ in range(calls[name]):
                run()
            samples[name].append(1e3 * (clock() - start) / calls[name])
        order.reverse()
    return samples


def speed(samples: Samples, subject: str, peer: str) -> Spread:
    """How many times as fast as its peer the subject is: the peer's time over its own, round by round."""
    return Spread.of([theirs / ours for ours, theirs in zip(samples[subject], samples[peer], strict=True)])


def share(samples: Samples, subject: str, peer: str) -> Spread:
    """How much of its peer's time or memory the subject takes, round by round."""
    return Spread.of([ours / theirs for ours, theirs in zip(samples[subject], samples[peer], strict=True)])
