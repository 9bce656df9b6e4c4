"""Images with annotations of dense tasks, by number: the interface, what an annotation is, and files to read from."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from runners.data.listing import Files, Member, is_image, search, shown

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

IGNORE = 255
"""Label of a pixel that has no class, in every target of segmentation."""
LISTED = 3
"""Names that a message names."""
COMPARED = 16
"""Pairs of files of one name whose content is compared."""
MAX_SMALL_BYTES = 1 << 22
"""Of a list of names, and of the annotation of one image."""


class Objects(NamedTuple):
    """Objects of an image: boxes (N, 4) in px from the left and the top, and what `runners.dense.targets` says of them.

    Masks are (N, H, W), 0 or 1, and None where boxes are enough. A box may have no area.
    """

    boxes: Floats
    labels: Ints
    iscrowd: Bools
    area: Floats
    image_id: int
    masks: Bytes | None = None


Annotation = Bytes | Objects
"""Labels of the pixels (H, W), IGNORE where there is no class, or objects."""


class Source(Protocol):
    """Images of one split with their annotations."""

    files: Files
    classes: tuple[str, ...]
    counts: bool
    """Whether something in the images counts in a test; labels of pixels are believed to until they are read."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """Name of an image, for messages."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width of an image in px, as its annotation says; None where only reading tells."""
        ...

    def is_empty(self, index: int) -> bool:
        """Whether no object of an image can be learnt from."""
        ...

    def notes(self, *, learnt: bool, keep_empty: bool = False) -> list[str]:
        """What is left out, a line for each kind.

        `learnt` says whether the images are learnt from or tested, `keep_empty` whether also those without an object.
        """
        ...

    def read(self, index: int) -> "tuple[Image, Annotation]":
        """Read an image, upright and in RGB, and its annotation.

        Raises:
            ValueError: it cannot be read, or they do not fit together.
        """
        ...

    def identity(self) -> Iterable[bytes]:
        """What tells these images from others."""
        ...


class AnnotationError(ValueError):
    """An annotation does not fit its image, or the classes."""


class Tree:
    """Files below a folder or in a tar by their names, as they are found when data are opened."""

    def __init__(self, path: Path, folders: Sequence[str], endings: Sequence[str] = ()) -> None:
        """Find the images in some folders and the files of some endings, and lists of classes at the top.

        Raises:
            ValueError: no such folder or tar, or one that is damaged.
        """
        self.path = path
        last = tuple(ending.encode() for ending in endings)

        def wanted(name: bytes) -> bool:
            return is_image(name) or name.lower().endswith((*last, *TOP_ENDINGS))

        if path.is_dir():
            missing = [folder for folder in folders if not (path / folder).is_dir()]
            found = [
                Member(os.fsencode(folder) + b"/" + member.name)
                for folder in folders
                if folder not in missing
                for member in search(path / folder, wanted)
            ]
            found += [Member(os.fsencode(name)) for name in os.listdir(path) if wanted(os.fsencode(name))]
        else:
            found = search(path, wanted)
            missing = [folder for folder in folders if not any(_is_in(member, folder) for member in found)]
        if missing:
            raise ValueError(f"{path} has no {missing[0]}/; its layout is {', '.join(f'{name}/' for name in folders)}")
        self.members = {os.fsdecode(member.name): member for member in found}

    def images(self, folder: str) -> dict[str, Member]:
        """Images below a folder, by their names there without the ending.

        Raises:
            ValueError: two differ in the ending alone.
        """
        start = f"{folder}/"
        found: dict[str, Member] = {}
        for name, member in self.members.items():
            if name.startswith(start) and is_image(member.name):
                stem = name[len(start) :].rpartition(".")[0]
                if stem in found:
                    both = shown(f"{os.fsdecode(found[stem].name)} and {name}")
                    raise ValueError(f"{both} have one name, and which is meant is not known; leave one of them there")
                found[stem] = member
        return found

    def read(self, name: str, limit: int = MAX_SMALL_BYTES) -> bytes:
        """Read a file whole.

        Raises:
            ValueError: there is none, it is larger than the limit, or it cannot be read.
        """
        if name not in self.members:
            raise ValueError(f"{self.path} has no {shown(name)}")
        member = self.members[name]
        try:
            if self.path.is_dir() and (size := (self.path / name).stat().st_size) > limit:
                raise ValueError(f"{shown(name)} has {size:,} bytes, the limit is {limit:,}")
            if member.size > limit:
                raise ValueError(f"{shown(name)} has {member.size:,} bytes, the limit is {limit:,}")
            with Files(self.path, [member]).open(0) as file:
                return file.read()
        except OSError as error:
            raise ValueError(f"{shown(name)} cannot be read: {error.strerror or error}") from error

    def json(self, name: str, limit: int = MAX_SMALL_BYTES) -> Any:
        """Read a JSON.

        Raises:
            ValueError: what `read` raises, or it is no JSON.
        """
        content = self.read(name, limit)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown(name)} is no JSON: {' '.join(str(error).split())[:100]}") from error


TOP_ENDINGS = (b"classes.json", b"objectinfo150.txt")


def _is_in(member: Member, folder: str) -> bool:
    return member.name.startswith(os.fsencode(folder) + b"/")


def listed(names: Iterable[str]) -> str:
    """Name the first few."""
    every = sorted(names)
    return ", ".join(map(shown, every[:LISTED])) + (", ..." if len(every) > LISTED else "")


def shared_images(train: Files, val: Files) -> list[str]:
    """Names of images that both have, by name and, of a few, by content."""
    names = {val.name(index): index for index in range(len(val))}
    pairs = [(train.name(i), i, names[train.name(i)]) for i in range(len(train)) if train.name(i) in names]
    if not pairs:
        # the folders of two splits differ: what comes behind them
        tails = {_tail(name): index for name, index in names.items()}
        pairs = [(train.name(i), i, tails[tail]) for i in range(len(train)) if (tail := _tail(train.name(i))) in tails]
        pairs = [pair for pair in pairs[:COMPARED] if _digest(train, pair[1]) == _digest(val, pair[2])]
    return [name for name, _, _ in pairs]


def _tail(name: str) -> str:
    return name.rpartition("/")[2]


def _digest(files: Files, index: int) -> bytes:
    try:
        with files.open(index) as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return os.urandom(8)  # like no other
