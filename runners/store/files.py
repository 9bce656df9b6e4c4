"""Files of a results folder: each appears whole or not at all, and paths are text where thousands are read."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runners.store.record import plain


class StoreError(ValueError):
    """A results folder that cannot be used, with the path and the reason."""


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Replace a file by a JSON object, whole or not at all; its folder is made.

    Raises:
        StoreError: the file cannot be written.
    """
    write_whole(path, json.dumps(plain(content), allow_nan=False, indent=1) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Object that `write_json` wrote, None if the file is missing or damaged."""
    content = parse_json(str(path))
    return content if isinstance(content, dict) else None


def list_names(folder: str) -> list[str]:
    """Names in a folder that are not hidden, none if it is missing."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_text(path: str) -> str:
    """Content of a file, by system calls: a file object takes twice as long for one small record."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def parse_json(path: str) -> Any:
    """Content of a JSON file, None if it is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError):
        return None


def touch(path: Path) -> None:
    """Make an empty file, and its folder.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def write_whole(
    path: Path, content: str | bytes, publish: Callable[[Path, Path], None] | None = None, *, durable: bool = True
) -> None:
    """Write a file beside its place, then move or `publish` it there: a reader never sees half of it.

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
            with open(temporary, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            (publish or os.replace)(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            _sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def publish(temporary: Path, path: Path) -> None:
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
