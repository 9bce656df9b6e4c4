"""The published codes' weights: loaded strictly into their counterparts, and written back under their names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attention_zoo.published.classes import places_of
from attention_zoo.published.places import Official, Place

State = dict[str, Tensor]


def load_official(module: nn.Module, official: Official, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a published class into its counterpart, strictly.

    Raises:
        ValueError: no such class, or names that are unknown, missing or mis-shaped; all are listed.
    """
    places = list(places_of(module, official))
    expected = {name: tensor.shape for name, tensor in _official_state(module, places).items()}
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
        raise ValueError(f"these are not the weights of this {official.name}: {listed}")
    for place in places:
        if place.derived is not None and not torch.equal(state[place.official[0]].cpu(), place.derived()):
            raise ValueError(f"{place.official[0]} belongs to another configuration of {official.name}")
    ours = {p.ours: p.to_ours([state[name] for name in p.official]) for p in places if p.ours is not None}
    module.load_state_dict(ours, strict=True)


def to_official(module: nn.Module, official: Official) -> State:
    """Return a module's weights under their official names.

    Raises:
        ValueError: no such class.
    """
    return _official_state(module, list(places_of(module, official)))


def load_checkpoint(model: nn.Module, official: Official, path: str | Path) -> None:
    """Load an official checkpoint, `{"model": state_dict}` or a state alone, `.safetensors` too; runs no code of it.

    Raises:
        ValueError: it cannot be read, or is one of another model.
    """
    try:
        is_safe = str(path).endswith(".safetensors")
        state: object = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint={path} cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint={path} holds no state dict, neither at the top nor under 'model'")
    try:
        load_official(model, official, state)
    except ValueError as error:
        raise ValueError(f"checkpoint={path}: {error}") from error


def _text(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _official_state(module: nn.Module, places: list[Place]) -> State:
    ours, official = module.state_dict(), State()
    for place in places:
        if place.ours is not None:
            official.update(zip(place.official, place.to_official(ours[place.ours]), strict=True))
        elif place.derived is not None:
            official[place.official[0]] = place.derived()
    return official
