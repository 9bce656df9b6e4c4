"""A record: what one measure of one cell found on one device, and how it is written as strict JSON.

The file is one JSON object on three lines: what was found, the environment, the raw samples. So a table of
thousands of rows is read without parsing samples or the same environment again and again, and a file that was
cut off anywhere is noticed by its end.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# decoding starts behind these, where each of the three lines has its object
_START, _ENVIRONMENT, _SAMPLES = '{"record": ', ',\n"environment": ', ',\n"samples": '
_decode = json.JSONDecoder().raw_decode

_FILE = re.compile(r"([A-Za-z0-9_]+)\.([A-Za-z0-9_+-][A-Za-z0-9_.+-]*)\.v([0-9]+)\.a([0-9]+)\.json")


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
_KNOWN = frozenset(_HEAD)


def plain(value: Any) -> Any:
    """Reduce a value to strict JSON: NaN is null, infinities are strings, arrays and tensors are lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def to_text(record: Record) -> str:
    """Write a record as JSON."""
    parts = {name: getattr(record, name) for name in _HEAD}, record.environment, record.samples
    head, environment, samples = (json.dumps(plain(part), allow_nan=False) for part in parts)
    return f"{_START}{head}{_ENVIRONMENT}{environment}{_SAMPLES}{samples}}}\n"


def from_text(text: str, name: RecordName, *, samples: bool) -> Record:
    """Read a record, without its raw samples where they are not needed; fields of newer versions are ignored.

    Raises:
        ValueError, TypeError, KeyError: the file is damaged.
    """
    if not text.endswith("}}\n"):
        raise ValueError("it is cut off")
    content, end = _decode(text, len(_START))
    last = text.index(_SAMPLES, end)
    if not _KNOWN.issuperset(content):
        content = {field: content[field] for field in _HEAD if field in content}
    content["measure"], content["device_id"], content["protocol"], content["attempt"] = name
    record = Record(**content, environment=_parse_environment(text[end:last]))
    types = type(content["values"]), type(record.status), type(record.started_at), type(record.ended_at)
    if types != (dict, str, str, str):
        raise TypeError("its fields have other types")
    if samples:
        record.samples = _decode(text, last + len(_SAMPLES))[0]
    return record


@functools.lru_cache(maxsize=256)
def _parse_environment(line: str) -> Mapping[str, Any]:
    environment, _ = _decode(line, len(_ENVIRONMENT))
    if not isinstance(environment, dict):
        raise TypeError("its environment is no object")
    return environment
