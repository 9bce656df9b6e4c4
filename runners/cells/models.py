"""From a cell to its model, what it is compared with, and what a row says of its identity."""

import functools
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from ablations.study import Cell
from attention_zoo import LAYOUTS, Attention, create_model, resolve
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.layouts import STL
from attention_zoo.published.models import PUBLISHED
from runners.cells.named import create_named, is_rival, macs_on_meta
from runners.cells.registered import unpack
from runners.cells.source import code_of, code_of_cell
from runners.cells.task_data import CLASSIFY
from runners.cells.tasks import published_number

if TYPE_CHECKING:
    from attention_zoo.dense import Features

ROUTED = tuple(name for name in PUBLISHED if name.startswith("biformer"))
"""Published models with a number of regions."""

COST_CLASSES = {"classify": 10, "segment": 150, "detect": 80, "instance": 80}
"""Classes of a model whose costs are measured: of dense tasks those of ADE20K and COCO."""


def build_model(cell: Cell, num_classes: int | None = None, drop_path_rate: float = 0.0) -> nn.Module:
    """Build the model of a cell on the CPU, its weights drawn from the cell's seed alone.

    A `Pyramid` or one of timm's for images as a whole, a `DenseModel` for the other tasks. Without `num_classes` it is
    for measuring costs.

    Raises:
        ValueError: the configuration does not fit.
        Unsupported: timm's model takes no images of this size.
    """
    num_classes = COST_CLASSES[cell.task] if num_classes is None else num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        if cell.task != CLASSIFY:
            from attention_zoo.dense import create_dense  # a second of torchvision, which classification does without

            return create_dense(
                cell.task, cell.head, _backbone(cell, drop_path_rate), num_classes, **dict[str, Any](cell.head_settings)
            )
        if cell.model:
            return create_named(cell.model, num_classes, cell.height_px, cell.width_px, drop_path_rate)
        settings: dict[str, Any] = dict(cell.settings)
        return create_model(
            cell.layout, attn=cell.attn, num_classes=num_classes, drop_path_rate=drop_path_rate, **settings
        )


def _backbone(cell: Cell, drop_path_rate: float) -> "Features":
    from attention_zoo.dense import create_features

    if cell.attn:
        settings: dict[str, Any] = dict(cell.settings)
        return create_features(cell.layout, attn=cell.attn, drop_path_rate=drop_path_rate, **settings)
    regions = published_number(cell.task, cell.height_px, cell.width_px) if cell.model in ROUTED else None
    return create_features(cell.model, drop_path_rate=drop_path_rate, regions=regions)


def build_packed(mechanism: bytes, cell: Cell) -> nn.Module:
    """Build the model of a cell in a process that knows its mechanism only as `registered.pack` wrote it."""
    unpack(mechanism)
    return build_model(cell)


def build_counted(cell: Cell) -> nn.Module | None:
    """Build the model of a cell in the implementations that `macs` describes; None if those are what runs."""
    if not cell.model:
        counted = counted_cell(cell)
        return None if counted == cell else build_model(counted)
    model = build_model(cell)
    others = [mixer for mixer in _mixers(model) if len(mixer.impls) > 1 and mixer.impl != mixer.impls[0]]
    for mixer in others:
        mixer.impl = mixer.impls[0]
    return model if others else None


def _mixers(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def counted_cell(cell: Cell) -> Cell:
    """Return the cell in the implementation that its mechanism's `macs` describes; most have no other."""
    impls, settings = resolve(cell.attn).impls, dict(cell.settings)
    settings.pop("impl", None)
    if len(impls) > 1:
        settings["impl"] = impls[0]
    return replace(cell, settings=tuple(sorted(settings.items())))


def build_baseline(cell: Cell, num_classes: int | None = None) -> nn.Module:
    """Build what a cell is compared with: its `baseline`, or vanilla by default, in its layout; of models in `stl`."""
    if cell.baseline:
        return build_model(replace(cell, attn="", layout="", settings=(), model=cell.baseline), num_classes)
    return build_model(
        replace(cell, attn="vanilla", layout=cell.layout or STL.name, settings=(), model=""), num_classes
    )


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
    if cell.task == CLASSIFY:
        return _describe_network(cell)
    found = _describe_network(replace(cell, task=CLASSIFY, head="", head_settings=()))
    head = _head_macs(cell.task, cell.head, cell.head_settings, cell.layout, cell.model, cell.height_px, cell.width_px)
    return found._replace(training_macs=found.training_macs + 3 * head)


@functools.cache
def _head_macs(
    task: str, head: str, head_settings: tuple[tuple[str, Any], ...], layout: str, model: str, height: int, width: int
) -> int:
    """Multiply-adds of a head; of a layout its maps are the same around any mechanism."""
    attn = "" if model else "vanilla"
    given = {"task": task, "head": head, "head_settings": head_settings, "layout": layout, "model": model}
    with torch.device("meta"):
        built: Any = build_model(Cell(**cast(Any, given), attn=attn, height_px=height, width_px=width))
    macs: int = built.head_macs(height, width)
    return macs


def _describe_network(cell: Cell) -> Description:
    if cell.model:
        return _describe_model(cell)
    mechanism: Any = resolve(cell.attn)
    return _describe(mechanism, cell.attn, cell.settings, cell.layout, cell.height_px, cell.width_px)


def _describe_model(cell: Cell) -> Description:
    columns: dict[str, Any] = {"attention_hash": code_of_cell(cell).hash}
    if is_rival(cell.model):
        macs = macs_on_meta(cell.model, cell.height_px, cell.width_px)
        return Description(columns, (), 3 * (macs or 0))
    with torch.device("meta"):
        model = create_model(cell.model, num_classes=1)
    columns |= {"depths": "-".join(map(str, model.layout.depths)), **model.describe(cell.height_px, cell.width_px)}
    return Description(columns, (), 3 * model.macs(cell.height_px, cell.width_px).total)


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
