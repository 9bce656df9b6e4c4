"""The results folder: cells, and one JSON file per (cell, measure, device, protocol, attempt).

    <out>/store.json                      {"schema": 1}
    <out>/cells/<cell_key>/cell.json      its name, what differs from the defaults, and the mechanism's defaults
                           studies/NAME   empty files: the studies that the cell belongs to
                           wanted/MEASURE[.DEVICE_ID]    empty files: the measures that were asked for, on a device
                           records/<measure>.<device_id>.v<protocol>.a<attempt>.json
                           lease.json     who works on it now (runners/store/lease.py)
                           progress.json  how far that is
                           lost.json      why the job that was to measure it recorded nothing
                           training.*     saved states to go on from (runners/store/states.py)
                           curve.*        what each step of a training did (runners/store/curve.py)
                           weights.*      trained weights, where they were asked for
                           logs/
    <out>/jobs/NAME/                      submissions to SLURM (runners/jobs/submissions.py)

A record appears whole or not at all, is never edited, and is never overwritten: jobs share no file, and of two
writers of one attempt the second gets the next number. What a cell is comes from `cell.json` where that gives the name
of the folder, and from nowhere else. A folder may be somebody else's: what its files say is checked, and its links are
left alone.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.study import Cell, cell_key
from runners.measures import RECORDED
from runners.store.cell_file import SCHEMA, cell_text, fields_of, sound_progress
from runners.store.files import (
    MARKER,
    check_inside,
    list_names,
    parse_json,
    publish,
    read_json,
    read_text,
    remove,
    touch,
    why_closed,
    write_json,
    write_whole,
)
from runners.store.files import StoreError as StoreError
from runners.store.lease import Held, holder
from runners.store.names import cell_name, is_key, is_name
from runners.store.record import Record, RecordName, attempts_of, from_text, to_text

PARTS = ("", "timing")
"""Parts of a cell that two jobs can measure side by side, each under a lease of its own."""

LOST = ("error_type", "error_message", "log_path")


@dataclass(frozen=True)
class Store:
    """A results folder that `open_store` has checked.

    What `load` calls for every cell builds its paths as text: pathlib would take longer than the disk.
    """

    out: Path
    is_linked: bool = field(default=False, compare=False)
    """Its cells lie behind a link, and so are left alone."""

    def folder(self, key: str) -> Path:
        """Folder of a cell, for whoever writes there or removes something.

        Raises:
            StoreError: the results folder is gone, or the folder would be reached through a link.
        """
        if not is_key(key):
            raise StoreError(f"{key!r} is no key of a cell")
        folder = self.out / "cells" / key
        check_inside(self.out, folder)
        return folder

    def problem(self, key: str) -> str | None:
        """Why a cell cannot be looked at, None if it can, or is just being made."""
        path = f"{self.out}/cells/{key}"
        return why_closed(path) or why_closed(f"{path}/records")

    def _is_hidden(self, key: str) -> bool:
        return self.is_linked or os.path.islink(f"{self.out}/cells/{key}")

    def _names(self, key: str, kind: str) -> list[str]:
        return [] if self._is_hidden(key) else list_names(f"{self.out}/cells/{key}/{kind}")

    def holder(self, key: str) -> Held | None:
        """Who works on a cell, or died at it, None if nobody."""
        dead = None
        if self._is_hidden(key):
            return None
        for part in PARTS:
            path = f"{self.out}/cells/{key}/{_part('lease', part)}"
            if os.path.lexists(path):
                held = holder(Path(path))
                if held and held.state != "dead":
                    return held
                dead = held or dead
        return dead

    def lease_path(self, key: str, part: str = "") -> Path:
        """Where the lease of a cell lies while somebody works on it, or on that part of it."""
        return self.folder(key) / _part("lease", part)

    def state_path(self, key: str, device_id: str) -> Path:
        """Where a cell's training keeps its newest state, and others beside it; on another device it starts anew."""
        return self.folder(key) / f"training.{device_id}"

    def weights_path(self, key: str, device_id: str, kind: str = "") -> Path:
        """Where a cell's trained weights are, if they were asked for; `kind` best: those of its best evaluation."""
        return self.folder(key) / f"weights.{device_id}.{f'{kind}.' if kind else ''}pth"

    def log_folder(self, key: str) -> Path:
        """Where the jobs of a cell write their logs; the writer creates it.

        Raises:
            StoreError: it is a link.
        """
        folder = self.folder(key) / "logs"
        check_inside(self.out, folder)
        return folder

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
                if not is_name(name):
                    raise StoreError(f"{name!r} cannot name a file in {kind}/; use letters, digits and _ . + -")
                touch(self.folder(key) / kind / name, root=self.out)
        if self.read_cell(key) is None:
            write_whole(self.folder(key) / "cell.json", cell_text(cell), root=self.out)
        return key

    def cell_keys(self) -> list[str]:
        """Keys of all cells, sorted."""
        return sorted(list_names(f"{self.out}/cells"))

    def cells(self) -> dict[str, Cell]:
        """All cells by key; one whose `cell.json` this version cannot read is left to `load`, as a lost row."""
        found = ((key, self.cell(key)) for key in self.cell_keys())
        return {key: cell for key, cell in found if cell}

    def cell(self, key: str) -> Cell | None:
        """The cell of a key, None if its file is missing, damaged, or of a version with other fields."""
        content = self.read_cell(key)
        with contextlib.suppress(ValueError):
            return None if content is None else Cell.from_dict(content)
        return None

    def read_cell(self, key: str) -> dict[str, Any] | None:
        """Fields of a cell that are not a `Cell`'s own defaults; None if its file is missing, damaged or another's."""
        return None if self._is_hidden(key) else fields_of(parse_json(f"{self.out}/cells/{key}/cell.json"), key)

    def label(self, key: str) -> str:
        """What a cell is called among people; its key if its file is missing or damaged."""
        cell = self.cell(key)
        return cell_name(cell) if cell else key

    def studies(self, key: str) -> list[str]:
        """Studies that a cell belongs to, sorted."""
        return sorted(self._names(key, "studies"))

    def wanted(self, key: str) -> dict[str | None, list[str]]:
        """Measures that were asked of a cell, sorted, by device; None is whatever device comes to run it."""
        found: dict[str | None, list[str]] = {}
        for name in sorted(self._names(key, "wanted")):
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
                write_whole(path, to_text(record, key), publish, root=self.out)
                return path
            except FileExistsError:
                record = replace(record, attempt=self.next_attempt(key, *record.name[:3]))

    def record_names(self, key: str) -> list[RecordName]:
        """Names of all records of a cell, sorted; reads no file."""
        names = [RecordName.parse(file) for file in self._names(key, "records")]
        return sorted(name for name in names if name)

    def read_record(self, key: str, name: RecordName, *, samples: bool = True) -> Record:
        """Read a record, without its raw samples where they are not needed; a damaged one has status `lost`."""
        path = f"{self.out}/cells/{key}/records/{name.file}"
        try:
            return from_text(read_text(path), name, key, samples=samples)
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"{path} cannot be read ({error}); the next attempt supersedes it"
            return Record(**name._asdict(), status="lost", error_type="DamagedRecord", error_message=reason)

    def records(self, key: str) -> list[Record]:
        """All records of a cell with their samples, sorted by measure, device, protocol and attempt."""
        return [self.read_record(key, name) for name in self.record_names(key)]

    def next_attempt(self, key: str, measure: str, device_id: str, protocol: int) -> int:
        """Number of the attempt that comes next, 1 for the first; damaged records count.

        What does not depend on the device is measured on one of them, so that attempts on all of them count.
        """
        return attempts_of(self.record_names(key), measure, device_id, protocol) + 1

    def read_lost(self, key: str) -> dict[str, str | None] | None:
        """Columns that say why the job that was to measure a cell recorded nothing; None if it was not lost."""
        path = f"{self.out}/cells/{key}/lost.json"
        content = parse_json(path) if os.path.lexists(path) else None
        if not isinstance(content, dict):
            return None
        return {name: text if isinstance(text := content.get(name), str) else None for name in LOST}

    def write_lost(self, key: str, reason: Mapping[str, str | None] | None) -> None:
        """Say why a cell is lost; None that it no longer is."""
        path = self.folder(key) / "lost.json"
        if reason is None:
            remove(path, root=self.out)
        else:
            write_json(path, reason, root=self.out)

    def write_progress(self, key: str, progress: Mapping[str, Any], part: str = "") -> None:
        """Say how far the running job is; a full disk loses the message and not the job."""
        with contextlib.suppress(StoreError):
            write_json(self.folder(key) / _part("progress", part), progress, root=self.out, durable=False)

    def read_progress(self, key: str, part: str = "") -> dict[str, Any]:
        """Return what `write_progress` said last, empty if nothing; what is of another type is left out."""
        content = {} if self._is_hidden(key) else read_json(self.out / "cells" / key / _part("progress", part)) or {}
        return sound_progress(content)


def open_store(out: Path, *, create: bool) -> Store:
    """Open a results folder; with `create` make it where it is missing and make sure that it can be written.

    Raises:
        StoreError: a file, not writable, without results (only if not `create`), or of another schema version.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise StoreError(f"results folder {out} is not a folder; name another one")
    path = out / MARKER
    exists = os.path.lexists(path)
    if exists:
        content = parse_json(str(path))
        schema = content.get("schema") if isinstance(content, dict) else None
        if type(schema) is not int:
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
    return Store(out, is_linked=os.path.islink(out / "cells"))


def _part(name: str, part: str) -> str:
    return f"{name}.{part}.json" if part else f"{name}.json"
