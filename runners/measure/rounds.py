"""Rounds of a cell and its baseline in one process: what the throughput measure runs, see speed.py.

Cell and baseline run in turns, A B A B, so that both meet the same disturbances. Each phase, inference and then
training, has
- the first call of each, timed apart: torch.compile does its work there;
- warm-up: at least 2 rounds and 0.3 s, unless that takes a quarter of the phase's budget;
- rounds until the budget is spent: at least 3, at least 1 if a single round exceeds the budget, at most 100.
Inference gets 30 % of the budget, and training, whose rounds are longer, the rest; compilation comes on top.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from runners.machine.conditions import Conditions
from runners.machine.environment import apply_threads, memory_limit
from runners.machine.failures import is_out_of_memory
from runners.machine.hardware import hardware
from runners.measure import ceilings, disturbance
from runners.measure.goal import CLASSES, Goal
from runners.train.criterion import LABELS, BatchLoss
from runners.train.optim import make_optimizer
from runners.train.recipe import PROBE
from runners.train.step import PLAIN

INFER_SHARE = 0.3
WARMUP_ROUNDS = 2
WARMUP_S = 0.3
WARMUP_SHARE = 0.25
MIN_ROUNDS = 3
MAX_ROUNDS = 100
TRAIN_PARTS = ("forward", "backward", "optimizer")

# a batch learned by heart has gradients so small that the CPU computes them slowly
STILL = replace(PROBE, lr=1e-7)
CLIP_NORM = 1.0
"""Of the timed training step."""

Run = Callable[[], list[float]]  # runs once and returns the milliseconds of each part


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is timed; plain data and functions of modules, since it is pickled.

    Attributes:
        build: makes the model on the CPU.
        build_baseline: makes the vanilla model, or None.
        input_shape: of a batch, (B, 3, height_px, width_px).
        seed: of the images.
        device: where both run.
        conditions: how both compute.
        compile_model: compile both models.
        threads: CPU threads, None for torch's choice.
        memory_limit_mib: what a process may allocate beyond its interpreter and libraries.
        goal: what a training step learns.
    """

    build: Callable[[], nn.Module]
    build_baseline: Callable[[], nn.Module] | None
    input_shape: tuple[int, ...]
    seed: int = 0
    device: str = "cpu"
    conditions: Conditions = PLAIN
    compile_model: bool = False
    threads: int | None = None
    memory_limit_mib: int | None = None
    goal: Goal = CLASSES

    @property
    def why_untrained(self) -> str | None:
        """Why no training step of this work can be measured; None if one can."""
        if not self.conditions.can_train:
            return f"precision {self.conditions.precision} cannot be trained"
        if self.input_shape[0] < self.goal.least_images:
            return f"a training step needs {self.goal.least_images} images"
        return None

    @contextmanager
    def at_work(self) -> Iterator[torch.device]:
        """Threads, conditions, memory limit and seed hold within the block, whose device is given."""
        device = torch.device(self.device)
        apply_threads(self.threads)
        with self.conditions.applied(device), memory_limit(device, self.memory_limit_mib):
            torch.manual_seed(self.seed)
            yield device

    def batch(self) -> tuple[Tensor, Any]:
        """Images (B, 3, height_px, width_px) and their targets, where the model runs and as it wants them."""
        device = torch.device(self.device)
        images = torch.randn(self.input_shape, generator=torch.Generator().manual_seed(self.seed))
        return self.conditions.place_images(images, device), self.targets(len(images))

    def targets(self, batch: int) -> Any:
        """Targets of so many images."""
        _, _, height, width = self.input_shape
        return self.goal.make_targets(batch, height, width, device=torch.device(self.device))

    def contender(self, model: nn.Module, images: Tensor, targets: Any) -> "Contender":
        """A copy of a model, ready to run on a batch under these conditions."""
        return Contender(model, images, targets, self.conditions, self.compile_model, self.goal.criterion)


@dataclass(frozen=True)
class Phase:
    """Milliseconds of one phase: of each round the parts of the cell, and the whole of the baseline.

    `dropped` says why the baseline was left out.
    """

    first_ms: float
    cell: list[list[float]] = field(default_factory=list)
    vanilla: list[float] = field(default_factory=list)
    dropped: str | None = None

    @property
    def totals(self) -> list[float]:
        """Milliseconds of each round of the cell."""
        return [sum(parts) for parts in self.cell]


