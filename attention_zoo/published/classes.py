"""The table of published classes: the zoo's counterpart of each, and where its weights live."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.published import axial, biformer, crisscross, crossformer, cswin, dat, maxvit, natten, pvt, swin
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place
from attention_zoo.published.reader import MIXER_MOOT, MODEL_MOOT, Reader

_FAMILIES = (biformer, crossformer, cswin, dat, maxvit, swin)
_MIXERS_ALONE = (axial, crisscross, natten, pvt)
MIXERS: dict[str, MixerClass] = {
    name: mixer for family in (*_FAMILIES, *_MIXERS_ALONE) for name, mixer in family.MIXERS.items()
}
MODELS: dict[str, ModelClass] = {name: model for family in _FAMILIES for name, model in family.MODELS.items()}


def counterpart(official: str, config: Mapping[str, Any]) -> tuple[Attention, Official]:
    """Build the counterpart of a published token mixer from {"ctor": arguments, "H": ..., "W": ...}, map in tokens.

    Raises:
        ValueError: an unknown class, or arguments without a counterpart; `NotAMixer` if with these the class changes
            the map or its channels.
    """
    if official not in MIXERS:
        raise ValueError(f"no counterpart of {official!r}; known: {', '.join(sorted(MIXERS))}")
    return Reader(official, config, MIXER_MOOT).build(MIXERS[official].build)


def counterpart_model(official: str, config: Mapping[str, Any]) -> tuple[Pyramid, Official]:
    """Build the counterpart of a published model from {"ctor": arguments, "H": ..., "W": ...}, images in pixels.

    Raises:
        ValueError: an unknown class, or arguments without a counterpart.
    """
    if official not in MODELS:
        raise ValueError(f"no counterpart of {official!r}; known: {', '.join(sorted(MODELS))}")

    def make(read: Reader) -> Pyramid:
        layout, stages = MODELS[official].build(read)
        return Pyramid(layout, stages, read("num_classes", 1000))

    return Reader(official, config, MODEL_MOOT).build(make), Official(official)


def places_of(module: nn.Module, official: Official) -> Iterator[Place]:
    """List where each tensor of a published class lives in its counterpart.

    Raises:
        ValueError: no such class.
    """
    if isinstance(module, Pyramid) and official.name in MODELS:
        return MODELS[official.name].places(module)
    if isinstance(module, Attention) and official.name in MIXERS:
        return MIXERS[official.name].places(module, official)
    known = ", ".join(sorted({*MIXERS, *MODELS}))
    raise ValueError(f"no weights of {official.name!r} for {type(module).__name__}; known: {known}")
