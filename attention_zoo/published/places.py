"""Where each tensor of a published class lives in the zoo's counterpart, and how one becomes the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid, Stages
from attention_zoo.layouts import Layout
from attention_zoo.published.reader import Reader


@dataclass(frozen=True)
class Official:
    """An official class by its name, `family.Class`, and what decides how it stores its weights.

    `size` is the height and width of the map, for masks of shifted windows. `heads_first` and `tf_table` are MaxViT's
    order of q, k, v and heads, and the kind of its table of biases. `branches` is CSWin's.
    """

    name: str
    size: tuple[int, int] | None = None
    heads_first: bool = False
    tf_table: bool = False
    branches: int = 2


@dataclass(frozen=True)
class Place:
    """Official tensors and the one of the zoo that holds them; without that, `derived` makes them, or they are unused.

    Derived tensors, such as index tables and masks, follow from the configuration.
    """

    official: tuple[str, ...]
    ours: str | None
    to_ours: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    to_official: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    derived: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class MixerClass:
    """A published token mixer: how the zoo's counterpart is built of its arguments, and where its tensors live."""

    build: Callable[[Reader], tuple[Attention, Official]]
    places: Callable[[Any, Official], Iterator[Place]]


@dataclass(frozen=True)
class ModelClass:
    """A published model: its layout and token mixers by its arguments, and where its tensors live in that pyramid."""

    build: Callable[[Reader], tuple[Layout, Stages]]
    places: Callable[[Pyramid], Iterator[Place]]


def under(places: Iterable[Place], official: str, ours: str) -> Iterator[Place]:
    """Put places of a part under its names in the whole."""
    for place in places:
        names = tuple(official + name for name in place.official)
        yield replace(place, official=names, ours=None if place.ours is None else ours + place.ours)


def same(module: nn.Module | None, official: str, ours: str, *, pointwise: bool = False) -> Iterator[Place]:
    """All tensors of a module under two names; `pointwise`: the official matrices are 1 x 1 convolutions."""
    for name, tensor in () if module is None else module.state_dict().items():
        names = (f"{official}.{name}",), f"{ours}.{name}"
        if pointwise and tensor.dim() == 2:
            yield Place(*names, lambda tensors: tensors[0].flatten(1), lambda t: [t[:, :, None, None]])
        else:
            yield Place(*names)


def joined(modules: list[Iterator[Place]], rows: Sequence[int] | None = None) -> Iterator[Place]:
    """Several official modules, whose rows are stacked in one of the zoo's: given the places of each as if alone.

    `rows` of each; by default all have as many.
    """
    for places in zip(*modules, strict=True):
        first = places[0]

        def to_ours(tensors: list[Tensor], first: Place = first) -> Tensor:
            return torch.cat([first.to_ours([tensor]) for tensor in tensors])

        def to_official(tensor: Tensor, first: Place = first, count: int = len(places)) -> list[Tensor]:
            parts = tensor.chunk(count) if rows is None else tensor.split(list(rows))
            return [official for part in parts for official in first.to_official(part)]

        yield Place(tuple(name for place in places for name in place.official), first.ours, to_ours, to_official)


def projections(m: Attention, about: Official, qkv: str, proj: str, *, pointwise: bool = False) -> Iterator[Place]:
    """Projections and LePE, as most token mixers have them; `qkv` and `proj` are the official names."""
    yield from same(m.qkv, qkv, "qkv", pointwise=pointwise)
    yield from same(m.proj, proj, "proj", pointwise=pointwise)
    yield from same(m.lepe, "lepe", "lepe")
