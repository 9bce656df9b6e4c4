"""Stored results of the published codes, and whether the zoo gives the same; attention_zoo.parity has their format."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from attention_zoo.base import Attention
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.published.classes import MODELS, counterpart, counterpart_model
from attention_zoo.published.reader import MIXER_MOOT, MODEL_MOOT
from attention_zoo.published.weights import load_official
from attention_zoo.regions import Partition
from attention_zoo.routing import routed_attention

FUNCTION = "bra.regional_routing_attention_torch"
GRADIENT_SHARE = 5.0
"""Tolerance of a gradient over that of an output: bilinear sampling and float32 cost it more digits."""
TIE = 1e-5
"""Affinities this close, over the largest, are the same."""


@dataclass(frozen=True)
class Case:
    """A stored result of a published code; `source` is its repository and commit, if the file tells them."""

    name: str
    kind: str
    layout: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    source: str = ""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Official state dict."""
        prefix = "weights/"
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, tokens; of a model pixels."""
        shape = self.tensors["input"].shape
        if self.layout == "BLC":
            # a window alone is a map of its own size
            config = self.config
            height, width = (config["H"], config["W"]) if "H" in config else config["ctor"]["window_size"]
            return height, width
        return (shape[1], shape[2]) if self.layout == "NHWC" else (shape[2], shape[3])

    @property
    def settings(self) -> str:
        """Arguments of the constructor that change the output, as `name=value name=value`."""
        arguments = {**self.config.get("ctor", {}), **self.config.get("cfg", {})}
        if self.kind == FUNCTION:
            arguments = {name: value for name, value in self.config.items() if name not in ("batch", "H", "W")}
        moot = MODEL_MOOT if self.kind in MODELS else MIXER_MOOT
        shown = {
            name: json.dumps(value, separators=(",", ":")) for name, value in arguments.items() if name not in moot
        }
        return " ".join(f"{name}={value}" for name, value in shown.items()).replace('"', "")


@dataclass(frozen=True)
class Result:
    """Errors over the largest stored value; None where nothing is stored. `routes` counts regions that differ."""

    case: Case
    output: float
    gradient: float | None
    routes: int | None
    passed: bool


def read_case(path: Path, name: str) -> Case:
    """Read a case from its file.

    Raises:
        ValueError: the file or its header cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no mapping
        source = " ".join(header[key] for key in ("repo", "commit") if key in header)
        case = Case(name, header["kind"], header["layout"], json.loads(header["config"]), tensors, source)
        missing = {"input", "output"} - set(tensors)
        if missing or case.layout not in ("NHWC", "NCHW", "BLC"):
            raise ValueError(f"without {', '.join(sorted(missing)) or f'a known layout: {case.layout!r}'}")
    except Exception as error:
        raise ValueError(f"not a case: {type(error).__name__}: {error}") from error
    return case


def check(case: Case, rtol: float, atol: float, impl: str | None = None) -> Result:
    """Build the counterpart of a case, run it, and compare; `impl` where a token mixer has it, else as it is built.

    Raises:
        ValueError: the case cannot be built.
    """
    x = case.tensors["input"].clone().requires_grad_("grad_input" in case.tensors)
    affinities: dict[int, Tensor] = {}
    y = _routed(case, x) if case.kind == FUNCTION else _run(case, x, affinities, impl)
    output, is_close = _compare(y.detach(), case.tensors["output"], rtol, atol)
    gradient, routes = None, None
    if "grad_input" in case.tensors:
        (computed,) = torch.autograd.grad((y * case.tensors["probe"]).sum(), x)
        scale = GRADIENT_SHARE
        gradient, gradient_is_close = _compare(computed, case.tensors["grad_input"], scale * rtol, scale * atol)
        is_close &= gradient_is_close
    for name, expected in case.tensors.items():
        layer = int(name.removeprefix("extra/r_idx").lstrip("_") or 0) if name.startswith("extra/r_idx") else None
        # the oracle, and dense attention to all regions, do not route; as built, every layer does
        if layer is not None and (layer in affinities or impl is None):
            routes = (routes or 0) + _differing(affinities[layer], expected)
            is_close &= routes == 0
    return Result(case, output, gradient, routes, is_close)


