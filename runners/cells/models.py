"""From a cell to its model, its vanilla twin, and what a row says of its identity."""

import functools
from dataclasses import replace
from typing import Any

import torch

from ablations.study import Cell
from attention_zoo import LAYOUTS, create_model, resolve
from attention_zoo.hosts.pyramid import Pyramid


def build_model(cell: Cell, num_classes: int = 10) -> Pyramid:
    """Build the model of a cell on the CPU, its weights drawn from the cell's seed alone.

    Raises:
        ValueError: the configuration does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        settings: dict[str, Any] = dict(cell.settings)
        return create_model(cell.layout, attn=cell.attn, num_classes=num_classes, **settings)


def counted_cell(cell: Cell) -> Cell:
    """Return the cell in the implementation that its mechanism's `macs` describes; most have no other."""
    impls, settings = resolve(cell.attn).impls, dict(cell.settings)
    settings.pop("impl", None)
    if len(impls) > 1:
        settings["impl"] = impls[0]
    return replace(cell, settings=tuple(sorted(settings.items())))


def build_baseline(cell: Cell, num_classes: int = 10) -> Pyramid:
    """Build the vanilla model of the same layout, as it is by default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        return create_model(cell.layout, attn="vanilla", num_classes=num_classes)


def identity(cell: Cell) -> dict[str, Any]:
    """Columns that tell a row apart and follow from the cell alone: top-k, regions, window, padding, depths.

    Raises:
        ValueError: the configuration does not fit the layout at this resolution.
    """
    return {**_identity(cell.attn, cell.settings, cell.layout, cell.height_px, cell.width_px)}


@functools.cache
def _identity(attn: str, settings: tuple[tuple[str, Any], ...], layout: str, height: int, width: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = create_model(layout, attn=attn, num_classes=1, **dict(settings))
    cls = resolve(attn)
    columns: dict[str, Any] = {
        "depths": "-".join(map(str, LAYOUTS[layout].depths)),
        "sdpa_backend": "auto",
        **model.describe(height, width),
    }
    topk = dict(settings).get("topk", getattr(cls.Config(), "topk", None))
    if isinstance(topk, str):
        columns["topk_schedule"] = topk
    elif topk is not None:
        columns["topk"] = topk
    return columns


def first_core_macs(model: Pyramid, height_px: int, width_px: int) -> int:
    """Multiply-adds of the attention core and its routing in the blocks of the first stage, for one image.

    This is the part whose growth with the map tells mechanisms apart; later stages have smaller maps, and the last
    one full attention whatever the mechanism.
    """
    height, width = model.layout.maps(height_px, width_px)[0]
    parts = [mixer.macs(height, width) for mixer in model.mixers()[0]]
    return sum(part.core + part.routing for part in parts)


@functools.cache
def notes(attn: str, settings: tuple[tuple[str, Any], ...], layout: str) -> tuple[str, ...]:
    """Say what of a mechanism a layout cannot show."""
    with torch.device("meta"):
        return tuple(create_model(layout, attn=attn, num_classes=1, **dict(settings)).notes())


@functools.cache
def training_macs(attn: str, settings: tuple[tuple[str, Any], ...], layout: str, height: int, width: int) -> int:
    """Multiply-adds of one image forward and backward, in closed form: backward costs two forwards."""
    with torch.device("meta"):
        return 3 * create_model(layout, attn=attn, num_classes=1, **dict(settings)).macs(height, width).total
