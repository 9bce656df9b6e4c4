"""The model that is evaluated: by its name, or loaded from a checkpoint; one of the zoo's or of timm's."""

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag
from torch import nn

from attention_zoo import LAYOUTS
from attention_zoo.published.weights import classes_in, load_weights, read_weights
from runners.cells.named import TIMM
from runners.cells.weights import SEED, Identity, load_file, random_model

CROP = 0.875
"""Share of the resized image's side that is kept, by BiFormer's evaluation: 224 of 256 pixels."""
MOST = 400
"""Characters of a message about weights: the names of all of a wrong checkpoint would fill the screen."""


class Opened(NamedTuple):
    """A model in evaluation mode, what it is, how its images are prepared (timm's data config), and its classes."""

    model: nn.Module
    identity: Identity
    data_config: dict[str, Any]
    num_classes: int

    @property
    def resolution_px(self) -> tuple[int, int]:
        """Height and width that it is evaluated at unless another is asked for."""
        _, height, width = self.data_config["input_size"]
        return height, width


class Asked(NamedTuple):
    """Which model is asked for; `num_classes` without a checkpoint."""

    name: str | None
    checkpoint: Path | None
    ema: bool
    attn: str | None
    config: Mapping[str, Any]
    num_classes: int


def open_model(asked: Asked) -> Opened:
    """Build the model that was asked for and load its weights; without a checkpoint they are drawn at random.

    Raises:
        ValueError: an unknown name, settings that do not fit, or a checkpoint that cannot be read or is another's.
    """
    try:
        if asked.name is not None and asked.name.startswith(TIMM):
            return _of_timm(asked, asked.name.removeprefix(TIMM))
        return _of_the_zoo(asked)
    except ValueError as error:
        raise ValueError(textwrap.shorten(str(error), MOST, placeholder=" ...")) from error


def _of_the_zoo(asked: Asked) -> Opened:
    if asked.checkpoint is not None:
        model, identity = load_file(
            asked.checkpoint,
            arch=asked.name,
            attn=asked.attn,
            config=asked.config,
            ema=asked.ema,
            named_by="--model",
        )
    else:
        assert asked.name is not None
        model, identity = random_model(asked.name, attn=asked.attn, config=asked.config, num_classes=asked.num_classes)
    if identity.attn is None and identity.arch in LAYOUTS:
        identity = identity._replace(attn="bra")
    side = model.layout.resolution_px
    prepared = {
        "input_size": (3, side, model.layout.width_px or side),
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": CROP,
        "crop_mode": "center",
    }
    return Opened(model, identity, prepared, _classes(model.num_classes, asked))


def _of_timm(asked: Asked, name: str) -> Opened:
    if asked.attn is not None or asked.config:
        raise ValueError(f"{asked.name} has no mechanism to choose; leave out --attn and --set")
    classifier = _classifier(name)
    state, num_classes = None, asked.num_classes
    if asked.checkpoint is not None:
        state = read_weights(asked.checkpoint, ema=asked.ema).state
        num_classes = classes_in(state, classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = timm.create_model(name, num_classes=_classes(num_classes, asked)).eval()
    if state is not None:
        try:
            load_weights(model, state)
        except ValueError as error:
            raise ValueError(f"{asked.checkpoint} is no checkpoint of {asked.name}: {error}") from error
    # as timm's validate.py: at the size and crop of the published accuracy, where that is not the trained size
    prepared: dict[str, Any] = resolve_model_data_config(model, use_test_size=True)
    return Opened(model, Identity(f"{TIMM}{name}", None, {}), prepared, num_classes)


def _classifier(name: str) -> str:
    """Module of the classifier of a model of timm's, the first where it has several.

    Raises:
        ValueError: there is no such model, or none of that tag.
    """
    base, _ = split_model_name_tag(name)
    if not is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no model {name!r}{hint}; all: python -c 'import timm; print(*timm.list_models())'")
    try:
        known = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"model {TIMM}{name}: {error}") from error
    classifier: Any = known.classifier if known is not None else None
    return str(classifier if isinstance(classifier, str) else classifier[0] if classifier else "head")


def _classes(number: int, asked: Asked) -> int:
    if not number:
        raise ValueError(f"{asked.checkpoint or asked.name} has no classifier, so there is no class to be right about")
    return number
