"""Training and test images of a spec: which are taken, and whether they fit together."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runners.data.listing import shown
from runners.dense.data.sources import Ints, Source, listed, shared_images
from runners.dense.data.specs import SCENES, TASKS_OF, DenseSpec, check_dense_spec, parse_dense_spec


@dataclass(frozen=True)
class Opened:
    """Training and test images with their annotations, and what is to be told of them.

    Attributes:
        classes: names of the classes.
        train: images to learn from; None for scenes.
        val: images of the test.
        warnings: a line for each thing that is allowed but seldom meant.
    """

    spec: DenseSpec
    classes: tuple[str, ...]
    train: Source | None = None
    val: Source | None = None
    warnings: tuple[str, ...] = ()

    def train_indices(self, *, keep_empty: bool = False) -> Ints:
        """Images that are learnt from: those with an object, or all."""
        assert self.train is not None
        kept = [index for index in range(len(self.train)) if keep_empty or not self.train.is_empty(index)]
        return np.array(kept, dtype=np.int64)

    def steps_per_epoch(self, batch_size: int, *, keep_empty: bool = False) -> int | None:
        """Steps of one pass over the training images, None for scenes.

        Raises:
            ValueError: the batch is larger than the training set.
        """
        if self.train is None:
            return None
        return steps_of(len(self.train_indices(keep_empty=keep_empty)), batch_size, of=len(self.train))

    def notes(self, *, keep_empty: bool = False) -> list[str]:
        """Tell what is left out, a line for each kind."""
        if self.train is None or self.val is None:
            return []
        of_train = self.train.notes(learnt=True, keep_empty=keep_empty)
        of_val = self.val.notes(learnt=False)
        splits = ((self.spec.train_split, of_train), (self.spec.val_split, of_val))
        return [f"split {split}: {note}" for split, notes in splits for note in notes]

    def fingerprint(self, code: str = "") -> str:
        """Hash of names and annotations of all images, and of the code that reads them: 16 hex digits."""
        digest = hashlib.sha256(f"{code}\n{self.spec.kind} {self.spec.objects} {self.spec.noise}".encode())
        for source in (self.train, self.val):
            for content in source.identity() if source is not None else ():
                digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()[:16]


def steps_of(images: int, batch_size: int, *, of: int) -> int:
    """Steps of one pass over so many images of a split; those that do not fill a batch are left out.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    if not 1 <= batch_size <= images:
        which = "the training images" if images == of else f"the images that are learnt from, of {of} in the split"
        raise ValueError(f"batch size must be 1 to {images}, {which}, got {batch_size}")
    return images // batch_size


@functools.lru_cache(maxsize=4)
def open_dense(spec: str, task: str) -> Opened:
    """Open the data of a spec for a task; kept, for planning and training ask for the same.

    Raises:
        ValueError: what `check_dense_spec` raises, or files that are not there, damaged, or not what they should be.
    """
    parsed = check_dense_spec(task, spec)
    if parsed.kind == SCENES:
        from runners.dense.data.scene import class_names

        return Opened(parsed, class_names(task))
    try:
        train, val = _open(parsed, task)
        opened = Opened(parsed, train.classes, train, val, _warnings(parsed, train, val))
        if not len(opened.train_indices()):
            why = "; ".join(opened.notes())
            raise ValueError(f"no image of split {parsed.train_split!r} has an object that can be learnt ({why})")
        if not val.counts:
            raise ValueError(f"no image of split {parsed.val_split!r} has an object that counts: all are crowds")
        return opened
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error


def count_dense_classes(spec: str, task: str | None = None) -> int:
    """Count the classes: of segmentation without what is ignored, of detection without the background.

    Scenes have ten digits, and in segmentation their background as another class; without a task they are segmented.

    Raises:
        ValueError: what `open_dense` raises.
    """
    return len(open_dense(spec, task or TASKS_OF[parse_dense_spec(spec).kind][0]).classes)


def dense_steps_per_epoch(spec: str, task: str, batch_size: int, *, keep_empty: bool = False) -> int | None:
    """Count the optimiser steps of one pass over the training images, None for an endless stream.

    Raises:
        ValueError: what `open_dense` raises, or a batch larger than the training set.
    """
    return open_dense(spec, task).steps_per_epoch(batch_size, keep_empty=keep_empty)


def _open(spec: DenseSpec, task: str) -> Sequence[Source]:
    path, splits = Path(spec.root), (spec.train_split, spec.val_split)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if spec.kind == "coco":
        from runners.dense.data.coco import open_coco

        return open_coco(path, splits, spec.images, masks=task == "instance")
    if spec.kind == "voc":
        from runners.dense.data.voc import open_voc

        return open_voc(path, splits, spec.images)
    from runners.dense.data.segfolder import open_segfolder

    return open_segfolder(path, splits, spec.images, ade20k=spec.kind == "ade20k")


def _warnings(spec: DenseSpec, train: Source, val: Source) -> tuple[str, ...]:
    shared = shared_images(train.files, val.files)
    if not shared:
        return ()
    return (
        f"{len(shared)} images of {shown(spec.root)} are in both {spec.train_split} and {spec.val_split} "
        f"({listed(shared)}): the test is of images that were learnt",
    )
