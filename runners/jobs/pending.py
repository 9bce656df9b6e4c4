"""What of a cell is still to be measured on a device."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from runners.cells.source import Code
from runners.measures import DONE, MEASURES, depends_on_device
from runners.store.record import Record
from runners.store.store import Store


@dataclass(frozen=True)
class Pending:
    """Measures to run, those of them that were measured with other code, and records that failed and stay."""

    run: tuple[str, ...]
    failed: tuple[Record, ...]
    changed: tuple[str, ...] = ()


def latest(store: Store, key: str, measure: str, device_id: str) -> Record | None:
    """Return the last attempt of a measure under today's protocol, on this device where that matters."""
    names = [
        name
        for name in store.record_names(key)
        if (name.measure, name.protocol) == (measure, MEASURES[measure].protocol)
        and (not depends_on_device(measure) or name.device_id == device_id)
    ]
    if not names:
        return None
    return store.read_record(key, max(names, key=lambda name: name.attempt), samples=False)


def pending(
    store: Store,
    key: str,
    measures: Iterable[str],
    device_id: str,
    *,
    retry: Collection[str] = (),
    force: bool = False,
    code: Code | None = None,
) -> Pending:
    """Split measures into those to run and those that failed; a record that is damaged or of other code counts as none.

    `code` is that of the mechanism today, None if nobody can tell.
    """
    run, failed, changed = [], [], []
    for measure in measures:
        record = latest(store, key, measure, device_id)
        if record is not None and record.status != "lost" and code and code.differs(record):
            changed.append(measure)
            run.append(measure)
        elif force or record is None or record.status == "lost" or record.status in retry:
            run.append(measure)
        elif record.status not in DONE:
            failed.append(record)
    return Pending(tuple(run), tuple(failed), tuple(changed))