def run_process(work: Work, budget_s: float, baseline_first: bool, with_bounds: bool) -> dict[str, Any]:
    """Time both phases in this process; the result is plain data for JSON.

    Args:
        work: what is timed.
        budget_s: seconds for warm-up and rounds.
        baseline_first: build the baseline before the cell, which moves where both have their weights.
        with_bounds: measure the ceilings of the device, and the traffic of a forward, too.
    """
    with work.at_work() as device:
        images, labels = work.batch()
        builders = {"cell": work.build, "vanilla": work.build_baseline}
        order = reversed(builders) if baseline_first else builders
        models = {name: build() for name in order if (build := builders[name]) is not None}
        watch = disturbance.Watch()
        infer = _phase(Contender.infer, models, images, labels, work, budget_s * INFER_SHARE, watch)
        if infer.dropped:
            models.pop("vanilla")
        train = Phase(0.0, dropped=work.why_untrained)
        if work.why_untrained is None:
            train = _phase(Contender.train, models, images, labels, work, budget_s * (1 - INFER_SHARE), watch)
            train = replace(train, dropped=infer.dropped or train.dropped)
        drifts = [disturbance.drift(phase.vanilla or phase.totals) for phase in (infer, train)]
        most = max((drift for drift in drifts if drift), key=lambda drift: max(drift, 1 / drift), default=None)
        seen = disturbance.summary(watch.spans, torch.get_num_threads()) | ({"drift": most} if most else {})
        # the state first: what bounds it is measured by other work
        bounds = {**hardware(device).state(), **_bounds(models["cell"], images, work, device)} if with_bounds else {}
    return {"infer": asdict(infer), "train": asdict(train), "seen": seen, "bounds": bounds}


def _bounds(model: nn.Module, images: Tensor, work: Work, device: torch.device) -> dict[str, float | None]:
    traffic = ceilings.forward_traffic_mib(model, images, device, work.conditions)
    return {**ceilings.measure_ceilings(device, work.conditions.dtype), "traffic_mib": traffic}


def _phase(
    run: Callable[["Contender"], list[float]],
    models: dict[str, nn.Module],
    images: Tensor,
    labels: Any,
    work: Work,
    budget_s: float,
    watch: disturbance.Watch,
) -> Phase:
    # fresh copies for each phase: what a model caches in inference mode cannot be trained with
    runs = {name: partial(run, work.contender(model, images, labels)) for name, model in models.items()}
    return time_rounds(runs["cell"], runs.get("vanilla"), watch, budget_s=budget_s, compiled=work.compile_model)


class Contender:
    """A copy of a model, ready to run on a batch."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Any,
        conditions: Conditions,
        compiled: bool,
        criterion: BatchLoss = LABELS,
    ) -> None:
        self.model = conditions.place(copy.deepcopy(model), images.device)
        self.network = cast(nn.Module, torch.compile(self.model)) if compiled else self.model
        self.images, self.targets, self.conditions, self.criterion = images, targets, conditions, criterion
        self.optimizer = make_optimizer(self.model, STILL)
        self.scaler = conditions.scaler(images.device, init_scale=1.0)
        self.hardware = hardware(images.device)

    def infer(self) -> list[float]:
        """Run one forward pass; returns its milliseconds."""
        self.model.eval()
        start = self.hardware.stamp()
        with torch.inference_mode(), self.conditions.autocast(self.images.device):
            self.network(self.images)
        return [self.hardware.elapsed_ms(start, self.hardware.stamp())]

    def train(self) -> list[float]:
        """Run one training step; returns the milliseconds of `TRAIN_PARTS`."""
        self.model.train()
        stamps = [self.hardware.stamp()]
        with self.conditions.autocast(self.images.device):
            given = (self.images, self.targets) if self.criterion.in_model else (self.images,)
            loss = self.criterion(self.network(*given), self.targets, self.images)
        stamps.append(self.hardware.stamp())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        stamps.append(self.hardware.stamp())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        stamps.append(self.hardware.stamp())
        return [self.hardware.elapsed_ms(start, end) for start, end in pairwise(stamps)]


def time_rounds(
    cell: Run, vanilla: Run | None, watch: disturbance.Watch, *, budget_s: float, compiled: bool = False
) -> Phase:
    """Run one phase, see the top of this file; a baseline that runs out of memory is left out."""
    started = time.perf_counter()
    phase = Phase(first_ms=sum(cell()))
    if vanilla is not None:
        try:
            vanilla()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            vanilla, phase = None, replace(phase, dropped=f"vanilla ran out of memory: {error}")
    if compiled:
        started = time.perf_counter()
    _warm_up([cell] if vanilla is None else [cell, vanilla], started + budget_s * WARMUP_SHARE)
    wanted = 1
    with watch():
        while len(phase.cell) < wanted or (time.perf_counter() < started + budget_s and len(phase.cell) < MAX_ROUNDS):
            before = time.perf_counter()
            phase.cell.append(cell())
            if vanilla is not None:
                phase.vanilla.append(sum(vanilla()))
            if time.perf_counter() - before <= budget_s:
                wanted = MIN_ROUNDS
    return phase


def _warm_up(runs: Sequence[Run], deadline: float) -> None:
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() < deadline and (rounds < WARMUP_ROUNDS or time.perf_counter() < started + WARMUP_S):
        for run in runs:
            run()
        rounds += 1
