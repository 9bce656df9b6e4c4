"""Tars that are read by the places of their files, so that any number of processes can, and refused where damaged."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

BLOCK = tarfile.BLOCKSIZE


def tar_files(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, list[bytes]]]:
    """Files of a tar with the parts of their names; names that begin with a dot are left out.

    Raises:
        TarError: it is damaged, or ends before it says that it does.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        kept: Any = tar
        while (member := tar.next()) is not None:
            # the tarfile module would keep them all
            kept.members.clear()
            parts = [part for part in os.fsencode(member.name).split(b"/") if part not in (b"", b".")]
            if member.isfile() and parts and not any(part.startswith(b".") for part in parts):
                yield tar, member, parts
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("it has no end")


def check_whole(member: tarfile.TarInfo) -> None:
    """Check that the content of a file is one piece of its tar.

    Raises:
        TarError: it is sparse.
    """
    if member.issparse():
        raise tarfile.ReadError(f"{member.name} is a sparse file")


def open_part(path: Path, offset: int, size: int) -> IO[bytes]:
    """Open a file in a tar by its place.

    Raises:
        OSError: the tar cannot be read.
    """
    with open(path, "rb") as tar:
        tar.seek(offset)
        return io.BytesIO(tar.read(size))


@contextlib.contextmanager
def told_if_damaged(path: Path) -> Iterator[None]:
    """Context in which files are read that may be damaged.

    Raises:
        ValueError: one is, or cannot be read.
    """
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
