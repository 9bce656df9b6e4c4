"""Folders and tars of images, one folder for each class: names, classes and where each image is, in a few arrays.

The class of an image is the folder that it lies in, as in timm: `train/cat/1.jpg` and `train/animals/cat/1.jpg` are
both `cat`; a tar inside a tar is a folder of its name. Names that begin with a dot are left out. Of a tar the headers
alone are read here, and images by their places, so that any number of processes can.
"""

import contextlib
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from runners.data.decode import decode
from runners.data.tars import check_whole, open_part, tar_files, told_if_damaged

if TYPE_CHECKING:
    from PIL.Image import Image

Ints = np.ndarray[Any, np.dtype[np.int64]]

EXTENSIONS = frozenset(b".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
"""Of files that are images; timm's and torchvision's together, and GIF."""
SLOW_S = 3.0
"""A search that takes longer says so."""


class Images(Protocol):
    """Images by number, with their classes: of a folder, a tar, or a data set in Python."""

    @property
    def where(self) -> str:
        """What they are images of."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in their order."""
        ...

    @property
    def labels(self) -> Ints | None:
        """Number of the class of each image, None where only reading an image tells."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> "tuple[Image, int]":
        """Read an image, upright and in RGB, and the number of its class.

        Raises:
            ValueError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Name of an image, for messages."""
        ...

    def identity(self) -> Iterable[bytes]:
        """What tells these images from others: their names and labels."""
        ...


class Member(NamedTuple):
    """A file: its name below the root, and of a tar the place and size of its content there."""

    name: bytes
    offset: int = 0
    size: int = 0


class _Named:
    """Files by number, whose names are kept in one array; a subclass opens them."""

    def __init__(self, where: str, names: Sequence[bytes]) -> None:
        self.where = where
        # not lists: a process that only looks at an object of Python copies the memory around it
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._ends)

    def open(self, index: int) -> IO[bytes]:
        """Open a file.

        Raises:
            OSError: it cannot be opened.
        """
        raise NotImplementedError

    def decode(self, index: int) -> "Image":
        """Read the image in a file, upright and in RGB.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            with self.open(index) as file:
                return decode(file)
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Name of a file, in one line."""
        return shown(self._raw_name(index))

    def identity(self) -> Iterable[bytes]:
        """Names of the files."""
        return self._names, self._ends.tobytes()

    def _raw_name(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])]


class _Below(_Named):
    """Files of a folder or a tar, named below it."""

    def _place(self, path: Path, members: Sequence[Member]) -> None:
        self.path = path
        self._is_tar = path.is_file()
        self._places = np.array([member[1:] for member in members] if self._is_tar else [], dtype=np.int64)

    def open(self, index: int) -> IO[bytes]:
        """Open a file.

        Raises:
            OSError: it cannot be opened.
        """
        if not self._is_tar:
            return open(self.path / os.fsdecode(self._raw_name(index)), "rb")
        return open_part(self.path, *self._places[index].tolist())


class Files(_Below):
    """Files of a folder or a tar, of any kind."""

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        """Keep some files of those that `search` found below a path."""
        super().__init__(str(path), [member.name for member in members])
        self._place(path, members)


class FileImages(_Named):
    """Images in files whose names and labels are known."""

    def __init__(self, where: str, classes: tuple[str, ...], names: Sequence[bytes], labels: Ints) -> None:
        """Keep the names and labels of all images."""
        super().__init__(where, names)
        self.classes, self.labels = classes, labels

    def read(self, index: int) -> "tuple[Image, int]":
        """Read an image, upright and in RGB, and the number of its class.

        Raises:
            ValueError: it cannot be read.
        """
        return self.decode(index), int(self.labels[index])

    def identity(self) -> Iterable[bytes]:
        """Names and labels."""
        return *super().identity(), self.labels.tobytes(), "\0".join(self.classes).encode(errors="replace")


class Listing(FileImages, _Below):
    """Images of a folder or a tar, one folder for each class."""

    def __init__(self, path: Path) -> None:
        """List the images below a path, in the order of their names.

        Raises:
            ValueError: there is no such folder or tar, it is damaged, or it holds no images in folders.
        """
        members = search(path)
        folders = [member.name.rpartition(b"/")[0].rpartition(b"/")[2] for member in members]
        if not members or not all(folders):
            stray = f"; {shown(members[folders.index(b'')].name)} lies in no folder of a class" if members else ""
            raise ValueError(f"{path} holds no images in folders of classes{stray}")
        named = {folder: unicodedata.normalize("NFC", os.fsdecode(folder)) for folder in set(folders)}
        classes = tuple(sorted(set(named.values())))
        numbers = {name: number for number, name in enumerate(classes)}
        by_folder = {folder: numbers[name] for folder, name in named.items()}
        labels = np.array([by_folder[folder] for folder in folders], dtype=np.int64)
        super().__init__(str(path), classes, [member.name for member in members], labels)
        self._place(path, members)


def shown(name: bytes | str) -> str:
    """Write the name of a file or a folder in one line, whatever its bytes are."""
    text = os.fsdecode(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def search(path: Path, wanted: Callable[[bytes], bool] | None = None) -> list[Member]:
    """Find the files below a folder or in a tar that are wanted by their names, else images, in the order of names.

    Raises:
        ValueError: there is no such folder or tar, or it is damaged or cannot be read.
    """
    wanted = wanted or is_image
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_file() and path.suffix.lower() != ".tar":
        raise ValueError(f"{path} is neither a folder nor a .tar")
    with told_if_slow(path), told_if_damaged(path):
        return sorted(_of_tar(path, wanted) if path.is_file() else map(Member, _of_folder(os.fsencode(path), wanted)))


@contextlib.contextmanager
def told_if_slow(path: Path) -> Iterator[None]:
    """Context of a search that says what it does if that takes long."""
    text = f"searching {path} for images"
    timer = threading.Timer(SLOW_S, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_image(name: bytes) -> bool:
    """Whether a file is an image by its ending."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _of_folder(root: bytes, wanted: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Names of the wanted files below a folder; links are followed.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a link leads back to a folder that it is in.
    """
    waiting: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise ValueError(f"{shown(folder)} is a link to a folder that it lies in")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, above | {here}))
                elif wanted(entry.name):
                    yield (
                        os.path.relpath(entry.path, root) if root == b"." else entry.path[len(root.rstrip(b"/")) + 1 :]
                    )


def _of_tar(path: Path, wanted: Callable[[bytes], bool]) -> Iterator[Member]:
    with open(path, "rb") as file:
        yield from _members(file, b"", 0, wanted)


def _members(file: IO[bytes], folder: bytes, start: int, wanted: Callable[[bytes], bool]) -> Iterator[Member]:
    """Wanted files of a tar that begins at `start` of the file, and of the tars in it.

    Raises:
        TarError: it is damaged, or ends before it says that it does.
    """
    for tar, member, parts in tar_files(file):
        if parts[-1].lower().endswith(b".tar"):
            inner = tar.extractfile(member)
            assert inner is not None
            yield from _members(inner, parts[-1][: -len(b".tar")] + b"/", start + member.offset_data, wanted)
        elif wanted(parts[-1]):
            check_whole(member)
            yield Member(folder + b"/".join(parts), start + member.offset_data, member.size)
