"""Two synthetic tasks that need global context and cost seconds, drawn from scikit-learn's handwritten digits.

The canvas is grey 0.5 and holds a 4x4 grid of cells in random order; a cell is a quarter of the resolution (64 px:
16 px). Three kinds of tile fill them: a digit (8x8 px, bilinearly resized to the cell, white on a colour c: pixel =
c (1 - a) + a), a plain tile of a colour, and grey. Colours are {red, green, blue} x 0.7. Digits of one image differ
in class and in colour. Gaussian noise is added and the image normalised, (x - 0.4) * 2. Ten classes, chance 10 %.

- `digit-vote`: m ~ U{1, 2, 3} digits; plain tiles: 6 of the target's colour, 3 of each other colour present; the rest
  is grey. The label is the digit on the colour that most plain tiles have. A model that reads digits but cannot
  count votes over the image gets mean(1, 1/2, 1/3) = 61.1 %.
- `digit-recall`: always 3 digits and all 3 colours; the top-left cell is plain and shows the cue colour, the other 12
  are grey. The label is the digit on the cue's colour. Without the look-up a reader of digits gets 1/3 = 33.3 %.

`jitter_px` moves the whole grid of each image by U{-j .. j} px in y and in x; what leaves the canvas is cut off,
what is uncovered is grey. Training digits are the first 1400 of RandomState(0).permutation(1797), test digits the
other 397; the test set is 1024 images of a fixed seed, the same scenes at every resolution.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.data.datasets import GRID, HELD_OUT_SHARE

Ints = NDArray[np.int64]
Pixels = NDArray[np.float32]

CELLS = GRID * GRID
GREY = 3  # index into PALETTE, and the colour role of an empty cell
GREY_LEVEL = 0.5
PALETTE = np.array([[0.7, 0, 0], [0, 0.7, 0], [0, 0, 0.7], [GREY_LEVEL] * 3], dtype=np.float32)
TRAIN_DIGITS = 1400
TEST_IMAGES = 1024
# first word of every seed, so that no training step can repeat the test set's draws
TRAIN_STREAM, TEST_STREAM = 0, 1


def tiles(plain: Sequence[int], digits: Sequence[int]) -> list[tuple[int, bool]]:
    """Return (colour role, is digit) of the 16 tiles of a scene, plain ones first; role 0 is the target's colour."""
    grey = CELLS - len(plain) - len(digits)
    return [(role, False) for role in plain] + [(role, True) for role in digits] + [(GREY, False)] * grey


class Rules(NamedTuple):
    """What tells the probes apart: equally likely sets of tiles, and whether the first tile keeps the first cell."""

    scenes: list[list[tuple[int, bool]]]
    cued: bool
    ceiling_percent: float


RULES = {
    "digit-vote": Rules(
        [tiles([0] * 6 + [1] * 3 * (m > 1) + [2] * 3 * (m > 2), range(m)) for m in (1, 2, 3)],
        cued=False,
        ceiling_percent=100 * (1 + 1 / 2 + 1 / 3) / 3,
    ),
    "digit-recall": Rules([tiles([0], range(3))], cued=True, ceiling_percent=100 / 3),
}


class Digits(NamedTuple):
    """Digit images sorted by class, (n, 8, 8) in [0, 1], with each class's first index and size, (10,)."""

    images: Pixels
    first: Ints
    size: Ints


class Scene(NamedTuple):
    """What B images show, before any pixel is drawn; cells count row by row."""

    colour: Ints  # (B, 16) index into PALETTE
    glyph: Ints  # (B, 16) index into Digits.images, -1 where there is no digit
    shift: Ints  # (B, 2) px in y, x
    noise_seed: Ints  # (B,)
    label: Ints  # (B,)


def bilinear(inputs: int, outputs: int) -> Pixels:
    """Weights (outputs, inputs) that resize one axis bilinearly, pixels being areas (half-pixel centres)."""
    centres = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    weights: Pixels = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(inputs))).astype(np.float32)
    return weights


