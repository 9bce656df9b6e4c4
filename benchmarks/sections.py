"""What the report measures of whole models, and what should come out."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch._inductor.config
from torch import nn

from attention_zoo import names
from benchmarks.claims import Claim, Measured
from benchmarks.floor import floor
from benchmarks.models import (
    FORWARD_1,
    FORWARD_8,
    OUR_SWIN,
    OURS,
    OURS_OFFICIAL,
    PAPER,
    TIMM_MAXVIT,
    TIMM_SWIN,
    TRAIN_8,
    Work,
    build,
)
from benchmarks.pairs import take_turns
from runners.machine.environment import cpu_model
from runners.measure.memory import measure_memory

Run = Callable[[], object]

# The published BiFormer-Tiny, interleaved with timm's swin_tiny on two cores, had these ratios of img/s: quartiles at
# batch 8 and in training. At batch 1 only the median is known, 1.09: the range is 15 % around it, as far as the
# quartiles of batch 8 lie apart.
PUBLISHED_CODE = {FORWARD_8: (0.85, 1.00), FORWARD_1: (0.93, 1.25), TRAIN_8: (0.33, 0.69)}
AGAINST_PAPER = {FORWARD_8: 2.5, FORWARD_1: 1.75, TRAIN_8: 3.0}
ABOVE_FLOOR = {
    "AMD": {FORWARD_8: 1.40, FORWARD_1: 1.55, TRAIN_8: 1.50},
    "Intel": {FORWARD_8: 1.55, FORWARD_1: 1.85, TRAIN_8: 1.80},
}
"""Times the floor that BiFormer-Tiny may take, by the maker of the processor; of others nothing is known."""


def above_floor(cpu: str, work: Work) -> float | None:
    """Find the goal for a processor by the name of its model."""
    return next((goals[work] for maker, goals in ABOVE_FLOOR.items() if maker in cpu), None)


@dataclass(frozen=True)
class Task:
    """One measurement to make."""

    section: str
    work: str
    run: Callable[[], Measured]


def timed(
    section: str,
    work: str,
    rounds: int,
    contenders: Callable[[], dict[str, Run]],
    claims: Sequence[Claim] = (),
    *,
    tokens: int | None = None,
) -> Task:
    """Make the task of timing contenders in turns; they are built when it starts."""

    def run() -> Measured:
        torch.manual_seed(0)
        samples = take_turns(contenders(), rounds)
        return Measured(section=section, work=work, samples=samples, claims=tuple(claims), tokens=tokens)

    return Task(section, work, run)


def anchors(rounds: int) -> list[Task]:
    """BiFormer-Tiny beside timm's Swin-Tiny, and beside the paper's steps, which lie beside Swin-Tiny themselves.

    Beside Swin-Tiny nothing is wanted: how fast that is depends on the processor by a quarter.
    """

    def task(work: Work) -> Task:
        claims = (
            Claim(OURS, TIMM_SWIN),
            Claim(PAPER, TIMM_SWIN, within=PUBLISHED_CODE[work]),
            Claim(OURS, PAPER, AGAINST_PAPER[work]),
        )
        contenders = (OURS, TIMM_SWIN, PAPER)
        return timed("anchors", str(work), rounds, lambda: {n: work.prepare(build(n)) for n in contenders}, claims)

    return [task(work) for work in (FORWARD_8, FORWARD_1, TRAIN_8)]


class Compiled(nn.Module):
    """A model through torch.compile; frozen, its weights are constants: packed, and norms folded into convolutions.

    Whatever the process is told, as by TORCHINDUCTOR_FREEZING.
    """

    def __init__(self, model: nn.Module, *, frozen: bool) -> None:
        """Compile at the first call."""
        super().__init__()
        self.frozen = frozen
        # the option freezes nothing, since what records a graph reads the configuration of the process; but without
        # it an equal model's graph of the other kind would be taken for this one's
        self.compiled = torch.compile(model, fullgraph=True, options={"freezing": frozen})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the graph."""
        with torch._inductor.config.patch(freezing=self.frozen):
            found: torch.Tensor = self.compiled(x)
        return found


def compiled(rounds: int) -> list[Task]:
    """BiFormer-Tiny through torch.compile beside itself without: by default, and with frozen weights."""
    plain, frozen = f"compiled {OURS}", f"compiled {OURS}, weights frozen"

    def task(work: Work) -> Task:
        def contenders() -> dict[str, Run]:
            networks = {name: Compiled(build(OURS), frozen=name == frozen) for name in (plain, frozen)}
            return {name: work.prepare(network) for name, network in {**networks, OURS: build(OURS)}.items()}

        return timed("compiled", str(work), rounds, contenders, [Claim(name, OURS, 1.0) for name in (plain, frozen)])

    return [task(work) for work in (FORWARD_8, FORWARD_1)]


def floors(rounds: int) -> list[Task]:
    """Models beside their own matrix products and convolutions alone."""

    def task(name: str, work: Work) -> Task:
        def contenders() -> dict[str, Run]:
            model = build(name)
            return {"its floor": floor(model, work), name: work.prepare(model)}

        wanted = above_floor(cpu_model(), work) if name == OURS else None
        return timed("floor", f"{name}, {work}", rounds, contenders, [Claim(name, "its floor", wanted, kind="share")])

    works = [(OURS, FORWARD_1), (OURS, TRAIN_8)]
    peers = (OURS, PAPER, OUR_SWIN, TIMM_SWIN, TIMM_MAXVIT, *(f"stl/{name}" for name in names()))
    return [task(name, work) for name, work in (*works, *((name, FORWARD_8) for name in peers))]


MAX_PROCESSES = 5
"""Processes that a peak is the median of: the state of the heap moves a resident size by a tenth."""


@functools.cache
def _peaks(name: str, batch: int, side_px: int, index: int) -> dict[str, float | None]:
    """Measure once for each `index`, in new processes."""
    shape = (batch, 3, side_px, side_px)
    return measure_memory(functools.partial(build, name), shape, torch.device("cpu"), threads=torch.get_num_threads())


def memory(rounds: int) -> list[Task]:
    """Peak of the resident size above that of the built model, each sample in a process of its own.

    Beside it what torch allocates, weights and optimiser state included, which are the same for both.
    """

    def task(work: Work, ours: str, wanted: float | None, kind: str) -> Task:
        def run() -> Measured:
            column = {"resident": "rss_mib", "allocated": "mib"}[kind]
            column = (
                f"peak_train_{column}" if work.training else f"peak_{'infer_' if kind == 'allocated' else ''}{column}"
            )
            samples: dict[str, list[float]] = {ours: [], PAPER: []}
            for index in range(min(rounds, MAX_PROCESSES) if kind == "resident" else 1):
                for name, peaks in samples.items():
                    peak = _peaks(name, work.batch, work.side_px, index)[column]
                    assert peak is not None
                    peaks.append(peak)
            claims = (Claim(ours, PAPER, wanted, kind="share"),)
            return Measured(section="memory", work=f"{work}, {kind}", unit="MiB", samples=samples, claims=claims)

        return Task("memory", f"{work}, {kind}", run)

    # regions do not divide 768 px, so there ours pads as the published code does
    works: list[tuple[Work, str, float | None]] = [
        (TRAIN_8, OURS, 0.40),
        (FORWARD_8, OURS, 0.3),
        (Work(1, side_px=768), OURS_OFFICIAL, 0.3),
        (Work(1, training=True, side_px=768), OURS_OFFICIAL, None),
    ]
    resident = [task(work, ours, wanted, "resident") for work, ours, wanted in works]
    return resident + [task(work, ours, None, "allocated") for work, ours, _ in works]
