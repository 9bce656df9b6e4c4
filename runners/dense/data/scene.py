"""Scenes of handwritten digits, drawn by NumPy: boxes, masks and a semantic map from one draw for each image.

One to `objects` digits of scikit-learn's, classes drawn evenly, each a quarter to a half of the canvas's short side
high, lie anywhere on a grey canvas (0.5) in a light colour, c in [0.75, 1]^3: pixel = grey (1 - a) + c a, where a is
the digit, bilinearly resized. A digit that would cover a fifth of another's box, or be covered so far, is drawn at
another place, up to ten times, and else left out. The mask of a digit is where a > 0.4 and no later digit lies, its box
the smallest around the mask. Noise is added and the image normalised as in the probes, (x - 0.4) * 2.
"""

from typing import NamedTuple

import numpy as np

from runners.data.probes import GREY_LEVEL, Digits, Ints, Pixels, bilinear
from runners.dense.data.sources import Bytes, Objects

DIGITS = tuple(str(digit) for digit in range(10))
INK = 0.4
TRIES = 10
SCENE_MEAN, SCENE_STD = (0.4,) * 3, (0.5,) * 3
"""Of the normalised images, as others have it: (x - mean) / std."""
MOST_COVERED = 0.2
SIDES = (0.25, 0.5)
"""Of a digit, as shares of the short side of the canvas."""


def class_names(task: str) -> tuple[str, ...]:
    """Names of the classes: digits, and before them in segmentation the background."""
    return ("background", *DIGITS) if task == "segment" else DIGITS


class Scene(NamedTuple):
    """Values (3, H, W) float32, the class of each pixel (H, W) with 0 for the background, and objects."""

    image: Pixels
    labels: Bytes
    objects: Objects


def draw_scene(
    rng: np.random.Generator, digits: Digits, height_px: int, width_px: int, *, objects: int, noise: float, number: int
) -> Scene:
    """Draw a scene; every digit of the data is as likely as the others of its class."""
    image = np.full((3, height_px, width_px), GREY_LEVEL, dtype=np.float32)
    owner = np.zeros((height_px, width_px), dtype=np.int64)
    kinds: list[int] = []
    placed: list[tuple[int, int, int, int]] = []
    for _ in range(int(rng.integers(1, objects + 1))):
        kind = int(rng.integers(10))
        alpha = _glyph(rng, digits, kind, min(height_px, width_px))
        colour = rng.uniform(0.75, 1, (3, 1, 1)).astype(np.float32)
        place = _place(rng, alpha.shape, (height_px, width_px), placed)
        if place is None:
            continue
        placed.append(place)
        kinds.append(kind)
        rows, columns = slice(place[0], place[2]), slice(place[1], place[3])
        image[:, rows, columns] += (colour - image[:, rows, columns]) * alpha
        owner[rows, columns][alpha > INK] = len(kinds)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise)
    labels = np.array([0, *(kind + 1 for kind in kinds)])
    return Scene((image - np.float32(0.4)) * 2, labels[owner].astype(np.uint8), _objects(owner, labels, number))


def _glyph(rng: np.random.Generator, digits: Digits, kind: int, short_px: int) -> Pixels:
    """Opacity of a digit, (h, w), cut to its ink."""
    side = int(rng.integers(int(SIDES[0] * short_px), int(SIDES[1] * short_px) + 1))
    which = digits.first[kind] + rng.integers(digits.size[kind])
    weights = bilinear(8, side)
    alpha = weights @ digits.images[which] @ weights.T
    rows, columns = (np.flatnonzero((alpha > INK).any(axis)) for axis in (1, 0))
    cut: Pixels = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cut


def _place(
    rng: np.random.Generator, size: tuple[int, ...], canvas: tuple[int, int], placed: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right of a free place, None if none is found."""
    for _ in range(TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(canvas, size, strict=True))
        box = (top, left, top + size[0], left + size[1])
        if all(_covered(box, other) <= MOST_COVERED for other in placed):
            return box
    return None


def _covered(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of the smaller of two boxes that the other covers."""
    sides = [max(0, min(box[2 + i], other[2 + i]) - max(box[i], other[i])) for i in (0, 1)]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return sides[0] * sides[1] / min(areas)


def _objects(owner: Ints, labels: Ints, number: int) -> Objects:
    """Objects of which a pixel is seen."""
    seen = [place for place in range(1, len(labels)) if (owner == place).any()]
    masks = np.stack([owner == place for place in seen]).astype(np.uint8)
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Objects(
        boxes=np.array(boxes, dtype=np.float64),
        labels=labels[seen].astype(np.int64),
        iscrowd=np.zeros(len(seen), dtype=bool),
        area=masks.sum((1, 2)).astype(np.float64),
        image_id=number,
        masks=masks,
    )
