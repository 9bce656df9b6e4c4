"""Models that a cell names instead of a mechanism: published ones, and any of timm's as `timm:NAME`, a rival.

No weights are downloaded, nor anything else: a name is one of the lists of this program and of timm.
"""

import functools
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_model
from attention_zoo.published.models import PUBLISHED, RESOLUTION_PX
from attention_zoo.registry import suggest
from runners.machine.failures import Unsupported

TIMM = "timm:"
OURS_IN_TIMM = "zoo_"
"""Prefix of this program's models in timm's registry: cells name them without it."""
CLOSE = 4
"""Names that a message suggests, of the thousand that timm has."""


def _timm() -> Any:
    """Import timm, which takes seconds, and most cells name none of its models."""
    import timm

    return timm


def is_rival(name: str) -> bool:
    """Whether a model is timm's."""
    return name.startswith(TIMM)


def check_model(name: str) -> None:
    """Check that there is a model of this name.

    Raises:
        ValueError: there is none; names near to it are listed.
    """
    if not is_rival(name):
        if name not in PUBLISHED:
            listed = suggest("model", name, sorted(PUBLISHED))
            raise ValueError(f"{listed}; models of timm are written {TIMM}NAME")
        return
    architecture = name.removeprefix(TIMM)
    if architecture.startswith(OURS_IN_TIMM):
        raise ValueError(f"{name} is one of this program's: write {architecture.removeprefix(OURS_IN_TIMM)}")
    if not _timm().is_model(architecture):
        theirs = [known for known in _timm().list_models() if not known.startswith(OURS_IN_TIMM)]
        near = get_close_matches(architecture, theirs, n=CLOSE, cutoff=0.5)
        hint = f"did you mean {', '.join(TIMM + known for known in near)}?" if near else "timm.list_models() has them"
        raise ValueError(f"unknown model {name!r}; {hint}")
    if "." not in architecture:
        return
    try:
        _timm().get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:  # a tag that timm does not have
        raise ValueError(f"unknown model {name!r}: {error}") from error


def own_resolution(name: str) -> tuple[int, int]:
    """Height and width of the images that a model was published for, or that timm runs it on.

    Raises:
        ValueError: no such model.
    """
    check_model(name)
    configuration = _timm().get_pretrained_cfg(name.removeprefix(TIMM)) if is_rival(name) else None
    if configuration is None:
        return RESOLUTION_PX, RESOLUTION_PX
    _, height, width = configuration.input_size
    return height, width


def create_named(name: str, num_classes: int, height_px: int, width_px: int, drop_path_rate: float = 0.0) -> nn.Module:
    """Build a model by its name with random weights, for images of this size.

    A model of timm with parameters for one size alone is built for this one, where its constructor can.

    Raises:
        ValueError: no such model, or one of timm that has no drop path where a rate is given.
        Unsupported: timm's model takes no images of this size, which nothing could tell before.
    """
    check_model(name)
    if not is_rival(name):
        return create_model(name, num_classes=num_classes, drop_path_rate=drop_path_rate)
    model = _create_rival(name, num_classes, height_px, width_px, drop_path_rate)
    if macs_on_meta(name, height_px, width_px) is None:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, height_px, width_px))
        except Exception as error:  # whatever stranger's code raises
            raise Unsupported(f"{name}: {_refusal(name, height_px, width_px, error)}") from error
        model.train()
    return model


def _create_rival(name: str, num_classes: int, height_px: int, width_px: int, drop_path_rate: float = 0.0) -> nn.Module:
    architecture = name.removeprefix(TIMM)
    more: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    build: Callable[..., nn.Module] = functools.partial(
        _timm().create_model, architecture, pretrained=False, num_classes=num_classes, **more
    )
    configuration = _timm().get_pretrained_cfg(architecture)
    size = (height_px, width_px)
    if configuration is None or not configuration.fixed_input_size or size == own_resolution(name):
        return build()
    try:
        return build(img_size=size)
    except TypeError:  # its constructor has no such argument
        return build()


def check_drop_path(name: str) -> None:
    """Check that a model can leave out branches at random, as a recipe with `drop_path` asks.

    Raises:
        ValueError: it is one of timm's that cannot.
    """
    try:
        with torch.device("meta"):
            _create_rival(name, 1, *own_resolution(name), 0.1)
    except TypeError as error:
        raise ValueError(f"{name} has no drop path; set recipe.drop_path=0") from error


@functools.cache
def macs_on_meta(name: str, height_px: int, width_px: int) -> int | None:
    """Multiply-adds of a forward of one image by torch's counter; None of a model that cannot run without its numbers.

    Raises:
        ValueError: the model takes no images of this size.
    """
    try:
        return _macs(name, height_px, width_px)
    except Exception as error:  # whatever stranger's code raises
        try:
            _macs(name, *own_resolution(name))
        except Exception:  # on meta it cannot run at all
            return None
        raise ValueError(_refusal(name, height_px, width_px, error)) from error


def _macs(name: str, height_px: int, width_px: int) -> int:
    with torch.device("meta"), torch.no_grad():
        model = _create_rival(name, 1, height_px, width_px).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, height_px, width_px))
    return int(counter.get_total_flops()) // 2


def _refusal(name: str, height_px: int, width_px: int, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    height, width = own_resolution(name)
    return f"it takes no images of {height_px}x{width_px} px, its own are {height}x{width} px: {reason}"


def version_of(name: str) -> str:
    """What tells the code of a model of timm: the version of timm, and the name."""
    return f"timm {_timm().__version__} {name.removeprefix(TIMM)}"
