"""What the panels of a picture hold: the attention of one query in a head, and what is outlined or marked with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_zoo.attention_maps import Reading, read
from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.regions import coordinates
from runners.pictures.photos import Shown

MEAN = 0
"""In place of a head, which count from 1: the mean of all."""

REGIONS, KEYS = "routed regions", "keys that the query reads directly"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A model that looks at an image with one query, (y, x) in pixels; `inputs` are those of its mixers."""

    model: Pyramid
    inputs: Sequence[Sequence[Tensor]]
    image: Shown
    query: tuple[int, int]
    label: str
    versions: str

    def token_px(self, stage: int) -> int:
        """Side of a token in pixels; stages count from 1."""
        return self.model.layout.stem_px * int(2 ** (stage - 1))

    def token(self, stage: int) -> tuple[int, int]:
        """Row and column of the token that holds the query; a map that rounds down may lack the last ones."""
        height, width = self.inputs[stage - 1][0].shape[1:3]
        row, col = (at // self.token_px(stage) for at in self.query)
        return min(row, height - 1), min(col, width - 1)

    def reading(self, stage: int, block: int) -> Reading:
        """What the query reads in one block."""
        x = self.inputs[stage - 1][block - 1]
        row, col = self.token(stage)
        with torch.no_grad():
            return read(self.mixer(stage, block), x, torch.tensor([row * x.shape[2] + col]))

    def mixer(self, stage: int, block: int) -> Attention:
        """Token mixer of a block."""
        return self.model.mixers()[stage - 1][block - 1]

    def describe(self, stage: int, block: int) -> str:
        """Mechanism of a block and what it chooses on its map."""
        height, width = self.inputs[stage - 1][0].shape[1:3]
        mixer = self.mixer(stage, block)
        geometry = {name: value for name, value in mixer.geometry(height, width).items() if name != "impl" and value}
        words = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in geometry.items()}
        chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in words.items())
        return type(mixer).__name__ + (f" ({chosen})" if chosen else "")


@dataclass(frozen=True)
class Panel:
    """One head of one block, or the mean of its heads, for the query of a scene.

    `response` is its attention over the tokens, (rows, cols); `labels` number what is outlined, -1 elsewhere. With
    `points`, (groups, Ns, 2) as (row, column) in tokens, there are `weights` of these, (Ns,), alike for all groups.
    """

    title: str
    token_px: int
    token: tuple[int, int]
    response: Floats
    labels: NDArray[np.int64]
    outlines: str
    points: Floats | None = None
    weights: Floats | None = None


def make_panels(scene: Scene, stage: int, block: int, heads: Sequence[int]) -> list[Panel]:
    """Compute the panels of a block; a head may be `MEAN`."""
    reading = scene.reading(stage, block)
    points = None if reading.points is None else reading.points[0].double().numpy()
    return [
        Panel(
            title=f"block {block}, {'mean' if head == MEAN else f'head {head}'}",
            token_px=scene.token_px(stage),
            token=scene.token(stage),
            response=_of_head(head, reading.tokens[0, :, 0]),
            labels=outlined(scene, stage, block, head, reading),
            outlines=REGIONS if reading.regions is not None else KEYS,
            points=points,
            weights=None if points is None else _of_head(head, reading.weights[0, :, 0]),
        )
        for head in heads
    ]


def _of_head(head: int, values: Tensor) -> Floats:
    """Values of one head, or the mean of all: (heads, ...) -> (...)."""
    chosen: Floats = (values.mean(0) if head == MEAN else values[head - 1]).double().numpy()
    return chosen


def outlined(scene: Scene, stage: int, block: int, head: int, reading: Reading) -> NDArray[np.int64]:
    """Number what is outlined on a map, -1 elsewhere, (rows, cols): the routed regions of BRA, else the keys allowed.

    Nothing where every key is allowed. For the mean of the heads: what any of them reads.
    """
    mixer, x = scene.mixer(stage, block), scene.inputs[stage - 1][block - 1]
    _, height, width, _ = x.shape
    if isinstance(mixer, BRA) and reading.regions is not None:
        region = mixer.partition(height, width).locate(*coordinates(height, width, x.device))
        regions = reading.regions[0, :, 0]  # (1 or heads, topk)
        routed = regions if head == MEAN else regions[(head - 1) % len(regions)]
        labels = region.where(torch.isin(region, routed), -1)
    elif type(mixer).connectivity is Attention.connectivity:
        # a mechanism from outside that has a reference of its own need not tell
        labels = torch.full((height * width,), -1)
    else:
        row, col = scene.token(stage)
        with torch.no_grad():
            allowed = mixer.connectivity(x, torch.tensor([row * width + col]))[0, :, 0]  # (1 or heads, N)
        reads = allowed.any(0) if head == MEAN else allowed[(head - 1) % len(allowed)]
        labels = torch.zeros_like(reads, dtype=torch.int64).where(reads & ~reads.all(), -1)
    numbered: NDArray[np.int64] = labels.reshape(height, width).numpy()
    return numbered
