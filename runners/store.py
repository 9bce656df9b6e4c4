"""The results folder: cells, and one JSON file per (cell, measure, device, protocol, attempt).

    <out>/store.json                      {"schema": 1}
    <out>/cells/<cell_key>/cell.json      what differs from the defaults
                           studies/NAME   empty files: the studies that the cell belongs to
                           wanted/NAME    empty files: the measures that were asked for
                           records/<measure>.<device_id>.v<protocol>.a<attempt>.json
                           lease.json     who works on it now (runners/lease.py)
                           progress.json  how far that is
                           logs/

A record appears whole or not at all, is never edited, and is never overwritten: jobs share no file, and of two
writers of one attempt the second gets the next number.
"""

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.study import Cell, cell_key
from runners.lease import Held, holder
from runners.record import STATUSES, Record, RecordName, from_text, plain, to_text

SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


class StoreError(ValueError):
    """A results folder that cannot be used, with the path and the reason."""


@dataclass(frozen=True)
class Store:
    """A results folder that `open_store` has checked.

    What `load` calls for every cell builds its paths as text: pathlib would take longer than the disk.
    """

    out: Path

    def folder(self, key: str) -> Path:
        """Folder of a cell."""
        return self.out / "cells" / key

    def holder(self, key: str) -> Held | None:
        """Who works on a cell, None if nobody does."""
        return holder(self.lease_path(key)) if os.path.exists(f"{self.out}/cells/{key}/lease.json") else None

    def lease_path(self, key: str) -> Path:
        """Where the lease of a cell lies while somebody works on it."""
        return self.folder(key) / "lease.json"

    def log_folder(self, key: str) -> Path:
        """Where the jobs of a cell write their logs; the writer creates it."""
        return self.folder(key) / "logs"

    def add_cell(self, cell: Cell, study: str | None = None, measures: Iterable[str] = ()) -> str:
        """Enter a cell, its study and the measures wanted of it, and return its key; again changes nothing.

        Raises:
            StoreError: the folder cannot be written, or a study or measure cannot name a file.
        """
        key = cell_key(cell)
        for kind, names in (("studies", [study] if study else []), ("wanted", list(measures))):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise StoreError(f"{name!r} cannot name a file in {kind}/; use letters, digits and _ . + -")
                _create(self.folder(key) / kind / name)
        if self.read_cell(key) is None:
            text = json.dumps({"schema": SCHEMA, "label": _label(cell), "cell": cell.to_dict()}, indent=2)
            _write_whole(self.folder(key) / "cell.json", text + "\n", os.replace)
        return key

    def cell_keys(self) -> list[str]:
        """Keys of all cells, sorted."""
        return sorted(_list(f"{self.out}/cells"))

    def cells(self) -> dict[str, Cell]:
        """All cells by key; one whose `cell.json` this version cannot read is left to `load`, as a lost row."""
        found = {}
        for key in self.cell_keys():
            content = self.read_cell(key)
            if content is None:
                continue
            with contextlib.suppress(ValueError):
                found[key] = Cell.from_dict(content)
        return found

    def read_cell(self, key: str) -> dict[str, Any] | None:
        """Fields of a cell that differ from their defaults, None if its file is missing or damaged."""
        content = _read_json(f"{self.out}/cells/{key}/cell.json")
        cell = content.get("cell") if isinstance(content, dict) else None
        return cell if isinstance(cell, dict) and isinstance(cell.get("settings", {}), dict) else None

    def studies(self, key: str) -> list[str]:
        """Studies that a cell belongs to, sorted."""
        return sorted(_list(f"{self.out}/cells/{key}/studies"))

    def wanted(self, key: str) -> list[str]:
        """Measures that were asked of a cell, sorted."""
        return sorted(_list(f"{self.out}/cells/{key}/wanted"))

    def write_record(self, key: str, record: Record) -> Path:
        """Write a record durably and return its path; an attempt that exists is kept and the next number taken.

        Raises:
            StoreError: the file cannot be written, nothing is left of it; or a status or name is not allowed.
        """
        if record.status not in STATUSES:
            raise StoreError(f"a record's status is one of {', '.join(STATUSES)}; got {record.status!r}")
        if RecordName.parse(record.name.file) != record.name:
            raise StoreError(
                f"measure {record.measure!r} on device {record.device_id!r} cannot name a file; a measure takes "
                "letters, digits and _, a device also . + -"
            )
        while True:
            path = self.folder(key) / "records" / record.name.file
            try:
                _write_whole(path, to_text(record), _publish)
                return path
            except FileExistsError:
                record = replace(record, attempt=self.next_attempt(key, *record.name[:3]))

    def record_names(self, key: str) -> list[RecordName]:
        """Names of all records of a cell, sorted; reads no file."""
        names = [RecordName.parse(file) for file in _list(f"{self.out}/cells/{key}/records")]
        return sorted(name for name in names if name)

    def read_record(self, key: str, name: RecordName, *, samples: bool = True) -> Record:
        """Read a record, without its raw samples where they are not needed; a damaged one has status `lost`."""
        path = f"{self.out}/cells/{key}/records/{name.file}"
        try:
            return from_text(_read(path), name, samples=samples)
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"{path} cannot be read ({error}); the next attempt supersedes it"
            return Record(**name._asdict(), status="lost", error_type="DamagedRecord", error_message=reason)

    def records(self, key: str) -> list[Record]:
        """All records of a cell with their samples, sorted by measure, device, protocol and attempt."""
        return [self.read_record(key, name) for name in self.record_names(key)]

    def next_attempt(self, key: str, measure: str, device_id: str, protocol: int) -> int:
        """Number of the attempt that comes next, 1 for the first; damaged records count."""
        same = [name for name in self.record_names(key) if name[:3] == (measure, device_id, protocol)]
        return 1 + max((name.attempt for name in same), default=0)

    def write_progress(self, key: str, progress: Mapping[str, Any]) -> None:
        """Say how far the running job is; a full disk loses the message and not the job."""
        try:
            text = json.dumps(plain(progress), allow_nan=False) + "\n"
            _write_whole(self.folder(key) / "progress.json", text, os.replace, durable=False)
        except StoreError:
            return

    def read_progress(self, key: str) -> dict[str, Any]:
        """Return what `write_progress` said last, empty if nothing."""
        content = _read_json(f"{self.out}/cells/{key}/progress.json")
        return content if isinstance(content, dict) else {}


