"""What tests/test_ordinary*.py share: small instances of every mechanism, and ways to change a layer of a module.

A change of a layer comes with the weights of an untouched layer of the same meaning, as tensors that autograd follows
back to the parameters of the changed one. The oracle with these weights says what the changed module must compute.
"""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import implementations
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import attention_zoo

HEADS = 2
DIMS = {"crossformer": 96}  # whose network of position biases is a sixteenth as wide
WHOLE, PADDED = (6, 6), (5, 7)  # divides into most partitions of CONFIGS, and does not

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "bra": [
        {"regions": 3, "topk": 2},
        {"regions": 2, "topk": 2, "soft_routing": True, "diff_routing": True, "param_routing": True},
        {"regions": 2, "topk": 2, "kv_pool": "avg", "kv_per_side": 2},
    ],
    "crossformer": [{"group": 2, "interval": 2, "kind": "long"}],
    "cswin": [{"stripe": 2}],
    "dat": [
        {"groups": 2, "stride": 2, "map_size": 6},
        {"variant": "2023", "stride": 2, "position": "log"},
        {"variant": "2023", "stride": 2, "position": "dwc"},
        {"variant": "2023", "stride": 2, "offsets": False, "position": "none"},
    ],
    "maxvit": [{"window": 3, "kind": "block"}, {"window": 3, "kind": "grid", "lepe": True}],
    "pvt": [{"reduction": 2}],
    "sep": [{"window": 3, "kind": "local"}, {"reduction": 2, "kind": "global"}],
    "sliding": [{"kernel": 3}, {"kernel": 3, "dilation": 2, "lepe": True}],
    "swin": [{"window": 3, "shift": 1}],
    "vanilla": [{"lepe": True}],
}
"""Each kind of layer once; a mechanism that the table lacks is tried with its defaults."""

CHOOSES_BY_CONTENT = ("bra", "dat")
"""Mechanisms whose queries read what the content of the map says."""


class Case(NamedTuple):
    """A mechanism in one configuration and implementation."""

    name: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return ",".join((self.name, *(f"{key}={value}" for key, value in self.config.items())))


def settings() -> list[Case]:
    """Every mechanism in its configurations, each computed as `auto` decides."""
    return [Case(name, config) for name in attention_zoo.names() for config in CONFIGS.get(name, [{}])]


def first_settings() -> list[Case]:
    """One configuration of each mechanism."""
    return list({case.name: case for case in reversed(settings())}.values())[::-1]


def cases() -> list[Any]:
    """One configuration of each mechanism; for `slow` the others too, and that one in each implementation for a CPU."""
    first = first_settings()
    named = [Case(name, {**config, **impl}) for name, config in first for impl in implementations(name, config) if impl]
    more = [case for case in [*settings(), *named] if case not in first]
    return [*first, *(pytest.param(case, marks=pytest.mark.slow) for case in more)]