def split_digits() -> tuple[Digits, Digits]:
    """Return the training and the test digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = []
    for part in (order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]):
        part = part[np.argsort(bunch.target[part], kind="stable")]
        size = np.bincount(bunch.target[part], minlength=10)
        parts.append(Digits((bunch.images[part] / 16).astype(np.float32), np.cumsum(size) - size, size))
    return parts[0], parts[1]


def divide_digits(digits: Digits) -> tuple[Digits, Digits]:
    """Keep the last tenth of each class apart."""
    held = np.maximum(1, np.round(HELD_OUT_SHARE * digits.size)).astype(np.int64)
    last = np.concatenate(
        [
            np.arange(first + size - n, first + size)
            for first, size, n in zip(digits.first, digits.size, held, strict=True)
        ]
    )
    rest = np.setdiff1d(np.arange(len(digits.images)), last)
    sizes = digits.size - held
    return (
        Digits(digits.images[rest], np.cumsum(sizes) - sizes, sizes),
        Digits(digits.images[last], np.cumsum(held) - held, held),
    )


class DigitProbe:
    """A probe of this module's docstring at one resolution: implements `runners.data.datasets.Data`.

    All but the noise is drawn in NumPy: torch would start a second team of threads in the thread that prefetches,
    and the noise is NumPy's slowest part and a serial operator of torch.
    """

    num_classes = 10
    chance_percent = 10.0
    steps_per_epoch: int | None = None

    def __init__(
        self, name: str, height_px: int, width_px: int, batch_size: int, *, jitter_px: int, noise: float
    ) -> None:
        """Load the digits; where a side is no multiple of 4, the grid is centred in a grey margin."""
        self.rules = RULES[name]
        self.ceiling_percent: float | None = self.rules.ceiling_percent
        self.height_px, self.width_px, self.batch_size = height_px, width_px, batch_size
        self.jitter_px, self.noise = jitter_px, noise
        self.train, self.test = split_digits()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw the training batch of one step: (B, 3, height_px, width_px), (B,)."""
        rng = np.random.default_rng([TRAIN_STREAM, seed, step])
        scene = self._draw(rng, self.train, self.batch_size)
        return self._render(scene, self.train)

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the 1024 test images."""
        scene = self._draw(np.random.default_rng([TEST_STREAM]), self.test, TEST_IMAGES)
        for start in range(0, TEST_IMAGES, self.batch_size):
            part = Scene(*(values[start : start + self.batch_size] for values in scene))
            yield self._render(part, self.test)

    def for_tuning(self) -> "DigitProbe":
        """Test on the training digits that come last in each class and train on the others."""
        part = copy.copy(self)
        part.train, part.test = divide_digits(self.train)
        return part

    def _draw(self, rng: np.random.Generator, digits: Digits, count: int) -> Scene:
        """Choose what `count` images show."""
        classes = rng.random((count, 10)).argsort(1)[:, :3]
        chosen = digits.first[classes] + rng.integers(digits.size[classes])  # (B, 3) one digit per colour role
        colours = rng.random((count, 3)).argsort(1)  # (B, 3) colour of each role
        scenes = np.array(self.rules.scenes)  # (variants, 16, 2)
        place = rng.random((count, CELLS))
        if self.rules.cued:
            place[:, 0] = -1  # the smallest, so that argsort leaves the first tile in the first cell
        order = place.argsort(1)
        variant = rng.integers(len(scenes), size=count)
        role, is_digit = np.moveaxis(scenes[variant[:, None], order], -1, 0)  # (B, 16) each
        pad = np.full((count, 1), GREY)
        return Scene(
            colour=np.take_along_axis(np.hstack([colours, pad]), role, 1),
            glyph=np.where(is_digit, np.take_along_axis(np.hstack([chosen, pad]), role, 1), -1),
            shift=rng.integers(-self.jitter_px, self.jitter_px + 1, size=(count, 2)),
            noise_seed=rng.integers(1 << 32, size=count),
            label=classes[:, 0].copy(),
        )

    def _render(self, scene: Scene, digits: Digits) -> tuple[Tensor, Tensor]:
        """Draw the pixels of a scene and return them with the labels."""
        grid = self._grid(scene, digits)
        images = torch.empty(len(grid), 3, self.height_px, self.width_px)
        corners = np.add(scene.shift, (self.height_px % GRID // 2, self.width_px % GRID // 2))
        generator = torch.Generator()
        drawn = zip(images, grid, corners.tolist(), scene.noise_seed.tolist(), strict=True)
        for image, tiled, (top, left), seed in drawn:
            # a seed per image keeps the test set the same when it is cut into other batches
            image.normal_(GREY_LEVEL, self.noise, generator=generator.manual_seed(seed))
            visible = tiled[:, max(0, -top) : self.height_px - top, max(0, -left) : self.width_px - left]
            top, left = max(0, top), max(0, left)
            image.numpy()[:, top : top + visible.shape[1], left : left + visible.shape[2]] += visible
        pixels = images.numpy()
        pixels -= 0.4
        pixels *= 2
        return images, torch.from_numpy(scene.label)

    def _grid(self, scene: Scene, digits: Digits) -> Pixels:
        """Draw the tiles as differences to grey: (B, 3, 4 * cell height, 4 * cell width)."""
        count, height, width = len(scene.label), self.height_px // GRID, self.width_px // GRID
        grid = np.empty((count, 3, GRID, height, GRID, width), dtype=np.float32)
        colour = PALETTE[scene.colour]  # (B, 16, 3)
        grid[:] = (colour - GREY_LEVEL).swapaxes(1, 2).reshape(count, 3, GRID, 1, GRID, 1)
        image, cell = np.nonzero(scene.glyph >= 0)  # (n,) each
        glyph = digits.images[scene.glyph[image, cell]]
        alpha = (bilinear(8, height) @ glyph @ bilinear(8, width).T)[:, None]  # (n, 1, height, width)
        background = colour[image, cell][:, :, None, None]
        grid[image, :, cell // GRID, :, cell % GRID] = background * (1 - alpha) + alpha - GREY_LEVEL
        return grid.reshape(count, 3, GRID * height, GRID * width)
