"""Images with objects whose annotations are read before work begins, and kept packed: what COCO and VOC share."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runners.data.decode import check_size
from runners.data.listing import Files, Member
from runners.dense.data.masks import MAX_MASK_BYTES, decode_segmentation
from runners.dense.data.sources import AnnotationError, Objects

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_TRAIN_SIDE_PX = 32
"""Smaller images are not learnt from, as in mmdet's configurations."""


class Record(NamedTuple):
    """An image: its file, number, size, and rows of left, top, right, bottom, label, crowd, area, segmentation."""

    member: Member
    image_id: int
    height: int
    width: int
    rows: list[list[Any]]


class ObjectImages:
    """Images of one split with their objects."""

    def __init__(self, path: Path, classes: tuple[str, ...], records: Sequence[Record], *, masks: bool) -> None:
        """Pack what is known of the images.

        Raises:
            ValueError: there are none, or none of them has an object.
        """
        self.classes, self._masks = classes, masks
        self.files = Files(path, [record.member for record in records])
        self._sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
        self._ids = np.array([record.image_id for record in records], dtype=np.int64)
        self.counts = any(not row[5] for record in records for row in record.rows)
        learnt = [any(_is_learnt(row) for row in record.rows) for record in records]
        self._empty = ~np.array(learnt, dtype=bool) | (self._sizes.min(axis=1, initial=1 << 30) < MIN_TRAIN_SIDE_PX)
        if not any(record.rows for record in records):
            raise ValueError(f"none of {len(records)} images has an annotation")
        # not lists: a process that only looks at an object of Python copies the memory around it
        rows = [json.dumps(record.rows).encode() for record in records]
        self._rows, self._ends = b"".join(rows), np.cumsum([len(row) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def name(self, index: int) -> str:
        """Name of an image below the path."""
        return self.files.name(index)

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width as the annotation says."""
        height, width = self._sizes[index].tolist()
        return height, width

    def is_empty(self, index: int) -> bool:
        """Whether an image has no object that can be learnt, or is too small."""
        return bool(self._empty[index])

    def read(self, index: int) -> "tuple[Image, Objects]":
        """Read an image and its objects.

        Raises:
            ValueError: it cannot be read, or it or a mask has another size than its annotation says.
        """
        image = self.files.decode(index)
        height, width = self._sizes[index].tolist()
        if image.size != (width, height):
            raise AnnotationError(
                f"it has {image.width} x {image.height} pixels, its annotation says {width} x {height}"
            )
        start = int(self._ends[index - 1]) if index else 0
        rows: list[list[Any]] = json.loads(self._rows[start : int(self._ends[index])])
        table = np.array([row[:7] for row in rows], dtype=np.float64).reshape(-1, 7)
        return image, Objects(
            boxes=table[:, :4],
            labels=table[:, 4].astype(np.int64),
            iscrowd=table[:, 5] > 0,
            area=table[:, 6],
            image_id=int(self._ids[index]),
            masks=self._decoded(rows, height, width) if self._masks else None,
        )

    def identity(self) -> Iterable[bytes]:
        """Names, sizes and annotations."""
        return (
            *self.files.identity(),
            self._sizes.tobytes(),
            self._ids.tobytes(),
            self._rows,
            self._ends.tobytes(),
            "\0".join(self.classes).encode(errors="replace"),
        )

    def _decoded(self, rows: list[list[Any]], height: int, width: int) -> Any:
        if len(rows) * height * width > MAX_MASK_BYTES:
            raise AnnotationError(
                f"{len(rows)} masks of {width} x {height} pixels, the limit is {MAX_MASK_BYTES} in all"
            )
        masks = [decode_segmentation(row[7], height, width) for row in rows]
        return np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.uint8)


def _is_learnt(row: list[Any]) -> bool:
    """Whether an object is no crowd and its box has an area."""
    return not row[5] and row[2] > row[0] and row[3] > row[1]


def check_image_size(height: object, width: object) -> tuple[int, int]:
    """Return the size that an annotation says.

    Raises:
        ValueError: it is none, or larger than any image that is read.
    """
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise AnnotationError(f"width and height must be integers from 1 up, got {width!r:.20} and {height!r:.20}")
    check_size(width, height)
    return height, width