def open_store(out: Path, *, create: bool) -> Store:
    """Open a results folder; with `create` make it where it is missing and make sure that it can be written.

    Raises:
        StoreError: a file, not writable, without results (only if not `create`), or of another schema version.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise StoreError(f"results folder {out} is not a folder; name another one")
    path = out / "store.json"
    exists = os.path.exists(path)
    if exists:
        content = _read_json(str(path))
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema is None:
            raise StoreError(f'{path} cannot be read; it should say {{"schema": {SCHEMA}}}')
        if schema != SCHEMA:
            raise StoreError(
                f"results in {out} have schema version {schema}, this program reads and writes {SCHEMA}; "
                "name another folder"
            )
    elif not create:
        raise StoreError(f"no results in {out}: it has no store.json; run the sweep first or name another folder")
    if create:
        try:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            raise StoreError(f"results folder {out} cannot be written: {error.strerror or error}") from error
        if not exists:
            _write_whole(path, json.dumps({"schema": SCHEMA}) + "\n", os.replace)
    return Store(out)


def _label(cell: Cell) -> str:
    settings = "".join(f" {name}={value}" for name, value in cell.settings)
    return f"{cell.attn}{settings} {cell.layout} {cell.height_px}x{cell.width_px} {cell.data} seed {cell.seed}"


def _list(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: str) -> str:
    """Content of a file, by system calls: a file object takes twice as long for one small record."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def _read_json(path: str) -> Any:
    """Content of a JSON file, None if it is missing or damaged."""
    try:
        return json.loads(_read(path))
    except (OSError, ValueError):
        return None


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _write_whole(path: Path, text: str, publish: Callable[[Path, Path], None], *, durable: bool = True) -> None:
    """Write a file beside its place, then `publish` it there: a reader never sees half of it.

    Raises:
        FileExistsError: from `publish`.
        StoreError: anything else that went wrong; neither the file nor its temporary remains.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            _sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name unless that is taken, which raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # no hard links here (exFAT, mounted cloud drives): reserve the name, then fill it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
