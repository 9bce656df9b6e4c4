"""The saved state of a training run, from which it goes on bit for bit.

One file: a line of JSON (the run, the step, SHA-256 of the rest), then what torch.save writes, read with weights_only.
The checksum is our own, for torch loads flipped bits without a word. A file appears whole or not at all. One that is
damaged, of another run or of other code is a warning and a start from step 0: that gives the same result, only later,
and no row is half of one code and half of another. So is a state that cannot be written a warning.

While a `Checkpoint` is open, SIGTERM and SIGUSR2, with which schedulers announce a preemption or a time limit, wait for
the end of the step: its state is saved first, then they do what they did before.
"""

import contextlib
import copy
import hashlib
import io
import json
import signal
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from runners.machine import environment
from runners.store.files import StoreError, opened, write_whole
from runners.train.distributed import ALONE, Group

HEADER_BYTES = 1 << 12
NOTICES = (signal.SIGTERM, signal.SIGUSR2)


@dataclass
class Training:
    """A training run between two steps: all of its state, for the learning rate and the data follow from `step`.

    `resumed` counts how often it went on from a saved state, `seconds` leave out what was lost with the rest; `waited`
    of them were spent waiting for images. `average` follows the weights, where there is one. `reached` is the step, and
    the seconds, at which a stated accuracy was there.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=partial(torch.amp.GradScaler, "cpu", enabled=False))
    average: ModelEmaV3 | None = None
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    resumed: int = 0
    waited: float = 0.0
    reached: tuple[int, float] | None = None


def identify(model: nn.Module, **settings: Any) -> str:
    """Name a run: hash of its settings, of the shapes of its model, of torch's version and of this program's source."""
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    source = environment.code()["source_sha256"]
    text = json.dumps({**settings, "torch": str(torch.__version__), "source": source, "model": shapes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint:
    """The file of one run, a context manager around its training; of several processes the first alone writes it."""

    def __init__(self, path: Path, run: str, *, every_s: float, group: Group = ALONE) -> None:
        """Name the file and the run that it must be of; saving once in `every_s` seconds, 0 is after every step."""
        self.path, self.run, self.every_s, self.group = path, run, every_s, group
        self._saved_at = time.monotonic()
        self._complained = False
        self._asked: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Checkpoint":
        """Begin to hold signals back; only a main thread can, and only the process that writes has to."""
        if self.group.rank == 0 and threading.current_thread() is threading.main_thread():
            # a handler that was not set from Python could not be put back
            numbers = [number for number in NOTICES if signal.getsignal(number) is not None]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        """Let signals through again, first those that came since the last step."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._deliver()

    def after_step(self, training: Training) -> None:
        """Save if it is time, or if a signal asks for it, which is then let through."""
        if self._asked or time.monotonic() - self._saved_at >= self.every_s:
            self.save(training)
        self._deliver()

    def save(self, training: Training) -> None:
        """Write the state of a run between two steps durably."""
        if self.group.rank:
            return
        buffer = io.BytesIO()
        torch.save(_state(training), buffer)
        content = buffer.getvalue()
        header = {"run": self.run, "step": training.step, "sha256": hashlib.sha256(content).hexdigest()}
        try:
            write_whole(self.path, f"{json.dumps(header)}\n".encode() + content)
            self._complained = False
        except StoreError as error:
            if not self._complained:
                print(f"warning: {error}; if killed, training repeats its steps", flush=True)
            self._complained = True
        self._saved_at = time.monotonic()

    def restore(self, training: Training) -> None:
        """Bring a run, in place, to the saved state, if there is one of this run; every process must call it."""
        content = self.group.broadcast(None if self.group.rank else self._read())
        if content is None:
            return
        fresh = copy.deepcopy(_state(training))
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            _check(state)
            _apply(training, state)
            training.resumed += 1
        except Exception as error:  # whatever torch makes of the wrong tensors
            _apply(training, fresh)
            self._say(f"is no state of this model ({type(error).__name__}): training starts anew")

    def remove(self) -> None:
        """Delete the file, and what a process that was killed while saving has left of one."""
        if self.group.rank == 0:
            for path in (self.path, *self.path.parent.glob(f".{self.path.name}.*.tmp")):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _read(self) -> bytes | None:
        """What torch.save wrote, None if there is nothing that this run can go on from."""
        try:
            with opened(str(self.path)) as descriptor, open(descriptor, "rb", closefd=False) as file:
                first, content = file.readline(HEADER_BYTES), file.read()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._say(f"cannot be read ({getattr(error, 'strerror', None) or error}): training starts anew")
            return None
        try:
            header = json.loads(first)
            run, sha256 = header["run"], header["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):
            run = sha256 = None
        if sha256 != hashlib.sha256(content).hexdigest():
            self._say("is damaged: training starts anew")
        elif run != self.run:
            self._say("is of a run with other settings or other code: training starts anew")
        else:
            return content
        return None

    def _say(self, what: str) -> None:
        print(f"warning: the saved state {self.path} {what}", flush=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)

    def _deliver(self) -> None:
        """Let what came meanwhile act as it would have; a handler may return or end the process."""
        while self._asked:
            number = self._asked.pop(0)
            if number in self._before:
                signal.signal(number, self._before[number])
            signal.raise_signal(number)
            if number in self._before:
                signal.signal(number, self._note)


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
        # the next step draws from its own seed; these are for a mechanism that draws in evaluation
        "generators": {kind: _generators(torch.device(kind)).get_rng_state() for kind in {"cpu", device.type}},
    }


def _check(state: dict[str, Any]) -> None:
    """Refuse a state that no run between two steps can have.

    Raises:
        ValueError, TypeError, KeyError: its numbers do not fit together.
    """
    counts = state["step"], state["resumed"], len(state["losses"])
    if {*map(type, counts)} != {int} or counts[0] != counts[2] or min(counts) < 0:
        raise ValueError(f"step {state['step']!r} of a state after {counts[2]} steps")
    if not state["seconds"] >= 0:
        raise ValueError(f"{state['seconds']!r} seconds")


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
    for kind, generator in state["generators"].items():
        _generators(torch.device(kind)).set_rng_state(generator)


def _generators(device: torch.device) -> Any:
    """Module with `get_rng_state` and `set_rng_state` of the device at hand."""
    return torch if device.type == "cpu" else torch.get_device_module(device)
