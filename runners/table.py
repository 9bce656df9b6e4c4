"""The table: `load(folder)` joins the records of a results folder into one row per cell and device.

A row takes the latest attempt of the highest protocol of each measure on its device; `flops` does not depend on
the device and joins every row of its cell. A cell without records is a row too. Measured values that `COLUMNS`
does not know, from a newer version or from a user's measure, become further columns.
"""

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd

from ablations.study import Cell, Scalar
from ablations.values import precision_today
from runners.measures import depends_on_device, severity
from runners.store.columns import COLUMNS, RETIRED, impl_today
from runners.store.csv import to_csv
from runners.store.files import write_whole
from runners.store.names import as_text, visible
from runners.store.record import Record, RecordName
from runners.store.store import Store, open_store

_CELL_LOST = {"status": "lost", "error_message": "cell.json cannot be read; the sweep's command writes it again"}

_DEFAULTS = {f.name: f.default for f in fields(Cell)}
_PLAIN: dict[str, set[type]] = {
    "string": {str, NoneType},
    "boolean": {bool, NoneType},
    "Int64": {int, NoneType},
    "Float64": {float, int, NoneType},
}
_SETTINGS = ("impl", "regions", "region_size", "window")
_OPEN = (*_SETTINGS, "topk", "topk_schedule", "threads")
"""What a cell may leave open, and its records then tell."""
_IDENTITY = {*_DEFAULTS, "attention", "resolution"} - {"attn", "defaults", *_OPEN}
"""What a cell alone says, whatever its records say."""


def load(folder: str | Path) -> pd.DataFrame:
    """Read the table of a results folder, ordered by cell_key and device_id; also while jobs write to it.

    Raises:
        StoreError: no results there, or those of another schema version.
    """
    store = open_store(Path(folder), create=False)
    known: list[tuple[Any, ...]] = []
    others: list[dict[str, Any]] = []
    with _without_collector():
        for key in store.cell_keys():
            for row in _rows(store, key):
                known.append(tuple(map(row.get, COLUMNS)))
                others.append({name: row[name] for name in row.keys() - COLUMNS.keys()})
    columns = zip(*known, strict=True) if known else [()] * len(COLUMNS)
    data = {name: _array(values, COLUMNS[name].dtype) for name, values in zip(COLUMNS, columns, strict=True)}
    for name in sorted(set().union(*others)):
        values = [row.get(name) for row in others]
        data[name] = _array(values, _dtype(values))
    return pd.DataFrame(data)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a table as .csv or .parquet, whole or not at all.

    Raises:
        StoreError: the file cannot be written; one that was there before stays.
        ImportError: parquet without pyarrow.
    """
    if path.suffix == ".csv":
        write_whole(path, to_csv(table))
    else:
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        write_whole(path, content.getvalue())


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Spare the garbage collector hundreds of thousands of small objects, none of which is in a cycle."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _rows(store: Store, key: str) -> list[dict[str, Any]]:
    """All rows of a cell; none for a folder that is just being made."""
    cell = store.read_cell(key)
    names = store.record_names(key)
    if not names and (problem := store.problem(key)):
        return [{"cell_key": key, "status": "lost", "error_type": "UnreadableCell", "error_message": problem}]
    if cell is None and not names:
        return []
    lease = store.holder(key)
    unmeasured = "pending" if lease is None else "lost" if lease.state == "dead" else "running"
    lost = store.read_lost(key) if unmeasured == "pending" else None
    if lost:
        unmeasured = "lost"
    identity = {"cell_key": key, "study": ";".join(store.studies(key)), **_describe(cell)}
    fixed = dict.fromkeys(_IDENTITY) | {name: value for name, value in identity.items() if name not in _OPEN}
    shared = _latest_shared(store, key, names)
    devices: dict[str | None, dict[str, RecordName]] = {}
    for name in names:  # sorted: the last attempt of the highest protocol comes last and stays
        if depends_on_device(name.measure):
            devices.setdefault(name.device_id, {})[name.measure] = name
    wanted = store.wanted(key)
    for device_id in wanted:
        if device_id and any(map(depends_on_device, wanted[device_id])):
            devices.setdefault(device_id, {})
    if not devices:
        devices[shared[0].device_id if shared else next(filter(None, wanted), None)] = {}
    rows = []
    for device_id, measured in devices.items():
        records = shared + [store.read_record(key, name, samples=False) for name in measured.values()]
        judged = _judge(_asked(wanted, device_id), unmeasured, records)
        row = identity | _join(device_id, records) | fixed | judged
        if isinstance(row.get("impl"), str):
            row["impl"] = impl_today(row.get("attention"), row["impl"])
        if lost and row["status"] == "lost":
            row |= lost
        rows.append(row if cell is not None else row | _CELL_LOST)
    return rows


def _asked(wanted: Mapping[str | None, list[str]], device_id: str | None) -> list[str]:
    """Measures asked for on a device; those asked for on any, if nobody has said on which."""
    if device_id in wanted:
        return wanted[device_id]
    return wanted.get(None, []) if set(wanted) <= {None} else []


def _latest_shared(store: Store, key: str, names: Sequence[RecordName]) -> list[Record]:
    """The latest device-independent record, wherever it was made; a damaged one only if there is no other."""
    latest = {name.device_id: name for name in names if not depends_on_device(name.measure)}
    protocol = max((name.protocol for name in latest.values()), default=0)
    records = [store.read_record(key, n, samples=False) for n in latest.values() if n.protocol == protocol]
    return sorted(records, key=lambda record: record.ended_at)[-1:]


def _describe(cell: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the configuration alone says; a damaged one says nothing."""
    if cell is None:
        return {}
    row = {**_DEFAULTS, **cell}
    attention, settings, defaults = row.pop("attn"), dict(row.pop("settings")), dict(row.pop("defaults"))
    training, head = dict(row.pop("training")), dict(row.pop("head_settings"))
    topk = {**defaults, **settings}.get("topk")
    for name in ("model", "baseline", "layout", "head", "init_from", "tune_lr"):
        row[name] = row[name] or None
    return {
        **row,
        **{name: settings[name] for name in _SETTINGS if name in settings},
        "attention": attention or None,
        "precision": precision_today(row["precision"]),
        "settings": as_text(settings),
        "training": as_text(training) or None,
        "head_settings": as_text(head) or None,
        "topk" if isinstance(topk, int) else "topk_schedule": topk,
        "resolution": f"{row['height_px']}x{row['width_px']}",
    }


