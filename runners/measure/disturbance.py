"""Whether something else was at work while a process measured: what is read, and from where on it counts.

A process is `disturbed` if during its rounds
- other processes, or the host of a virtual machine (steal), took more than 8 % of the processors it may use;
- it was interrupted more often than 60 times a second for each thread (involuntary context switches);
- a processor throttled itself because of heat, or its clock at the end was under 80 % of that at the start;
- its last third of rounds took 1.5 times as long as the first, or 1 / 1.5 (medians of the baseline, else of the cell):
  something came, went, or warmed up. Thirds are a quarter of a second on small models, and those of an idle machine
  differ by up to 1.5.
What a system does not tell is left out. The goal is that an idle machine marks under 5 % of cells, and a busy loop on
each processor over 95 %; `python -m benchmarks.coverage`, with and without `--busy`, counts how many are marked.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import psutil

OTHERS = 0.08
"""Share of the usable processors."""
SWITCHES = 60.0
"""A second and thread."""
SLOWER_CLOCK = 0.8
DRIFT = 1.5
FEW = 12
"""Fewer rounds have no first and last third worth comparing."""
THROTTLED = "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"


@dataclass(frozen=True)
class Readings:
    """What counters say at one moment; None where this system has no such counter."""

    wall_s: float
    own_s: float
    busy_s: float | None
    switches: int | None
    throttled: int | None
    clock_mhz: float | None


def read() -> Readings:
    """Read the counters of this process and of the processors that it may use."""
    processors = usable_processors()
    return Readings(
        perf_counter(), process_time(), _busy_s(processors), _switches(), _throttled(), _clock_mhz(processors)
    )


def usable_processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def _busy_s(processors: Sequence[int]) -> float | None:
    """Seconds in which the processors, all together, did anything, or were taken by the host (steal)."""
    times = psutil.cpu_times(percpu=True)
    if not processors or len(times) <= processors[-1]:
        return None
    # guest time is within user time already
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times[index], kind, 0.0) for index in processors for kind in kinds)


def _switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _throttled(system: Path = Path("/sys")) -> int | None:
    try:
        counts = [int(path.read_text()) for path in system.glob(THROTTLED)]
    except (OSError, ValueError):
        return None
    return sum(counts) if counts else None


def _clock_mhz(processors: Sequence[int]) -> float | None:
    """Mean clock; a virtual machine shows a constant one, which says nothing and harms nothing."""
    try:
        clocks = psutil.cpu_freq(percpu=True)
    except (OSError, NotImplementedError, RuntimeError):
        return None
    present = [clocks[index].current for index in processors if index < len(clocks) and clocks[index].current]
    return sum(present) / len(present) if present else None


class Watch:
    """Reads the counters before and after each block under it: `with watch(): ...`."""

    def __init__(self) -> None:
        self.spans: list[tuple[Readings, Readings]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch a block."""
        before = read()
        yield
        self.spans.append((before, read()))


def summary(spans: Iterable[tuple[Readings, Readings]], threads: int) -> dict[str, float]:
    """What happened in the spans of one process, all together, by name.

    `others`: share of the usable processors that others took. `switches`: a second and thread. `throttled`: times.
    `clock`: the lowest ratio of a span's end to its start.
    """
    wall_s, taken_s, values = 0.0, 0.0, {"switches": 0.0, "throttled": 0.0}
    for before, after in spans:
        wall_s += after.wall_s - before.wall_s
        if before.busy_s is not None and after.busy_s is not None:
            taken_s += after.busy_s - before.busy_s - (after.own_s - before.own_s)
            values["others"] = max(0.0, taken_s)
        if before.switches is not None and after.switches is not None:
            values["switches"] += after.switches - before.switches
        if before.throttled is not None and after.throttled is not None:
            values["throttled"] += after.throttled - before.throttled
        if before.clock_mhz and after.clock_mhz:
            values["clock"] = min(values.get("clock", 1.0), after.clock_mhz / before.clock_mhz)
    shares = {"others": wall_s * len(usable_processors()), "switches": wall_s * threads}
    return {name: value / shares[name] if shares.get(name) else value for name, value in values.items()}


def drift(rounds_ms: Sequence[float]) -> float | None:
    """Median of the last third of equal rounds over that of the first; None of too few."""
    third = len(rounds_ms) // 3
    return median(rounds_ms[-third:]) / median(rounds_ms[:third]) if len(rounds_ms) >= FEW else None


def reasons(values: Mapping[str, float]) -> list[str]:
    """Say in words what of a `summary`, and `drift`, is beyond its limit; nothing if the process was left in peace."""
    found = []
    if values.get("others", 0.0) > OTHERS:
        found.append(f"others took {values['others']:.0%} of the processors")
    if values.get("switches", 0.0) > SWITCHES:
        found.append(f"interrupted {values['switches']:.0f} times a second and thread")
    if values.get("throttled", 0.0) > 0:
        found.append(f"throttled by heat {values['throttled']:.0f} times")
    if values.get("clock", 1.0) < SLOWER_CLOCK:
        found.append(f"clock fell to {values['clock']:.0%}")
    if not 1 / DRIFT <= values.get("drift", 1.0) <= DRIFT:
        found.append(f"rounds at the end took {values['drift']:.2f} times those at the start")
    return found
