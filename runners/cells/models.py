"""From a cell to its model, its vanilla twin, and what a row says of its identity."""

import functools
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ablations.study import Cell
from attention_zoo import LAYOUTS, create_model, resolve
from attention_zoo.hosts.pyramid import Pyramid
from runners.cells.registered import unpack
from runners.cells.source import code_of


def build_model(cell: Cell, num_classes: int = 10, drop_path_rate: float = 0.0) -> Pyramid:
    """Build the model of a cell on the CPU, its weights drawn from the cell's seed alone.

    Raises:
        ValueError: the configuration does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        settings: dict[str, Any] = dict(cell.settings)
        return create_model(
            cell.layout, attn=cell.attn, num_classes=num_classes, drop_path_rate=drop_path_rate, **settings
        )


def build_packed(mechanism: bytes, cell: Cell) -> Pyramid:
    """Build the model of a cell in a process that knows its mechanism only as `registered.pack` wrote it."""
    unpack(mechanism)
    return build_model(cell)


def counted_cell(cell: Cell) -> Cell:
    """Return the cell in the implementation that its mechanism's `macs` describes; most have no other."""
    impls, settings = resolve(cell.attn).impls, dict(cell.settings)
    settings.pop("impl", None)
    if len(impls) > 1:
        settings["impl"] = impls[0]
    return replace(cell, settings=tuple(sorted(settings.items())))


def build_baseline(cell: Cell, num_classes: int = 10) -> Pyramid:
    """Build the vanilla model of the same layout, as it is by default."""
    return build_model(replace(cell, attn="vanilla", settings=()), num_classes)


class Description(NamedTuple):
    """What follows from a cell alone: columns of its row, what its layout cannot show of the mechanism, and its cost.

    `training_macs` are multiply-adds of one image forward and backward in closed form; backward costs two forwards.
    """

    columns: Mapping[str, Any]
    notes: tuple[str, ...]
    training_macs: int


def describe(cell: Cell) -> Description:
    """Describe a cell without its weights.

    Raises:
        ValueError: the configuration does not fit the layout at this resolution.
    """
    mechanism: Any = resolve(cell.attn)
    return _describe(mechanism, cell.attn, cell.settings, cell.layout, cell.height_px, cell.width_px)


@functools.cache
def _describe(
    # only to tell descriptions apart: a notebook may register another class under the same name
    mechanism: Hashable,
    attn: str,
    settings: tuple[tuple[str, Any], ...],
    layout: str,
    height: int,
    width: int,
) -> Description:
    with torch.device("meta"):
        model = create_model(layout, attn=attn, num_classes=1, **dict(settings))
    columns: dict[str, Any] = {
        "depths": "-".join(map(str, LAYOUTS[layout].depths)),
        **model.describe(height, width),
    }
    topk = dict(settings).get("topk", getattr(resolve(attn).Config(), "topk", None))
    if isinstance(topk, str):
        columns["topk_schedule"] = topk
    elif topk is not None:
        columns["topk"] = topk
    columns["attention_hash"] = code_of(attn).hash
    return Description(columns, tuple(model.notes()), 3 * model.macs(height, width).total)


def keys_per_query(model: Pyramid, height_px: int, width_px: int) -> float:
    """Mean number of keys that a token's query meets, over the tokens of all blocks; what padding adds included.

    That is the attention core's multiply-adds over those of one key.
    """
    pairs = tokens = 0.0
    for mixers, (height, width) in zip(model.mixers(), model.layout.maps(height_px, width_px), strict=True):
        pairs += sum(mixer.macs(height, width).core / mixer.core_macs(1, 1) for mixer in mixers)
        tokens += len(mixers) * height * width
    return pairs / tokens


def first_core_macs(model: Pyramid, height_px: int, width_px: int) -> int:
    """Multiply-adds of the attention core and its routing in the blocks of the first stage, for one image.

    This is the part whose growth with the map tells mechanisms apart; later stages have smaller maps, and the last
    one full attention whatever the mechanism.
    """
    height, width = model.layout.maps(height_px, width_px)[0]
    parts = [mixer.macs(height, width) for mixer in model.mixers()[0]]
    return sum(part.core + part.routing for part in parts)
