"""What happens to one cell of a local sweep, whoever works on it: its progress and the records that appear."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ablations.study import Cell
from runners.jobs.progress import Display
from runners.measures import MEASURES, depends_on_device
from runners.store.lease import GRACE_S, holder
from runners.store.record import RecordName, attempts_of
from runners.store.store import Store

POLL_S = 0.2


@dataclass(frozen=True)
class Todo:
    """A cell with what is to be measured of it, and the records that it had when that was decided."""

    cell: Cell
    key: str
    measures: tuple[str, ...]
    names: frozenset[RecordName]


class Follower:
    """Shows what happens to one cell: its progress, and the records that appear, whoever writes them."""

    def __init__(self, store: Store, item: Todo, device_id: str, display: Display) -> None:
        self.store, self.key, self.device_id, self.display = store, item.key, device_id, display
        self.recorded: set[str] = set()
        self._seen = set(item.names)

    def next_attempt(self, measure: str) -> int:
        """Number of the attempt after those that were shown."""
        return 1 + attempts_of(self._seen, measure, self.device_id, MEASURES[measure].protocol)

    def show_new(self) -> None:
        """Show records that appeared, and note which measures they make unnecessary here."""
        new = set(self.store.record_names(self.key)) - self._seen
        known = [name for name in new if name.measure in MEASURES]
        for name in sorted(known, key=lambda name: (list(MEASURES).index(name.measure), name)):
            record = self.store.read_record(self.key, name, samples=False)
            is_today = name.protocol == MEASURES[name.measure].protocol
            is_here = not depends_on_device(name.measure) or name.device_id == self.device_id
            if is_today and is_here and record.status != "lost":
                self.display.found(record)
                self.recorded.add(name.measure)
        self._seen |= new

    @contextlib.contextmanager
    def in_background(self) -> Iterator[None]:
        """Show what happens while this process measures itself."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(POLL_S):
                self.display.step(self.store.read_progress(self.key))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def poll(self) -> None:
        """Show what is new."""
        self.display.step(self.store.read_progress(self.key))
        self.show_new()

    def wait_for_others(self) -> None:
        """Wait while another live process works on the cell; what it records counts as done here."""
        said = False
        while (lease := holder(self.store.lease_path(self.key))) and lease.state != "dead":
            if not said and (lease.state == "live" or lease.heartbeat_age_s > GRACE_S):
                who = f"pid {lease.pid} on {lease.host}" if lease.state == "live" else "a process of another user"
                self.display.say(f"      {who} works on this cell; waiting for it")
                said = True
            self.poll()
            time.sleep(POLL_S)
        self.show_new()
