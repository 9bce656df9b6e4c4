"""Training and test images of a spec: which are taken, and whether their classes fit together.

Classes are numbered in the order of their sorted names in the training images, as torchvision numbers them: of folders
`0` to `10`, `10` comes after `1`.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runners.data.image_specs import FOLDER, ImageSpec, is_shards, is_tfds, parse_image_spec
from runners.data.listing import Images, Ints, Listing, shown
from runners.data.shards import open_shards

LISTED = 3
"""Classes that a message names."""


@dataclass(frozen=True)
class Folders:
    """Training and test images, and which of them are taken."""

    train: Images
    val: Images
    train_indices: Ints
    val_indices: Ints

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in their order."""
        return self.train.classes

    def divided(self, share: float) -> "Folders":
        """Training images alone: a share of each class, or of all where only reading tells, is the test."""
        labels = self.train.labels
        known = np.zeros(len(self.train), dtype=np.int64) if labels is None else labels
        rest, kept = _divide(known[self.train_indices], share)
        return Folders(self.train, self.train, self.train_indices[rest], self.train_indices[kept])

    def fingerprint(self, code: str = "") -> str:
        """Hash of the names and labels of all images, and of the code that reads them: 16 hex digits."""
        digest = hashlib.sha256(code.encode())
        for images, indices in ((self.train, self.train_indices), (self.val, self.val_indices)):
            for content in (*images.identity(), indices.tobytes()):
                digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=4)
def open_folders(spec: str) -> Folders:
    """List the images of a spec; kept, for planning and training ask for the same.

    Raises:
        ValueError: they are not there, damaged, of one class alone, or of other classes in train and val.
    """
    parsed = parse_image_spec(spec)
    try:
        if parsed.kind == FOLDER:
            return _open_folders(parsed)
        if is_shards(parsed):
            return _together(*open_shards(parsed))
        # the libraries of data sets take a second to import
        if is_tfds(parsed):
            from runners.data.tfds import open_tfds

            return _together(open_tfds(parsed, parsed.train_split), open_tfds(parsed, parsed.val_split))
        from runners.data.python_images import open_dataset

        return _together(open_dataset(parsed, "train"), open_dataset(parsed, "val"))
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error


def _open_folders(spec: ImageSpec) -> Folders:
    root = Path(spec.root)
    if spec.split is not None:
        listing = Listing(root)
        _check_classes(listing)
        return Folders(listing, listing, *_divide(listing.labels, spec.split))
    train, val = (Path(spec.train), Path(spec.val)) if spec.train else (_part(root, "train"), _part(root, "val"))
    return _together(Listing(train), Listing(val))


def _together(train: Images, val: Images) -> Folders:
    _check_classes(train)
    _check_same(train, val)
    return Folders(train, val, np.arange(len(train)), np.arange(len(val)))


def _part(root: Path, split: str) -> Path:
    if not root.exists():
        raise ValueError(f"{root} does not exist")
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; of one tar give split=0.1, or two: imagefolder:train=FILE,val=FILE")
    folder, tar = root / split, root / f"{split}.tar"
    if folder.is_dir() or tar.is_file():
        return folder if folder.is_dir() else tar
    raise ValueError(f"{root} has neither {split}/ nor {split}.tar; of one folder give split=0.1, a share for the test")


def _check_classes(images: Images) -> None:
    if len(images.classes) < 2:
        raise ValueError(f"{images.where} holds images of one class, {images.classes[0]!r}; at least two are needed")


def _check_same(train: Images, val: Images) -> None:
    unknown, missing = set(val.classes) - set(train.classes), set(train.classes) - set(val.classes)
    parts = [
        f"{len(names)} {text} ({', '.join(map(shown, sorted(names)[:LISTED]))}{', ...' if len(names) > LISTED else ''})"
        for names, text in ((unknown, "only in the test images"), (missing, "only in the training images"))
        if names
    ]
    if not parts and train.classes != val.classes:
        parts = ["the same names in another order"]
    if parts:
        raise ValueError(f"classes of {train.where} and {val.where} differ: {'; '.join(parts)}")


def _divide(labels: Sequence[int] | Ints, share: float) -> tuple[Any, Any]:
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