def _run(case: Case, x: Tensor, affinities: dict[int, Tensor], impl: str | None) -> Tensor:
    is_model = case.kind in MODELS
    module, official = (counterpart_model if is_model else counterpart)(case.kind, case.config)
    load_official(module, official, case.weights)
    module.eval()
    mixers = [mixer for mixer in module.modules() if isinstance(mixer, Attention)]
    for mixer in mixers:
        if impl is not None and impl in implementations(mixer):
            mixer.impl = impl
    for layer, bra in enumerate(mixer for mixer in mixers if isinstance(mixer, BRA)):
        _record(bra, affinities, layer)
    if is_model:
        logits: Tensor = module(x)
        return logits
    return _as_stored(case, module(_as_map(case, x)))


def implementations(mixer: Attention) -> tuple[str, ...]:
    """Ways in which a mixer can be computed."""
    return ("reference", *mixer.usable_impls())


def _record(mixer: BRA, affinities: dict[int, Tensor], layer: int) -> None:
    choose = mixer.affinity

    def recording(mean_q: Tensor, mean_k: Tensor, valid: Tensor | None) -> Tensor:
        affinity = choose(mean_q, mean_k, valid)
        affinities[layer] = affinity.detach()
        return affinity

    mixer.affinity = recording  # type: ignore[method-assign]


def _as_map(case: Case, x: Tensor) -> Tensor:
    if case.layout == "BLC":
        tokens: Tensor = x.unflatten(1, case.size)
        return tokens
    return x.permute(0, 2, 3, 1) if case.layout == "NCHW" else x


def _as_stored(case: Case, y: Tensor) -> Tensor:
    if case.layout == "BLC":
        return y.flatten(1, 2)
    return y.permute(0, 3, 1, 2) if case.layout == "NCHW" else y


def _routed(case: Case, query: Tensor) -> Tensor:
    """Attention along a given graph of regions, the function behind BRA; zeros complete the last regions."""
    config = case.config
    key, value, graph = (case.tensors[f"extra/{name}"] for name in ("key", "value", "region_graph"))
    sides = config["region_size"]
    cut = Partition.of_size(*query.shape[2:], *sides)
    kv_cut = Partition.of_size(*key.shape[2:], *(config.get("kv_region_size") or sides))
    q, k, v = (part.split(maps.permute(0, 2, 3, 1)) for part, maps in ((cut, query), (kv_cut, key), (kv_cut, value)))
    return cut.join(routed_attention(q, k, v, graph, config["num_heads"], config["scale"])).permute(0, 3, 1, 2)


def _compare(computed: Tensor, expected: Tensor, rtol: float, atol: float) -> tuple[float, bool]:
    if computed.shape != expected.shape:
        raise ValueError(f"output is {tuple(computed.shape)} where {tuple(expected.shape)} is stored")
    error, largest = float((computed - expected).abs().max()), float(expected.abs().max())
    # a NaN is never close
    return error / max(largest, torch.finfo(torch.float32).tiny), error <= rtol * largest + atol


def _differing(affinity: Tensor, expected: Tensor) -> int:
    """Count regions whose stored routes, (B, R, K), are not those of the largest affinities, (B, 1, R, R)."""
    affinity = affinity.expand(-1, 1, -1, -1)[:, 0]
    largest = affinity.topk(expected.shape[-1]).values.sort(-1).values
    stored = affinity.gather(-1, expected).sort(-1).values
    scale = affinity[affinity.isfinite()].abs().max()
    repeated = expected.sort(-1).values.diff(dim=-1).eq(0).any(-1)
    return int((((largest - stored).abs() > TIE * scale).any(-1) | repeated).sum())