def _join(device_id: str | None, records: Sequence[Record]) -> dict[str, Any]:
    """Measured values, and where and how they were measured; of two measures the later one is believed."""
    ordered = sorted(records, key=lambda record: (record.device_id == device_id, record.started_at))
    local = [record for record in ordered if record.device_id == device_id and record.status != "lost"]
    row: dict[str, Any] = {}
    for record in ordered:
        row |= record.values
    codes = dict.fromkeys(str(code) for record in ordered if (code := record.values.get("attention_hash")))
    if codes:
        row["attention_hash"] = ";".join(codes)
    row |= _environment([record.environment for record in local])
    for name in RETIRED:
        row.pop(name, None)
    for record in records:
        row[f"{record.measure}_protocol"] = record.protocol
    return row | {
        "device_id": device_id,
        "attempts": max((record.attempt for record in records), default=0),
        "started_at": local[-1].started_at if local else None,
        "command": _command(local[-1].command, records) if local else None,
        "log_path": local[-1].log_path if local else None,
    }


def _command(latest: str, records: Sequence[Record]) -> str:
    """The command that measures the whole row: that of its latest record, for the measures of all."""
    head, flag, _ = latest.rpartition(" --measure ")
    measures = sorted(record.measure for record in records if record.command.startswith(head))
    return f"{head}{flag}{','.join(measures)}" if head else latest


def _environment(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment for a row: names that differ between measures are all shown, a flag is up if any is."""
    if all(environment == environments[0] for environment in environments):
        return dict(environments[0]) if environments else {}
    merged: dict[str, Any] = {}
    for environment in environments:
        for name, item in environment.items():
            before, value = merged.get(name), as_text(item) if isinstance(item, Mapping) else item
            if isinstance(value, bool):
                merged[name] = value or bool(before)
            elif before is None or not isinstance(value, str | None):
                merged[name] = value
            elif value and before != value and value not in str(before).split(";"):
                merged[name] = f"{before};{value}"
    return merged


def _judge(wanted: Sequence[str], unmeasured: str, records: Sequence[Record]) -> dict[str, Any]:
    """Status of the row and of each measure, and what went wrong."""
    statuses = dict.fromkeys(wanted, unmeasured) | {record.measure: record.status for record in records}
    candidates = set(statuses.values()) or {unmeasured}
    if unmeasured == "running" and candidates != {"ok"}:
        candidates.add("running")
    status = min(candidates, key=severity)
    row: dict[str, Any] = {f"{measure}_status": value for measure, value in statuses.items()}
    row["status"] = status
    failed = [record for record in records if record.status != "ok"]
    messages = [f"{record.measure}: {record.error_message or record.status}" for record in failed]
    row["error_message"] = "; ".join(messages) or None
    for record in failed:
        if record.status == status:
            row["error_type"] = record.error_type
            row |= {"log_path": record.log_path} if record.log_path else {}
            break
    return row


def _array(values: Sequence[Any], dtype: Any) -> Any:
    """A nullable column; a value of another type is missing, so that one odd record costs one field only."""
    if dtype == "string":
        values = [visible(value) if type(value) is str else value for value in values]
    if set(map(type, values)) <= _PLAIN[dtype]:
        with contextlib.suppress(OverflowError):
            return pd.array(values, dtype=dtype)
    return pd.array([_fit(value, dtype) for value in values], dtype=dtype)


def _fit(value: Any, dtype: str) -> Scalar | None:
    if dtype == "string":
        return None if value is None else visible(as_text(value))
    if dtype == "boolean":
        return value if isinstance(value, bool) else None
    try:
        number = float(value)  # "inf" too, which strict JSON knows only as a string
    except (TypeError, ValueError, OverflowError):
        return None
    if dtype == "Float64":
        return number
    return int(number) if number.is_integer() and abs(number) < 2**63 else None


def _dtype(values: Sequence[Any]) -> str:
    """Type of a column that `COLUMNS` does not know."""
    kinds = {float if value in ("inf", "-inf") else type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return "Int64" if kinds == {int} else "Float64"
    return "boolean" if kinds == {bool} else "string"
