"""The results folder: cells, and one JSON file per (cell, measure, device, protocol, attempt).

    <out>/store.json                      {"schema": 1}
    <out>/cells/<cell_key>/cell.json      its name, what differs from the defaults, and the mechanism's defaults
                           studies/NAME   empty files: the studies that the cell belongs to
                           wanted/MEASURE[.DEVICE_ID]    empty files: the measures that were asked for, on a device
                           records/<measure>.<device_id>.v<protocol>.a<attempt>.json
                           lease.json     who works on it now (runners/store/lease.py)
                           progress.json  how far that is
                           lost.json      why the job that was to measure it recorded nothing
                           training.*     saved states of runs to go on from
                           logs/
    <out>/jobs/NAME/                      submissions to SLURM (runners/jobs/submissions.py)

A record appears whole or not at all, is never edited, and is never overwritten: jobs share no file, and of two
writers of one attempt the second gets the next number.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.study import Cell, cell_key
from runners.measures import RECORDED
from runners.store.files import StoreError as StoreError
from runners.store.files import list_names, parse_json, publish, read_json, read_text, touch, write_json, write_whole
from runners.store.lease import Held, holder
from runners.store.names import cell_name
from runners.store.record import Record, RecordName, from_text, to_text

SCHEMA = 1

PARTS = ("", "timing")
"""Parts of a cell that two jobs can measure side by side, each under a lease of its own."""

LOST = ("error_type", "error_message", "log_path")

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


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
        """Who works on a cell, or died at it, None if nobody."""
        dead = None
        for part in PARTS:
            if os.path.exists(f"{self.out}/cells/{key}/{_part('lease', part)}"):
                held = holder(self.lease_path(key, part))
                if held and held.state != "dead":
                    return held
                dead = held or dead
        return dead

    def lease_path(self, key: str, part: str = "") -> Path:
        """Where the lease of a cell lies while somebody works on it, or on that part of it."""
        return self.folder(key) / _part("lease", part)

    def state_path(self, key: str, device_id: str) -> Path:
        """Where a cell's training keeps the state from which it can go on; on another device it starts anew."""
        return self.folder(key) / f"training.{device_id}"

    def weights_path(self, key: str, device_id: str) -> Path:
        """Where a cell's trained weights are, if they were asked for."""
        return self.folder(key) / f"weights.{device_id}.pth"

    def forget_states(self, key: str) -> None:
        """Remove saved states, so that the next training of a cell starts anew."""
        for path in self.folder(key).glob("training.*"):
            path.unlink(missing_ok=True)

    def log_folder(self, key: str) -> Path:
        """Where the jobs of a cell write their logs; the writer creates it."""
        return self.folder(key) / "logs"

    def add_cell(
        self, cell: Cell, study: str | None = None, measures: Iterable[str] = (), device_id: str | None = None
    ) -> str:
        """Enter a cell, its study and the measures wanted of it, and return its key; again changes nothing.

        Without `device_id` the measures are wanted on whatever device comes to run the cell.

        Raises:
            StoreError: the folder cannot be written, or a study or measure cannot name a file.
        """
        key = cell_key(cell)
        wanted = [f"{measure}.{device_id}" if device_id else measure for measure in measures]
        for kind, names in (("studies", [study] if study else []), ("wanted", wanted)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise StoreError(f"{name!r} cannot name a file in {kind}/; use letters, digits and _ . + -")
                touch(self.folder(key) / kind / name)
        if self.read_cell(key) is None:
            content = {"label": cell_name(cell), "cell": cell.to_dict(), "defaults": dict(cell.defaults)}
            text = json.dumps({"schema": SCHEMA, **content}, indent=2, default=str)
            write_whole(self.folder(key) / "cell.json", text + "\n")
        return key

    def cell_keys(self) -> list[str]:
        """Keys of all cells, sorted."""
        return sorted(list_names(f"{self.out}/cells"))

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
        """Fields of a cell that are not a `Cell`'s own defaults, None if its file is missing or damaged."""
        content = parse_json(f"{self.out}/cells/{key}/cell.json")
        cell = content.get("cell") if isinstance(content, dict) else None
        if not isinstance(cell, dict) or not isinstance(cell.get("settings", {}), dict):
            return None
        # cells of an earlier version lack the defaults of their mechanism
        defaults = content.get("defaults")
        return {**cell, "defaults": defaults} if isinstance(defaults, dict) else cell

    def label(self, key: str) -> str:
        """What a cell is called among people; its key if its file is missing or damaged."""
        return str((read_json(self.folder(key) / "cell.json") or {}).get("label", key))

    def studies(self, key: str) -> list[str]:
        """Studies that a cell belongs to, sorted."""
        return sorted(list_names(f"{self.out}/cells/{key}/studies"))

    def wanted(self, key: str) -> dict[str | None, list[str]]:
        """Measures that were asked of a cell, sorted, by device; None is whatever device comes to run it."""
        found: dict[str | None, list[str]] = {}
        for name in sorted(list_names(f"{self.out}/cells/{key}/wanted")):
            measure, _, device_id = name.partition(".")
            found.setdefault(device_id or None, []).append(measure)
        return found

    def write_record(self, key: str, record: Record) -> Path:
        """Write a record durably and return its path; an attempt that exists is kept and the next number taken.

        Raises:
            StoreError: the file cannot be written, nothing is left of it; or a status or name is not allowed.
        """
        if record.status not in RECORDED:
            raise StoreError(f"a record's status is one of {', '.join(RECORDED)}; got {record.status!r}")
        if RecordName.parse(record.name.file) != record.name:
            raise StoreError(
                f"measure {record.measure!r} on device {record.device_id!r} cannot name a file; a measure takes "
                "letters, digits and _, a device also . + -"
            )
        while True:
            path = self.folder(key) / "records" / record.name.file
            try:
                write_whole(path, to_text(record), publish)
                return path
            except FileExistsError:
                record = replace(record, attempt=self.next_attempt(key, *record.name[:3]))

    def record_names(self, key: str) -> list[RecordName]:
        """Names of all records of a cell, sorted; reads no file."""
        names = [RecordName.parse(file) for file in list_names(f"{self.out}/cells/{key}/records")]
        return sorted(name for name in names if name)

    def read_record(self, key: str, name: RecordName, *, samples: bool = True) -> Record:
        """Read a record, without its raw samples where they are not needed; a damaged one has status `lost`."""
        path = f"{self.out}/cells/{key}/records/{name.file}"
        try:
            return from_text(read_text(path), name, samples=samples)
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

    def read_lost(self, key: str) -> dict[str, str | None] | None:
        """Columns that say why the job that was to measure a cell recorded nothing; None if it was not lost."""
        path = f"{self.out}/cells/{key}/lost.json"
        content = parse_json(path) if os.path.exists(path) else None
        return {name: content.get(name) for name in LOST} if isinstance(content, dict) else None

    def write_lost(self, key: str, reason: Mapping[str, str | None] | None) -> None:
        """Say why a cell is lost; None that it no longer is."""
        path = self.folder(key) / "lost.json"
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            write_json(path, reason)

    def write_progress(self, key: str, progress: Mapping[str, Any], part: str = "") -> None:
        """Say how far the running job is; a full disk loses the message and not the job."""
        with contextlib.suppress(StoreError):
            write_json(self.folder(key) / _part("progress", part), progress, durable=False)

    def read_progress(self, key: str, part: str = "") -> dict[str, Any]:
        """Return what `write_progress` said last, empty if nothing."""
        return read_json(self.folder(key) / _part("progress", part)) or {}


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
        content = parse_json(str(path))
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
            write_whole(path, json.dumps({"schema": SCHEMA}) + "\n")
    return Store(out)


def _part(name: str, part: str) -> str:
    return f"{name}.{part}.json" if part else f"{name}.json"
