"""Folders and tars of images, one folder for each class: which images there are, and which classes.

Read by timm's readers. Classes are numbered in the order of their sorted names in the training images.
"""

import functools
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from runners.data.image_specs import ImageSpec, parse_image_spec

LISTED = 3
"""Classes that a message names."""


class Listing:
    """Images of a folder or a tar by number: opens one, and knows its class and its name."""

    def __init__(self, path: Path) -> None:
        """List the images below a path.

        Raises:
            ValueError: there is no such folder or tar, it is damaged, or it holds no images.
        """
        self.path = path
        self._reader: Any = _open(path)
        named: dict[str, int] = getattr(self._reader, "class_to_idx", None) or self._reader.class_name_to_idx
        self.classes = tuple(sorted(named))
        order = {named[name]: number for number, name in enumerate(self.classes)}
        found = getattr(self._reader, "targets", None)
        targets = [target for _, target in self._reader.samples] if found is None else found
        self.labels = np.array([order[int(target)] for target in targets])
        """Number of the class of each image."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def open(self, index: int) -> IO[bytes]:
        """Open the file of an image."""
        file: IO[bytes] = self._reader[index][0]
        return file

    def name(self, index: int) -> str:
        """Name of an image below the path."""
        return str(self._reader.filename(index))


def _open(path: Path) -> Any:
    from timm.data.readers import create_reader

    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_file() and path.suffix != ".tar":
        raise ValueError(f"{path} is neither a folder nor a .tar")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: permission denied")
    try:
        # a cache beside the tar would be a pickle that somebody else may have written
        return create_reader("", root=str(path), **({"cache_tarinfo": False} if path.is_file() else {}))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{path} holds no images in folders of classes") from error
    except ValueError as error:  # an empty list, unpacked
        raise ValueError(f"{path} holds no images in folders of classes") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error


@dataclass(frozen=True)
class Folders:
    """Training and test images: a listing each, and which of its images are taken."""

    train: Listing
    val: Listing
    train_indices: np.ndarray[Any, np.dtype[np.int64]]
    val_indices: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in their order."""
        return self.train.classes

    def divided(self, share: float) -> "Folders":
        """Training images alone: a share of each class is the test."""
        rest, kept = _divide(self.train.labels[self.train_indices], share)
        return Folders(self.train, self.train, self.train_indices[rest], self.train_indices[kept])

    def fingerprint(self) -> str:
        """Hash of the names and labels of all images, 16 hex digits: other images are other data."""
        digest = hashlib.sha256()
        for listing, indices in ((self.train, self.train_indices), (self.val, self.val_indices)):
            for index in indices:
                digest.update(f"{listing.name(int(index))}\0{listing.labels[index]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=4)
def open_folders(spec: str) -> Folders:
    """List the images of a spec; kept, for planning and training ask for the same.

    Raises:
        ValueError: they are not there, damaged, of one class alone, or of other classes in train and val.
    """
    parsed = parse_image_spec(spec)
    try:
        return _open_folders(parsed)
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error


def _open_folders(spec: ImageSpec) -> Folders:
    root = Path(spec.root)
    if spec.split is not None:
        listing = Listing(root)
        _check_classes(listing)
        return Folders(listing, listing, *_divide(listing.labels, spec.split))
    train, val = (Path(spec.train), Path(spec.val)) if spec.train else (_part(root, "train"), _part(root, "val"))
    found = Listing(train)
    _check_classes(found)
    test = Listing(val)
    _check_same(found, test)
    return Folders(found, test, np.arange(len(found)), np.arange(len(test)))


def _part(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise ValueError(f"{root} is no folder")
    folder, tar = root / split, root / f"{split}.tar"
    if folder.is_dir() or tar.is_file():
        return folder if folder.is_dir() else tar
    raise ValueError(f"{root} has neither {split}/ nor {split}.tar; of one folder give split=0.1, a share for the test")


def _check_classes(listing: Listing) -> None:
    if len(listing.classes) < 2:
        raise ValueError(f"{listing.path} holds images of one class, {listing.classes[0]!r}; at least two are needed")


def _check_same(train: Listing, val: Listing) -> None:
    unknown, missing = set(val.classes) - set(train.classes), set(train.classes) - set(val.classes)
    parts = [
        f"{len(names)} {text} ({', '.join(sorted(names)[:LISTED])}{', ...' if len(names) > LISTED else ''})"
        for names, text in ((unknown, "only in the test images"), (missing, "only in the training images"))
        if names
    ]
    if parts:
        raise ValueError(f"classes of {train.path} and {val.path} differ: {'; '.join(parts)}")


def _divide(labels: Sequence[int] | Any, share: float) -> tuple[Any, Any]:
    """Keep a share of each class, at least one image, for the test; the same images for every seed."""
    rng = np.random.default_rng(0)
    kept = []
    for label in range(int(max(labels)) + 1):
        of_class = np.flatnonzero(np.asarray(labels) == label)
        if len(of_class) < 2:
            raise ValueError("split needs at least two images of every class")
        count = min(len(of_class) - 1, max(1, round(share * len(of_class))))
        kept.append(rng.permutation(of_class)[:count])
    test = np.sort(np.concatenate(kept))
    return np.setdiff1d(np.arange(len(labels)), test), test
