"""A colour for every class that people with any vision can tell apart, and layers of such colours over photographs."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.dense.losses import IGNORE

Floats = NDArray[np.float64]

FIRST = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette without its black, which is lost on dark photographs."""
LIGHTNESS = (0.4, 0.94)
"""Of further colours, Oklab: neither lost on black nor on white."""
LEVELS = 9
"""Of each channel of the grid that further colours are chosen from."""

OPACITY = 0.62
"""Of classes over a photograph, which is turned grey first so that its own colours pass for no class."""
MASK_OPACITY = 0.45
"""Of the masks of objects, which lie over a photograph in its colours."""
STRIPE_PX = 6

# protanopia and deuteranopia as linear maps of linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009
_VISIONS = (
    np.eye(3),
    np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]], np.float64
    ),
    np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]], np.float64
    ),
)
# Oklab, in which blues are as far apart as they look: Ottosson, "A perceptual color space for image processing", 2020
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@cache
def class_colours(count: int) -> tuple[str, ...]:
    """Return colours of classes 0 .. count - 1; those of the first classes are the same for any count.

    After Okabe and Ito's, each is the one of a grid over RGB that lies farthest from all before, as seen with the
    vision with which it is nearest. After some hundreds they begin anew.
    """
    steps = np.linspace(0, 1, LEVELS)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    light = _oklab(grid)[:, 0]
    grid = grid[(light >= LIGHTNESS[0]) & (light <= LIGHTNESS[1])]
    seen = np.stack([_oklab(grid, vision) for vision in _VISIONS], 1)  # (candidates, visions, 3)
    chosen = [rgb(colour) for colour in FIRST]
    nearest = np.full(len(grid), np.inf)
    for number in range(min(count, len(FIRST) + len(grid)) - 1):
        last = np.stack([_oklab(chosen[number][None], vision)[0] for vision in _VISIONS])
        nearest = np.minimum(nearest, np.linalg.norm(seen - last, axis=-1).min(1))
        if number + 1 >= len(chosen):
            chosen.append(grid[nearest.argmax()])
    names = [_name(colour) for colour in chosen]
    return tuple(names[number % len(names)] for number in range(count))


def rgb(colour: str) -> Floats:
    """Red, green and blue, 0 to 1, of `#RRGGBB`."""
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], np.float64) / 255


def paint_classes(pixels: Floats, labels: NDArray[Any], num_classes: int) -> Floats:
    """Lay classes (H, W) over a photograph (H, W, 3) in 0 .. 1; what is ignored becomes dark and striped."""
    palette = np.stack([rgb(colour) for colour in class_colours(num_classes)])
    grey = (pixels @ np.array((0.299, 0.587, 0.114)))[..., None]
    is_class = (labels >= 0) & (labels < num_classes)
    colours = palette[np.where(is_class, labels, 0)]
    painted = (1 - OPACITY) * grey + OPACITY * colours
    height, width = labels.shape
    stripes = 0.16 + 0.2 * ((np.arange(height)[:, None] + np.arange(width)) // STRIPE_PX % 2)
    ignored: Floats = np.where(is_class[..., None], painted, stripes[..., None] + 0.15 * grey)
    return ignored


def paint_masks(pixels: Floats, masks: NDArray[Any], colours: list[str]) -> Floats:
    """Lay masks (N, H, W), each in its colour, over a photograph (H, W, 3), the first on top."""
    painted = pixels.copy()
    for mask, colour in list(zip(masks, colours, strict=True))[::-1]:
        inside = mask.astype(bool)
        painted[inside] = (1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * rgb(colour)
    return painted


def occurring(labels: NDArray[Any]) -> list[int]:
    """Classes of a map, without what is ignored."""
    return [int(label) for label in np.unique(labels) if label != IGNORE]


def _name(colour: Floats) -> str:
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in colour)


def _oklab(colours: Floats, vision: Floats = _VISIONS[0]) -> Floats:
    """Oklab coordinates of sRGB colours (N, 3), as somebody of that vision sees them."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt((linear @ vision.T).clip(0, 1) @ _TO_CONES.T)
    seen: Floats = cones @ _TO_OKLAB.T
    return seen
