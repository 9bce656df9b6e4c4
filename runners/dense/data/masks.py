"""Masks of COCO: polygons, and run lengths that count the pixels down the columns, as a list or packed in a string."""

from typing import Any

import numpy as np

from runners.dense.data.sources import AnnotationError, Bytes

MAX_MASK_BYTES = 1 << 31
"""Masks of one image take that much at most, a byte for each pixel of each object."""
BITS = 5
"""Of a number in each character of a packed string."""


def check_segmentation(segmentation: object, height: int, width: int) -> None:
    """Check the kind and the size of a segmentation, not yet its numbers.

    Raises:
        ValueError: it is neither a list of polygons nor run lengths of this size.
    """
    if isinstance(segmentation, list):
        if all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation):
            return
        raise AnnotationError("a polygon must be a list of x and y of at least three corners")
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), (list, str)):
        raise AnnotationError("segmentation must be a list of polygons, or an object with size and counts")
    if (size := segmentation.get("size")) != [height, width]:
        raise AnnotationError(f"its mask has the size {str(size)[:40]} and its image [{height}, {width}]")


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bytes:
    """Mask (height, width) of a segmentation that was checked, 0 or 1.

    Raises:
        ValueError: run lengths that do not fill the image, or corners far outside of it.
    """
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, height, width)
    counts = segmentation["counts"]
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not all(type(run) is int and 0 <= run <= height * width for run in runs) or sum(runs) != height * width:
        raise AnnotationError(f"run lengths of a mask do not fill its {height} x {width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _unpacked(text: str) -> list[int]:
    """Run lengths of a packed string: 5 bits and a sign to a character, from the third on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 8 * BITS:
            raise AnnotationError("run lengths of a mask are no packed string")
        value |= (code & 31) << shift
        shift += BITS
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise AnnotationError("run lengths of a mask are cut off")
    return runs


def _of_polygons(polygons: list[list[float]], height: int, width: int) -> Bytes:
    from faster_coco_eval import mask

    if not polygons:
        return np.zeros((height, width), dtype=np.uint8)
    # a side takes memory for each pixel that it crosses
    low, high = -max(height, width), 2 * max(height, width)
    for polygon in polygons:
        if strange := [x for x in polygon if type(x) not in (int, float) or not low <= x <= high]:
            raise AnnotationError(
                f"corners of a polygon must be numbers in or near its image of {width} x {height} px, got "
                f"{str(strange[0])[:40]}"
            )
    joined: Bytes = mask.decode(mask.merge(mask.frPyObjects([[float(x) for x in p] for p in polygons], height, width)))
    return joined
