"""A record: what one measure of one cell found on one device, and how it is written as strict JSON.

The file is one JSON object on three lines: what was found, the environment, the raw samples. So a table of
thousands of rows is read without parsing samples or the same environment again and again, and a file that was
cut off anywhere is noticed by its end. It begins with a SHA-256 of the rest, and says whose cell it is; records of
earlier versions do neither.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple

from runners.measures import depends_on_device
from runners.store.strict_json import parse, plain

_NUMBER = "(0|[1-9][0-9]{0,8})"
_FILE = re.compile(rf"([A-Za-z0-9_]+)\.([A-Za-z0-9_+-][A-Za-z0-9_.+-]*)\.v{_NUMBER}\.a{_NUMBER}\.json")


class RecordName(NamedTuple):
    """What a record's file name says, known even when the content is lost."""

    measure: str
    device_id: str
    protocol: int
    attempt: int

    @property
    def file(self) -> str:
        """The file name."""
        return f"{self.measure}.{self.device_id}.v{self.protocol}.a{self.attempt}.json"

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def parse(file: str) -> "RecordName | None":
        """Read a file name, None for one that no record can have; the same few names recur in every cell."""
        match = _FILE.fullmatch(file)
        return RecordName(match[1], match[2], int(match[3]), int(match[4])) if match else None


@dataclass(kw_only=True, slots=True)
class Record:
    """What one measure of one cell found on one device; times are ISO 8601 in UTC.

    `values` become columns of the table, `samples` are the raw data behind them and stay on disk. `command` is
    the exact command that measures this again. A record that cannot be read has the status `lost`.
    """

    measure: str
    device_id: str
    protocol: int
    status: str
    attempt: int = 1
    values: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    started_at: str = ""
    ended_at: str = ""
    command: str = ""
    error_type: str | None = None
    error_message: str | None = None
    log_path: str | None = None

    @property
    def name(self) -> RecordName:
        """What its file is called after."""
        return RecordName(self.measure, self.device_id, self.protocol, self.attempt)


_HEAD = tuple(f.name for f in fields(Record) if f.name not in ("environment", "samples"))
_OPEN = '{"record": {'
_SEALED = f'{_OPEN}"sha256": "'

MAX_VALUES = 1000
"""Columns that one measure may bring."""


def to_text(record: Record, key: str) -> str:
    """Write a record of the cell `key` as JSON."""
    parts = {
        "record": {"cell_key": key, **{name: getattr(record, name) for name in _HEAD}},
        "environment": record.environment,
        "samples": record.samples,
    }
    lines = (f'"{name}": {json.dumps(plain(part), allow_nan=False)}' for name, part in parts.items())
    return seal("{" + ",\n".join(lines) + "}\n")


def seal(text: str) -> str:
    """Put the checksum before what it is of."""
    content = text.removeprefix(_OPEN)
    return f'{_SEALED}{hashlib.sha256(content.encode()).hexdigest()}", {content}'


def _unseal(text: str) -> tuple[str, bool]:
    """Return a record without its checksum, and whether it had one.

    Raises:
        ValueError: the checksum is not that of the rest.
    """
    if not text.startswith(_SEALED):
        return text, False
    digest, end, content = text[len(_SEALED) :].partition('", ')
    if not end or hashlib.sha256(content.encode()).hexdigest() != digest:
        raise ValueError("its checksum is not that of its content")
    return _OPEN + content, True


def from_text(text: str, name: RecordName, key: str, *, samples: bool) -> Record:
    """Read a record of the cell `key`, without its raw samples where they are not needed.

    Fields of newer versions are ignored.

    Raises:
        ValueError, TypeError, KeyError: the file is damaged, or of another cell, measure or device.
    """
    if not text.endswith("}}\n"):
        raise ValueError("it is cut off")
    text, is_sealed = _unseal(text)
    head, environment, raw = text[:-2].split("\n")
    content = parse(head.removeprefix('{"record": ').removesuffix(","))
    if not isinstance(content, dict):
        raise TypeError("it is no object")
    if ("cell_key" in content) != is_sealed:
        raise ValueError("it has no checksum")
    if content.get("cell_key", key) != key:
        raise ValueError(f"it is of the cell {content['cell_key']}")
    if tuple(content[field] for field in RecordName._fields) != name:
        raise ValueError("it is of another measure, device, protocol or attempt")
    content = {field: content[field] for field in _HEAD if field in content}
    record = Record(**content, environment=_parse_environment(environment))
    _check_types(record)
    if samples:
        record.samples = parse(raw.removeprefix('"samples": '))
    return record


def _check_types(record: Record) -> None:
    texts = (record.status, record.started_at, record.ended_at, record.command)
    optional = (record.error_type, record.error_message, record.log_path)
    is_text = {*map(type, texts)} == {str} and {*map(type, optional)} <= {str, type(None)}
    if not is_text or not isinstance(record.values, dict) or len(record.values) > MAX_VALUES:
        raise TypeError("its fields have other types")
    for time in (record.started_at, record.ended_at):
        if time and datetime.fromisoformat(time).tzinfo is None:
            raise ValueError(f"{time!r} has no time zone")


@functools.lru_cache(maxsize=256)
def _parse_environment(line: str) -> Mapping[str, Any]:
    environment = parse(line.removeprefix('"environment": ').removesuffix(","))
    if not isinstance(environment, dict):
        raise TypeError("its environment is no object")
    return environment


def attempts_of(names: Iterable[RecordName], measure: str, device_id: str, protocol: int) -> int:
    """Number of the last attempt at a measure among the records of a cell, 0 if there is none."""
    same = [name for name in names if (name.measure, name.protocol) == (measure, protocol)]
    if depends_on_device(measure):
        same = [name for name in same if name.device_id == device_id]
    return max((name.attempt for name in same), default=0)
