"""What of a cell is still to be measured on a device."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from runners.measures import DONE, MEASURES, depends_on_device
from runners.store.record import Record
from runners.store.store import Store


@dataclass(frozen=True)
class Pending:
    """Measures to run, and the records that stand in the way of running others again."""

    run: tuple[str, ...]
    failed: tuple[Record, ...]


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
    code: str | None = None,
) -> Pending:
    """Split measures into those to run and those that failed; a damaged record counts as none.

    `code` is the hash of a mechanism that this process registered: a record of another one counts as none, too.
    """
    run, failed = [], []
    for measure in measures:
        record = latest(store, key, measure, device_id)
        is_stale = record is not None and code is not None and record.values.get("attention_hash") != code
        if force or record is None or is_stale or record.status == "lost" or record.status in retry:
            run.append(measure)
        elif record.status not in DONE:
            failed.append(record)
    return Pending(tuple(run), tuple(failed))
