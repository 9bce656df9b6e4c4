"""The published codes' weights: loaded strictly into our counterparts, and written back under their names."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.published.host_maps import HOSTS
from attention_zoo.published.name_maps import MIXERS, Official, Place

State = dict[str, Tensor]


def load_official(module: nn.Module, official: Official, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of an official class into its counterpart of ours, strictly.

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
            f"{name} {_shape(state[name].shape)} instead of {_shape(shape)}"
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
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file  # only parity and checkpoints need it

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
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


def places_of(module: nn.Module, official: Official) -> Iterator[Place]:
    """List where each tensor of an official class lives in our counterpart.

    Raises:
        ValueError: no such class.
    """
    if isinstance(module, Pyramid) and official.name in HOSTS:
        return HOSTS[official.name](module)
    if isinstance(module, Attention) and official.name in MIXERS:
        return MIXERS[official.name](module, "", "", official)
    raise ValueError(f"no weights of {official.name!r} for {type(module).__name__}; known: {', '.join(known())}")


def known() -> list[str]:
    """Official classes whose weights can be read."""
    return sorted({*MIXERS, *HOSTS})


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _official_state(module: nn.Module, places: list[Place]) -> State:
    ours, found = module.state_dict(), State()
    for place in places:
        if place.ours is not None:
            found.update(zip(place.official, place.to_official(ours[place.ours]), strict=True))
        elif place.derived is not None:
            found[place.official[0]] = place.derived()
    return found
