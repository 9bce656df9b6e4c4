"""The saved states of a training run, from which it goes on bit for bit.

Two files: the newest state, and the one before it (`.before`). Each is a line of JSON (the run, the step, SHA-256 of
the rest), then what torch.save writes, read with weights_only. The checksum is our own, for torch loads flipped bits
without a word. A file appears whole or not at all. Where the newest is damaged, the one before it is taken, with a
warning; where that cannot be used either, training starts at step 0. So it does from states of another run or of other
code: the result is the same, only later, and no row is half of one code and half of another.

A state is saved only while all weights are finite, so that a run that diverges leaves the last good one. A state that
cannot be written is a warning; those before it stay.

While a `Checkpoint` is open, SIGTERM and SIGUSR2, with which schedulers announce a preemption or a time limit, wait for
the end of the step: its state is saved first, then they do what they did before. In an evaluation they need not wait.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from runners.machine import environment
from runners.store.files import StoreError, opened, write_whole
from runners.train.distributed import ALONE, Group
from runners.train.notices import Notices

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

HEADER_BYTES = 1 << 12


class Evaluation(NamedTuple):
    """How good a model was on the test images after a step: its task's metric, percent, and its loss if it has one."""

    step: int
    score: float
    val_loss: float | None


@dataclass
class Training:
    """A training run between two steps: all of its state, for the learning rate and the data follow from `step`.

    `resumed` counts how often it went on from a saved state, `seconds` leave out what was lost with the rest; `waited`
    of them were spent waiting for images. `average` follows the weights, where there is one. `reached` is the step, and
    the seconds, at which a stated accuracy was there. `looked` is the last step after which the test images were looked
    at, `evaluations` are what was found, and `best` the weights of the first with the highest score. `broken` names the
    images that could not be read so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=partial(torch.amp.GradScaler, "cpu", enabled=False))
    average: "ModelEmaV3 | None" = None
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    resumed: int = 0
    waited: float = 0.0
    reached: tuple[int, float] | None = None
    looked: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    broken: dict[str, str] = field(default_factory=dict)

    def note(self, evaluation: Evaluation) -> None:
        """Add an evaluation of the present weights, and copy them if they are the best so far."""
        if all(evaluation.score > earlier.score for earlier in self.evaluations):
            self.best = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        self.evaluations.append(evaluation)

    def is_good(self) -> bool:
        """Whether all weights are finite."""
        return bool(torch.stack([weight.detach().isfinite().all() for weight in self.model.parameters()]).all())


def identify(model: nn.Module, **settings: Any) -> str:
    """Name a run: hash of its settings, of the shapes of its model, of torch's version and of this program's source."""
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    source = environment.code()["source_sha256"]
    text = json.dumps({**settings, "torch": str(torch.__version__), "source": source, "model": shapes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint:
    """The files of one run, a context manager around its training; of several processes the first alone writes them."""

    def __init__(self, path: Path, run: str, *, every_s: float, group: Group = ALONE) -> None:
        """Name the newest file and the run that it must be of; saving once in `every_s` seconds, 0 for every step."""
        self.path, self.run, self.every_s, self.group = path, run, every_s, group
        self.before = path.with_name(f"{path.name}.before")
        self._is_whole = False  # the newest file is known to be, and of this run
        self._step: int | None = None  # of the newest state that can be used
        self._saved_at = time.monotonic()
        self._complained = False
        self._notices = Notices()

    def __enter__(self) -> "Checkpoint":
        """Begin to hold signals back; only the process that writes has to."""
        if self.group.rank == 0:
            self._notices.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Let signals through again, first those that came since the last step."""
        self._notices.__exit__()

    def after_step(self, training: Training) -> None:
        """Save if it is time, or if a signal asks for it, which is then let through."""
        if self._notices.pending or time.monotonic() - self._saved_at >= self.every_s:
            self.save(training)
        self._notices.deliver()

    def at_rest(self, training: Training) -> AbstractContextManager[None]:
        """Context of something long between two steps, in which a signal saves the state and acts at once."""
        return self._notices.at_once(partial(self.save, training))

    def save(self, training: Training) -> None:
        """Write the state of a run between two steps durably; the newest becomes the one before it."""
        if self.group.rank:
            return
        if not training.is_good():
            self._complain(f"weights are not finite after step {training.step}: {self.kept()}")
            return
        buffer = io.BytesIO()
        torch.save(_state(training), buffer)
        content = buffer.getvalue()
        header = {"run": self.run, "step": training.step, "sha256": hashlib.sha256(content).hexdigest()}
        try:
            # a newest file that cannot be used must not take the place of the one before it
            publish = self._rotate if self._is_whole else None
            write_whole(self.path, f"{json.dumps(header)}\n".encode() + content, publish)
            self._is_whole, self._step, self._complained = True, training.step, False
        except StoreError as error:
            self._complain(f"{error}; if killed, training repeats its steps")
        self._saved_at = time.monotonic()

    def kept(self) -> str:
        """Say which state there is to go on from."""
        return "no state is saved" if self._step is None else f"the saved state of step {self._step} is kept"

    def restore(self, training: Training) -> None:
        """Bring a run, in place, to its newest state that can be used, if there is one; every process must call it."""
        faults: list[tuple[Path, str]] = []
        outcome = "training starts anew"
        for path in (self.path, self.before):
            content = self.group.broadcast(None if self.group.rank else self._read(path, faults))
            if content is None:
                continue
            fresh = copy.deepcopy(_state(training))
            try:
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                _check(state, training.model)
                _apply(training, state)
            except Exception as error:  # whatever torch makes of the wrong tensors
                _apply(training, fresh)
                faults.append((path, f"is no state of this model ({type(error).__name__})"))
                continue
            training.resumed += 1
            self._is_whole, self._step = path == self.path, training.step
            outcome = f"training goes on from {path.name}, saved after step {training.step}"
            break
        if self.group.rank == 0:
            for path, fault in faults:
                print(f"warning: the saved state {path} {fault}: {outcome}", flush=True)
            if training.resumed and not faults:
                print(outcome, flush=True)
            self._tidy()

    def _read(self, path: Path, faults: list[tuple[Path, str]]) -> bytes | None:
        """What torch.save wrote, None if there is nothing that this run can go on from; says why in `faults`."""
        try:
            with opened(str(path)) as descriptor, open(descriptor, "rb", closefd=False) as file:
                first, content = file.readline(HEADER_BYTES), file.read()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            faults.append((path, f"cannot be read ({getattr(error, 'strerror', None) or error})"))
            return None
        try:
            header = json.loads(first)
            run, sha256 = header["run"], header["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):
            run = sha256 = None
        if sha256 != hashlib.sha256(content).hexdigest():
            faults.append((path, "is damaged"))
        elif run != self.run:
            faults.append((path, "is of a run with other settings or other code"))
        else:
            return content
        return None

    def _rotate(self, temporary: Path, path: Path) -> None:
        """Keep the newest file as the one before it, and put another in its place."""
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.before)
        os.replace(temporary, path)

    def _complain(self, what: str) -> None:
        """Warn, once until a state is saved again."""
        if not self._complained:
            print(f"warning: {what}", flush=True)
        self._complained = True

    def _tidy(self) -> None:
        """Remove what a process that was killed while saving has left, before it fills the disk."""
        for path in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _state(training: Training) -> dict[str, Any]:
    device = next(training.model.parameters()).device
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "average": training.average and training.average.module.state_dict(),
        "step": training.step,
        "seconds": training.seconds,
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "resumed": training.resumed,
        "waited": training.waited,
        "reached": training.reached,
        "looked": training.looked,
        "evaluations": [tuple(evaluation) for evaluation in training.evaluations],
        "best": training.best,
        "broken": training.broken,
        # the next step draws from its own seed; these are for a mechanism that draws in evaluation
        "generators": {kind: _generators(torch.device(kind)).get_rng_state() for kind in {"cpu", device.type}},
    }


