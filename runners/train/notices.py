"""Signals with which schedulers announce a preemption or a time limit, held back until a training is saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NOTICES = (signal.SIGTERM, signal.SIGUSR2)


class Notices:
    """Context that holds these signals back; `deliver` lets them do what they did before."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}
        self._save: Callable[[], None] | None = None

    def __enter__(self) -> "Notices":
        """Begin to hold signals back, which only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            # a handler that was not set from Python could not be put back
            numbers = [number for number in NOTICES if signal.getsignal(number) is not None]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        """Let signals through again, first those that wait."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.deliver()

    @property
    def pending(self) -> bool:
        """Whether a signal has come that has not been delivered."""
        return bool(self._waiting)

    def deliver(self) -> None:
        """Let what came meanwhile act as it would have; a handler may return or end the process."""
        while self._waiting:
            number = self._waiting.pop(0)
            if number in self._before:
                signal.signal(number, self._before[number])
            signal.raise_signal(number)
            if number in self._before:
                signal.signal(number, self._note)

    @contextlib.contextmanager
    def at_once(self, save: Callable[[], None]) -> Iterator[None]:
        """Context in which a signal need not wait: `save` is called, then it acts."""
        self._save = save
        try:
            self._act()
            yield
        finally:
            self._save = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append(number)
        self._act()

    def _act(self) -> None:
        if self._waiting and self._save is not None:
            self._save()
            self.deliver()