def make(case: Case, size: tuple[int, int] = PADDED, images: int = 2) -> tuple[attention_zoo.Attention, Tensor]:
    """Build it in float64, far from its initial weights, whose softmax is flat; and a map (images, *size, C)."""
    dim = DIMS.get(case.name, 24)
    with torch.random.fork_rng(devices=[]):
        attention = attention_zoo.create(case.name, dim=dim, num_heads=HEADS, **case.config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return attention, torch.randn(images, *size, dim, dtype=torch.float64, generator=generator)


def oracle_of(case: Case) -> attention_zoo.Attention:
    """Build its slow form, whose weights a caller gives."""
    return make(Case(case.name, {**case.config, "impl": "reference"}))[0]


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return its layers, linear ones, convolutions and norms, by name."""
    return {name: layer for name, layer in module.named_modules() if "weight" in layer._parameters}


def loss(y: Tensor) -> Tensor:
    """Weigh every number of an output differently."""
    return (y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)).sum()


def outcome(run: Callable[[Tensor], Tensor], x: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output, and the gradients of x and of the parameters; zeros for one that the output does not depend on."""
    x = x.detach().requires_grad_()
    y = run(x)
    gradients = torch.autograd.grad(loss(y), [x, *parameters.values()], materialize_grads=True)
    return {"output": y.detach(), **dict(zip(("gradient of x", *parameters), gradients, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Compare two outcomes in float64; rounding errors grow with the largest number of a tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = value.abs().max().item() if value.numel() else 0
        torch.testing.assert_close(
            found[name],
            value,
            rtol=1e-8,
            atol=1e-9 * max(1, largest),
            msg=functools.partial("{}, {}: {}".format, what, name),
        )


Weights = Callable[[], dict[str, Tensor]]
"""Weights of the untouched layer that computes what a changed one does."""


def change(module: nn.Module, name: str, way: Callable[[nn.Module, str, nn.Module], Weights]) -> Weights:
    """Change one layer; return the weights of the whole module, had it been left alone."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    layer = module.get_submodule(name)
    effective = way(module, name, layer)
    return lambda: {**state, **{f"{name}.{key}": value for key, value in effective().items()}}


class Adapter(nn.Module):
    """A second layer beside the first, as LoRA has it; it shows weight and bias of the first, as peft's does."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.extra = base, copy.deepcopy(base)
        self.extra.bias = None
        nn.init.normal_(self.extra.weight, std=0.2, generator=torch.Generator().manual_seed(1))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.extra(x)


class Half(nn.Module):
    """Half of what comes in: the change of an output, of a weight, or of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def _weight_and_bias(layer: nn.Module, weight: Tensor, bias_factor: float = 1) -> dict[str, Tensor]:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias * bias_factor}


def adapter(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Put another layer beside it, which learns alone."""
    layer.requires_grad_(False)
    changed = Adapter(layer)
    changed.extra.requires_grad_()
    module.set_submodule(name, changed)
    return lambda: _weight_and_bias(layer, layer.weight + changed.extra.weight)


def wrapped(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Put a module without a weight or a bias in its place."""
    module.set_submodule(name, nn.Sequential(layer, Half()))
    return lambda: _weight_and_bias(layer, layer.weight / 2, 0.5)


def forward_hook(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Halve what it returns."""
    layer.register_forward_hook(lambda _, args, output: output / 2)
    return lambda: _weight_and_bias(layer, layer.weight / 2, 0.5)


def forward_pre_hook(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Halve what it takes; a norm's output does not depend on the factor, but for its eps."""
    is_norm = isinstance(layer, (nn.LayerNorm, nn.BatchNorm2d))
    layer.register_forward_pre_hook(lambda _, args: None if is_norm else (args[0] / 2,))
    return lambda: _weight_and_bias(layer, layer.weight if is_norm else layer.weight / 2)


def parametrized(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Make its weight of another one."""
    parametrize.register_parametrization(layer, "weight", Half())
    return lambda: _weight_and_bias(layer, layer.parametrizations.weight.original / 2)


def pruned(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Mask half of its weights."""
    prune.l1_unstructured(layer, "weight", 0.5)
    return lambda: _weight_and_bias(layer, layer.weight_orig * layer.weight_mask)


def weight_normed(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Split its weight into length and direction, by a hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(layer)
    return lambda: _weight_and_bias(layer, torch._weight_norm(layer.weight_v, layer.weight_g, 0))


def weight_norm_parametrized(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Split its weight into length and direction, by a parametrization."""
    parametrizations.weight_norm(layer)
    parts = layer.parametrizations.weight
    return lambda: _weight_and_bias(layer, torch._weight_norm(parts.original1, parts.original0, 0))


def spectral_normed(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Divide its weight by its largest singular value, by a hook."""
    if layer.weight.dim() < 2:
        return lambda: {}
    spectral_norm(layer).eval()
    (hook,) = layer._forward_pre_hooks.values()
    for _ in range(15):
        hook.compute_weight(layer, do_power_iteration=True)

    def effective() -> dict[str, Tensor]:
        weight = layer.weight_orig
        return _weight_and_bias(layer, weight / (layer.weight_u @ weight.flatten(1) @ layer.weight_v))

    return effective


def spectral_norm_parametrized(module: nn.Module, name: str, layer: nn.Module) -> Weights:
    """Divide its weight by its largest singular value, by a parametrization."""
    if layer.weight.dim() < 2:
        return lambda: {}
    parametrizations.spectral_norm(layer).eval()
    by, weight = layer.parametrizations.weight[0], layer.parametrizations.weight
    return lambda: _weight_and_bias(layer, weight.original / (by._u @ weight.original.flatten(1) @ by._v))


CHANGES = [
    adapter,
    wrapped,
    forward_hook,
    forward_pre_hook,
    parametrized,
    pruned,
    weight_normed,
    weight_norm_parametrized,
    spectral_normed,
    spectral_norm_parametrized,
]


def assert_follows(changed: nn.Module, oracle: nn.Module, weights: Weights, x: Tensor, what: str) -> None:
    """Compare a changed module with the oracle: output and gradients, then without gradients, then with new weights."""
    parameters = {name: p for name, p in changed.named_parameters() if p.requires_grad}
    expected = outcome(lambda x: functional_call(oracle, weights(), (x,)), x, parameters)
    assert_same(outcome(changed, x, parameters), expected, what)
    with torch.no_grad():
        assert_same({"output": changed(x)}, {"output": expected["output"]}, f"{what}, without gradients")
        for parameter in parameters.values():
            parameter.mul_(0.9)
        expected = {"output": functional_call(oracle, weights(), (x,))}
        assert_same({"output": changed(x)}, expected, f"{what}, with other weights")
