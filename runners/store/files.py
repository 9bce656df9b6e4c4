"""Files of a results folder: each appears whole or not at all, and paths are text where thousands are read.

A results folder may come from anybody. So no link in it is followed, nothing but a regular file of a sensible size is
read, and folders are made below a results folder that is still there, never with it.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runners.store.strict_json import parse, plain

MARKER = "store.json"
"""The file by which a results folder is known."""
MAX_JSON_BYTES = 16 << 20
MAX_BYTES = 1 << 28
"""A record holds the loss of every step."""


class StoreError(ValueError):
    """A results folder that cannot be used, with the path and the reason."""


def is_gone(root: Path) -> bool:
    """Whether a results folder was renamed, removed or unmounted since it was opened."""
    return not os.path.lexists(root / MARKER)


def check_inside(root: Path, folder: Path) -> None:
    """Make sure that a results folder is still there and that a folder in it is reached without a link.

    Raises:
        StoreError: it is gone, or some level of the folder is a link.
    """
    if is_gone(root):
        raise StoreError(f"results folder {root} is gone: it was moved or removed; nothing more is written")
    place = root
    for part in folder.relative_to(root).parts:
        place /= part
        if place.is_symlink():
            raise StoreError(f"{place} is a link; what lies behind a link in a results folder is left alone")


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder in a results folder.

    Raises:
        StoreError: it cannot be made, the results folder is gone, or some level of the folder is a link.
    """
    check_inside(root, folder)
    place = root
    try:
        for part in folder.relative_to(root).parts:
            place /= part
            with contextlib.suppress(FileExistsError):
                os.mkdir(place)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any], *, root: Path, durable: bool = True) -> None:
    """Replace a file of a results folder by a JSON object, whole or not at all; its folder is made.

    Raises:
        StoreError: the file cannot be written.
    """
    text = json.dumps(plain(content), allow_nan=False, indent=1) + "\n"
    write_whole(path, text, root=root, durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Object that `write_json` wrote, None if the file is missing or damaged."""
    content = parse_json(str(path))
    return content if isinstance(content, dict) else None


def list_names(folder: str, *, hidden: bool = False) -> list[str]:
    """Names in a folder, hidden ones if asked for; none if it is missing, a link or closed to us."""
    if os.path.islink(folder):
        return []
    try:
        return [name for name in os.listdir(folder) if hidden or not name.startswith(".")]
    except OSError:
        return []


def is_file_or_link(path: Path) -> bool:
    """Whether a name stands for something that is removed as one: no folder."""
    with contextlib.suppress(OSError):
        return not stat.S_ISDIR(path.lstat().st_mode)
    return False


def why_closed(folder: str) -> str | None:
    """Why a folder cannot be looked into, None if it can, is missing or is something else."""
    if os.path.islink(folder):
        return f"{folder} is a link, which is not followed"
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror or error}"
    return None


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a regular file for reading; neither a link nor a pipe, at which reading would wait for ever.

    Raises:
        OSError: it is missing or closed to us.
        ValueError: it is something else than a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link, which is not followed") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_bytes(path: str, most: int = MAX_BYTES) -> bytes:
    """Content of a file, by system calls: a file object takes twice as long for one small record.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or has more than `most` bytes.
    """
    with opened(path) as descriptor:
        if (size := os.fstat(descriptor).st_size) > most:
            raise ValueError(f"it has {size} bytes, more than {most}")
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)


def read_text(path: str) -> str:
    """Content of a text file; raises what `read_bytes` raises."""
    return read_bytes(path).decode()


def parse_json(path: str) -> Any:
    """Content of a JSON file, None if it is missing or damaged."""
    try:
        return parse(read_bytes(path, MAX_JSON_BYTES).decode())
    except (OSError, ValueError):
        return None


def touch(path: Path, *, root: Path) -> None:
    """Make an empty file in a results folder, and its folder; one that is there stays as it is.

    Raises:
        StoreError: it cannot be written.
    """
    make_folder(root, path.parent)
    try:
        if not os.path.lexists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def remove(path: Path, *, root: Path) -> None:
    """Remove a file of a results folder, of a link the link alone; one that is missing is no error.

    Raises:
        StoreError: it cannot be removed.
    """
    check_inside(root, path.parent)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error


def write_whole(
    path: Path,
    content: str | bytes,
    publish: Callable[[Path, Path], None] | None = None,
    *,
    root: Path | None = None,
    durable: bool = True,
) -> None:
    """Write a file beside its place, then move or `publish` it there: a reader never sees half of it.

    The folder of the file must exist; within the results folder `root` it is made.

    Raises:
        FileExistsError: from `publish`.
        StoreError: anything else that went wrong; neither the file nor its temporary remains.
    """
    if root is not None:
        make_folder(root, path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                # names of files may hold bytes that are no text
                file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
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
