"""Images with objects whose annotations are read before work begins, and kept packed: what COCO and VOC share."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runners.data.decode import check_size, upright_size
from runners.data.listing import Files, Member
from runners.dense.data.checking import check_some, sampled
from runners.dense.data.masks import MAX_MASK_BYTES, decode_segmentation
from runners.dense.data.sources import AnnotationError, Objects

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_TRAIN_SIDE_PX = 32
"""Smaller images are not learnt from, as in mmdet's configurations."""

CROWD, WITHOUT_MASK = "crowd or difficult", "without a mask"
"""Why objects are not learnt."""


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
            ValueError: there are none, none of them has an object, or some that are looked at have another size than
                their annotation says.
        """
        self.classes, self._masks = classes, masks
        self.files = Files(path, [record.member for record in records])
        self._sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
        self._ids = np.array([record.image_id for record in records], dtype=np.int64)
        self.counts = any(not row[5] for record in records for row in record.rows)
        if not any(record.rows for record in records):
            raise ValueError(f"none of {len(records)} images has an annotation")
        why_not = [
            [_why_not(row, record.height, record.width, masks=masks) for row in record.rows] for record in records
        ]
        self._objects = sum(map(len, why_not))
        self.left_out = Counter(reason for reasons in why_not for reason in reasons if reason)
        learnt = [not all(reasons) for reasons in why_not]
        self._is_small = self._sizes.min(axis=1) < MIN_TRAIN_SIDE_PX
        self._empty = ~np.array(learnt, dtype=bool) | self._is_small
        # not lists: a process that only looks at an object of Python copies the memory around it
        rows = [json.dumps(record.rows).encode() for record in records]
        self._rows, self._ends = b"".join(rows), np.cumsum([len(row) for row in rows], dtype=np.int64)
        check_some(len(self), self._check_size, self.name, self.name)
        if masks:
            self._check_masks()

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
        height, width = self._fitting(index, image.size)
        rows = self._rows_of(index)
        table = np.array([row[:7] for row in rows], dtype=np.float64).reshape(-1, 7)
        return image, Objects(
            boxes=table[:, :4],
            labels=table[:, 4].astype(np.int64),
            iscrowd=table[:, 5] > 0,
            area=table[:, 6],
            image_id=int(self._ids[index]),
            masks=self._decoded(rows, height, width) if self._masks else None,
        )

    def notes(self, *, learnt: bool, keep_empty: bool = False) -> list[str]:
        """Objects and images that are not learnt from."""
        if not learnt:
            return []
        lines = []
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
            lines.append(f"of {self._objects} objects these are not learnt: {reasons}")
        if self._empty.any() and not keep_empty:
            small = int(self._is_small.sum())
            lines.append(
                f"of {len(self)} images these are not learnt: {int(self._empty.sum()) - small} without an object to "
                f"learn, {small} smaller than {MIN_TRAIN_SIDE_PX} px"
            )
        return lines

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

    def _check_size(self, index: int) -> None:
        with self.files.open(index) as file:
            size = upright_size(file)
        self._fitting(index, size)

    def _check_masks(self) -> None:
        """Refuse masks of which none has a pixel; one is enough."""
        looked_at = 0
        for index in sampled(len(self)):
            height, width = self._sizes[index].tolist()
            rows = [row for row in self._rows_of(index) if not _why_not(row, height, width, masks=True)]
            looked_at += len(rows)
            with contextlib.suppress(AnnotationError):  # it is counted when its turn comes
                if self._decoded(rows, height, width).any():
                    return
        if looked_at:
            raise ValueError(
                f"of {looked_at} masks that were looked at none can be read and has a pixel; are polygons in px?"
            )

    def _fitting(self, index: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the annotation of an image of (width, height) says, which are its own."""
        height, width = self._sizes[index].tolist()
        if size != (width, height):
            raise AnnotationError(f"it has {size[0]} x {size[1]} pixels, its annotation says {width} x {height}")
        return height, width

    def _rows_of(self, index: int) -> list[list[Any]]:
        start = int(self._ends[index - 1]) if index else 0
        rows: list[list[Any]] = json.loads(self._rows[start : int(self._ends[index])])
        return rows

    def _decoded(self, rows: list[list[Any]], height: int, width: int) -> Any:
        if len(rows) * height * width > MAX_MASK_BYTES:
            raise AnnotationError(
                f"{len(rows)} masks of {width} x {height} pixels, the limit is {MAX_MASK_BYTES} in all"
            )
        masks = [decode_segmentation(row[7], height, width) for row in rows]
        return np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.uint8)


def _why_not(row: list[Any], height: int, width: int, *, masks: bool) -> str:
    """Why an object is not learnt, empty if it is."""
    if row[5]:
        return CROWD
    left, top, right, bottom = row[:4]
    if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
        return "without area in its image"
    return WITHOUT_MASK if masks and row[7] == [] else ""


def check_image_size(height: object, width: object) -> tuple[int, int]:
    """Return the size that an annotation says.

    Raises:
        ValueError: it is none, or larger than any image that is read.
    """
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise AnnotationError(f"width and height must be integers from 1 up, got {width!r:.20} and {height!r:.20}")
    check_size(width, height)
    return height, width
