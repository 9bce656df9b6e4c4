"""What a picture is to show: model, image, query, blocks and heads of each stage; checked before anything is drawn."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runners.pictures.photos import Shown, open_image

if TYPE_CHECKING:
    from attention_zoo.hosts.pyramid import Pyramid

MOST_BLOCKS, MOST_HEADS = 4, 4
"""Rows and heads of a figure unless they are asked for; evenly spaced, first and last among them."""

Numbers = tuple[int, ...] | None
"""Stages, blocks or heads, from 1: empty for all of them, None for a choice."""

Selection = dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
"""Blocks and heads to draw at each stage."""


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """What a picture is asked to show.

    `resolution` is (height, width) in pixels, None the model's own; `query` (y, x) in pixels of that, None the middle.
    """

    model: str
    out: Path
    arch: str | None = None
    attn: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    image: str = "china"
    resolution: tuple[int, int] | None = None
    query: tuple[int, int] | None = None
    stage: tuple[int, ...] = ()
    block: Numbers = None
    head: Numbers = None


class Prepared(NamedTuple):
    """The model, what it is in words, the image as it is shown, and the queried pixel (y, x)."""

    model: "Pyramid"
    label: str
    image: Shown
    query: tuple[int, int]


def prepare(request: PictureRequest) -> Prepared:
    """Check everything that was asked for, build the model and open the image.

    Raises:
        ValueError: it cannot be done; one message that names the flag.
    """
    try:
        source = open_image(request.image)
    except ValueError as error:
        raise ValueError(f"--image: {error}") from error
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"--out {request.out} is a file; give a folder")
    attn = request.attn or "bra"
    for name, value in request.settings.items():
        owner = name.rpartition(".")[0]
        if owner not in ("", attn, attn.partition(":")[2]):
            raise ValueError(f"--set {name}={value}: the mechanism is {attn}, not {owner}")

    # torch takes seconds to import; nothing above this line needs it
    from runners.cells.weights import load_model

    config = {name.rpartition(".")[2]: value for name, value in request.settings.items()}
    try:
        model, label = load_model(request.model, arch=request.arch, attn=request.attn, config=config)
    except ValueError as error:
        # the names of all weights of a wrong checkpoint would fill the screen
        raise ValueError(f"--model: {textwrap.shorten(str(error), 600, placeholder=' ...')}") from error
    side = model.layout.resolution_px
    height, width = request.resolution or (side, model.layout.width_px or side)
    model.describe(height, width)
    y, x = request.query or (height // 2, width // 2)
    if y >= height or x >= width:
        raise ValueError(
            f"--query {y},{x} is outside the image, which is {height}x{width} px (H x W) as shown: "
            f"Y is 0 to {height - 1}, X is 0 to {width - 1}"
        )
    return Prepared(model, label, source.at(height, width), (y, x))


def evenly(count: int, most: int) -> tuple[int, ...]:
    """Choose at most `most` of the numbers 1 to `count`, the first and the last among them."""
    if count <= most:
        return tuple(range(1, count + 1))
    return tuple(1 + round(i * (count - 1) / (most - 1)) for i in range(most))


def _choose(flag: str, asked: Numbers, counts: dict[int, int], most: int) -> dict[int, tuple[int, ...]]:
    """Numbers to draw at each stage, those that it has; `counts` says how many that are."""
    if asked is None:
        return {stage: evenly(count, most) for stage, count in counts.items()}
    absent = [number for number in asked if number > max(counts.values())]
    if absent:
        have = ", ".join(f"1 to {count} at stage {stage}" for stage, count in counts.items())
        raise ValueError(f"{flag} {','.join(map(str, absent))}: there are {have}")
    return {stage: tuple(n for n in asked or range(1, count + 1) if n <= count) for stage, count in counts.items()}


def select(model: "Pyramid", request: PictureRequest) -> Selection:
    """Blocks and heads to draw at each stage; a stage that has none of them is left out.

    Raises:
        ValueError: a stage, block or head that is not there.
    """
    from runners.pictures.panels import MEAN

    stages = dict(enumerate(model.mixers(), start=1))
    absent = [stage for stage in request.stage if stage not in stages]
    if absent:
        raise ValueError(f"--stage {','.join(map(str, absent))}: there are stages 1 to {len(stages)}")
    stages = {stage: stages[stage] for stage in request.stage or stages}
    heads = {stage: mixers[0].num_heads for stage, mixers in stages.items()}
    chosen_blocks = _choose("--block", request.block, {s: len(mixers) for s, mixers in stages.items()}, MOST_BLOCKS)
    chosen_heads = _choose("--head", request.head, heads, MOST_HEADS)
    selected = {}
    for stage in stages:
        mean = (MEAN,) if not request.head and heads[stage] > 1 else ()
        if chosen_blocks[stage] and chosen_heads[stage]:
            selected[stage] = (chosen_blocks[stage], (*mean, *chosen_heads[stage]))
    if not selected:
        raise ValueError("no stage has both such a --block and such a --head")
    return selected