def _check(state: dict[str, Any], model: nn.Module) -> None:
    """Refuse a state that no run between two steps can have.

    Raises:
        ValueError, TypeError, KeyError: its numbers do not fit together.
    """
    counts = state["step"], state["resumed"], len(state["losses"])
    if {*map(type, counts)} != {int} or counts[0] != counts[2] or min(counts) < 0:
        raise ValueError(f"step {state['step']!r} of a state after {counts[2]} steps")
    if not state["seconds"] >= 0:
        raise ValueError(f"{state['seconds']!r} seconds")
    looked = [Evaluation(*evaluation).step for evaluation in state["evaluations"]]
    if looked != sorted(set(looked)) or not all(0 < step <= state["looked"] <= state["step"] for step in looked):
        raise ValueError(f"evaluations after the steps {looked} of a state after {state['step']} steps")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    best = {name: tensor.shape for name, tensor in (state["best"] or {}).items()}
    if best != (shapes if looked else {}):
        raise ValueError("the best weights are of another model")
    if not all(isinstance(text, str) for pair in state["broken"].items() for text in pair):
        raise TypeError("images without a name")


def _apply(training: Training, state: dict[str, Any]) -> None:
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.scaler.is_enabled():
        training.scaler.load_state_dict(state["scaler"])
    if training.average is not None:
        training.average.module.load_state_dict(state["average"])
    training.step, training.seconds = state["step"], state["seconds"]
    training.losses, training.resumed = state["losses"].tolist(), state["resumed"]
    training.waited, training.reached = state["waited"], state["reached"]
    training.looked, training.best = state["looked"], state["best"]
    training.evaluations = [Evaluation(*evaluation) for evaluation in state["evaluations"]]
    broken = dict(state["broken"])
    training.broken.clear()  # in place: the data notes what it meets in the same dictionary
    training.broken.update(broken)
    for kind, generator in state["generators"].items():
        _generators(torch.device(kind)).set_rng_state(generator)


def _generators(device: torch.device) -> Any:
    """Module with `get_rng_state` and `set_rng_state` of the device at hand."""
    return torch if device.type == "cpu" else torch.get_device_module(device)
