"""The published codes' weights: loaded strictly into their counterparts, and written back under their names."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attention_zoo.published.classes import places_of
from attention_zoo.published.places import Official, Place

State = dict[str, Tensor]

PLACES = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema")
"""Keys under which trainings put weights, the first that is there counts."""
AVERAGES = ("model_ema", "state_dict_ema")
"""Those of them under which trainings put the moving average of the weights."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before every name."""
SETTINGS: list[Any] = [
    argparse.Namespace,
    # Python 3.13 moved the class
    *(
        (cls, f"{module}.{cls.__name__}")
        for cls in (PosixPath, PurePosixPath)
        for module in ("pathlib", "pathlib._local")
    ),
    # NumPy 2 moved the function
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")},
]
"""Classes that may lie beside weights: plain data, whose making runs nothing else."""
LISTED = 3
"""Names of weights that a message shows of each kind."""


def load_official(module: nn.Module, official: Official, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a published class into its counterpart, strictly.

    Raises:
        ValueError: no such class, or names that are unknown, missing or mis-shaped; all are listed.
    """
    load_places(module, official.name, list(places_of(module, official)), state)


def load_places(module: nn.Module, name_of_class: str, places: list[Place], state: Mapping[str, Tensor]) -> None:
    """Copy official weights to these places of a module, strictly.

    Raises:
        ValueError: names that are unknown, missing or mis-shaped; all are listed.
    """
    expected = {name: tensor.shape for name, tensor in official_state(module, places).items()}
    unused = {name for place in places if place.ours is None and place.derived is None for name in place.official}
    wrong = {
        "unknown": sorted(set(state) - set(expected) - unused),
        "missing": sorted(set(expected) - set(state)),
        "mis-shaped": [
            f"{name} {_text(state[name].shape)} instead of {_text(shape)}"
            for name, shape in sorted(expected.items())
            if name in state and state[name].shape != shape
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"these are not the weights of this {name_of_class}: {listed}")
    for place in places:
        if place.derived is not None and not torch.equal(state[place.official[0]].cpu(), place.derived()):
            raise ValueError(f"{place.official[0]} belongs to another configuration of {name_of_class}")
    ours = {p.ours: p.to_ours([state[name] for name in p.official]) for p in places if p.ours is not None}
    module.load_state_dict(ours, strict=True)


def to_official(module: nn.Module, official: Official) -> State:
    """Return a module's weights under their official names.

    Raises:
        ValueError: no such class.
    """
    return official_state(module, list(places_of(module, official)))


class Weights(NamedTuple):
    """The weights in a file, and all else that it holds; `place` is the key that they lay under, None at the top."""

    state: State
    rest: dict[Any, Any]
    place: str | None = None


def read_weights(path: str | Path, *, ema: bool = False) -> Weights:
    """Read a file of weights, `.safetensors` or torch's; runs no code of it.

    The weights lie at the top or under one of `PLACES`; with `ema` under one of `AVERAGES`. What wrappers put before
    every name is left out: `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile, `model.` of a trainer.
    Settings of a training may lie beside them: an `argparse.Namespace`, paths, numbers of NumPy.

    Raises:
        ValueError: it cannot be read, holds objects of other classes, or no weights.
    """
    found = _read(path)
    places = (AVERAGES if ema else PLACES) if isinstance(found, dict) else ()
    place = next((key for key in places if isinstance(found.get(key), Mapping)), None)
    if ema and place is None:
        raise ValueError(f"{path} holds no moving average of weights, which would lie under {' or '.join(AVERAGES)}")
    state: object = found if place is None else found[place]
    if not isinstance(state, Mapping) or not state or not all(map(_is_weight, state.items())):
        raise ValueError(f"{path} holds no weights, neither at the top nor under {', '.join(PLACES)}")
    rest = {} if place is None else {key: value for key, value in found.items() if key != place}
    return Weights(_without_prefix(dict(state)), rest, place)


def _read(path: str | Path) -> Any:
    try:
        if str(path).endswith(".safetensors"):
            return load_file(path)
        with torch.serialization.safe_globals(SETTINGS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: it is no torch file, or holds more than tensors and settings") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}, it may be cut off") from error


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _without_prefix(state: State) -> State:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_weights(module: nn.Module, state: Mapping[str, Tensor], official: Official | None = None) -> None:
    """Load weights under our names or, of a published model, under the official ones, strictly.

    Raises:
        ValueError: names that are unknown, missing or mis-shaped.
    """
    if official is not None and not is_ours(state):
        load_official(module, official, state)
        return
    own = module.state_dict()
    wrong = {
        "unknown": sorted(state.keys() - own.keys()),
        "missing": sorted(own.keys() - state.keys()),
        "of another shape": sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape),
    }
    if any(wrong.values()):
        raise ValueError("; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names))
    module.load_state_dict(state, strict=True)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names of our models."""
    return any(name.startswith("downsamples.") for name in state)


def classes_in(state: Mapping[str, Tensor], classifier: str = "head") -> int:
    """Number of classes of the classifier in some weights, 0 without one."""
    # DAT's code has the other name
    head = state.get(f"{classifier}.weight", state.get("cls_head.weight"))
    return len(head) if head is not None and head.dim() == 2 else 0


def load_checkpoint(model: nn.Module, official: Official, path: str | Path) -> None:
    """Load a file of weights under our names or the official ones; see `read_weights`.

    Raises:
        ValueError: it cannot be read, or is one of another model.
    """
    try:
        load_weights(model, read_weights(path).state, official)
    except ValueError as error:
        raise ValueError(f"checkpoint={path}: {error}") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _text(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def official_state(module: nn.Module, places: list[Place]) -> State:
    """Return the weights at these places under their official names."""
    ours, official = module.state_dict(), State()
    for place in places:
        if place.ours is not None:
            official.update(zip(place.official, place.to_official(ours[place.ours]), strict=True))
        elif place.derived is not None:
            official[place.official[0]] = place.derived()
    return official
