"""Checks that a mechanism is an ordinary nn.Module: its layers are called, and may be replaced, hooked and copied."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from attention_zoo.base import Attention
from attention_zoo.check.oracle import require_agreement
from attention_zoo.check.subject import Failed, Subject, evaluate, require_close


class Wrapped(nn.Module):
    """A linear layer inside another module, as adapters are made: no weight of its own that could be read."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        """Add a product of two small matrices, of fixed numbers."""
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        dtype = layer.weight.dtype
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, generator=generator, dtype=dtype))
        self.up = nn.Parameter(torch.randn(layer.out_features, rank, generator=generator, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Add the product's part: (..., in) -> (..., out)."""
        y: Tensor = self.layer(x)
        return y + x @ self.down.mT @ self.up.mT

    @property
    def change(self) -> Tensor:
        """What the adapter adds to the weight, (out, in)."""
        return self.up.detach() @ self.down.detach()


class Doubled(nn.Module):
    """A parametrization: twice the weight."""

    def forward(self, weight: Tensor) -> Tensor:
        """Double it."""
        return 2 * weight


def _layers(attention: Attention) -> Iterator[tuple[str, nn.Module]]:
    """Submodules with parameters of their own."""
    for name, module in attention.named_modules():
        if name and any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _output(run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"output": run(x)}


def _replace(attention: Attention, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(attention.get_submodule(parent), child, layer)


def calls_its_layers(subject: Subject) -> None:
    """Forward and backward hooks of every layer run, and an output that a hook keeps never changes later."""
    attention, x = subject.build(), subject.images(subject.sizes[-1]).requires_grad_()
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    backward: set[str] = set()
    for name, module in _layers(attention):

        def keep(_: nn.Module, __: Any, y: Tensor, name: str = name) -> None:
            kept.setdefault(name, []).append((y, y.detach().clone()))

        module.register_forward_hook(keep)
        module.register_full_backward_hook(lambda *_, name=name: backward.add(name))
    with warnings.catch_warnings():
        # torch warns of a layer whose input takes no gradient, such as a network that reads offsets
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        attention(x).sum().backward()
    names = [name for name, _ in _layers(attention)]
    if silent := [name for name in names if name not in kept or name not in backward]:
        raise Failed(f"hooks of {', '.join(silent)} never run: call the layer instead of reading its weight")
    if changed := [name for name in names if any(not torch.equal(y, then) for y, then in kept[name])]:
        raise Failed(
            f"what {', '.join(changed)} returns is changed in place later: use operators that make a new tensor"
        )


def takes_adapters(subject: Subject) -> None:
    """An adapter (LoRA) around each linear layer gives what the same change of its weight gives."""
    x = subject.images(subject.sizes[-1])
    for name, _ in _layers(subject.build()):
        adapted, merged = subject.build(), subject.build()
        layer = adapted.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            continue
        adapter = Wrapped(layer)
        _replace(adapted, name, adapter)
        merged.get_parameter(f"{name}.weight").data += adapter.change
        try:
            found = _output(adapted, x)
        except AttributeError as error:
            raise Failed(f"forward reads from {name} what an adapter does not have: {error}; call the layer") from error
        what = f"an adapter around {name} is ignored, or half of it; call the layer"
        require_close(found, _output(merged, x), what, rtol=1e-8, atol=1e-8)


def takes_another_projection(subject: Subject) -> None:
    """Another module as `proj` is what is called."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    plain, seen = attention(x), []
    attention.proj = nn.Sequential(attention.proj, nn.Identity())
    attention.proj[1].register_forward_hook(lambda *_: seen.append(True))
    require_close({"output": attention(x)}, {"output": plain}, "with proj inside nn.Sequential", rtol=1e-8, atol=1e-8)
    if not seen:
        raise Failed("a module that replaces `proj` is never called: end with self.proj(y) or self.output(y)")


def takes_parametrizations(subject: Subject) -> None:
    """A weight under torch.nn.utils.parametrize (as prune, weight_norm, spectral_norm) is the one that is used."""
    x = subject.images(subject.sizes[-1])
    for name, module in _layers(subject.build()):
        if not isinstance(getattr(module, "weight", None), nn.Parameter):
            continue
        changed, expected = subject.build(), subject.build()
        parametrize.register_parametrization(changed.get_submodule(name), "weight", Doubled())
        expected.get_parameter(f"{name}.weight").data.mul_(2)
        what = f"{name}.weight under a parametrization is not the one that is used"
        require_close(_output(changed, x), _output(expected, x), what, rtol=1e-8, atol=1e-8)


def takes_functional_weights(subject: Subject) -> None:
    """torch.func.functional_call uses the weights that it is given."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    other = copy.deepcopy(attention)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
        found = torch.func.functional_call(attention, dict(other.named_parameters()), (x,))
    require_close({"output": found}, _output(other, x), "under functional_call", rtol=1e-8, atol=1e-8)


def has_second_derivatives(subject: Subject) -> None:
    """Second derivatives are those of the reference, or refused by torch; never others in silence."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    require_agreement(attention, x)

    def penalty(run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        leaves = [x.detach().requires_grad_(), *attention.parameters()]
        (gradient,) = torch.autograd.grad(run(leaves[0]).square().sum(), leaves[:1], create_graph=True)
        found = torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True)
        names = ["second derivative of x", *(name for name, _ in attention.named_parameters())]
        return {n: torch.zeros_like(leaf) if g is None else g
                for n, leaf, g in zip(names, leaves, found, strict=True)}  # fmt: skip

    expected = penalty(attention.reference)
    try:
        found = penalty(attention)
    except RuntimeError as error:
        if "is not implemented" not in str(error) and "does not support" not in str(error):
            raise
        return
    scale = {name: value.abs().max().clamp(min=1) for name, value in expected.items()}
    require_close(
        {name: value / scale[name] for name, value in found.items()},
        {name: value / scale[name] for name, value in expected.items()},
        "second derivatives of forward and reference differ, relative to the largest",
        rtol=1e-6,
        atol=1e-8,
    )


def can_be_copied(subject: Subject) -> None:
    """A deep copy and a pickled copy give the same, before and after a call."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    expected = _output(attention, x)
    for how, copied in (("deepcopy", copy.deepcopy(attention)), ("pickle", pickle.loads(pickle.dumps(attention)))):
        require_close(_output(copied, x), expected, f"after {how}", rtol=0, atol=0)


def can_be_recomputed(subject: Subject) -> None:
    """Under torch.utils.checkpoint the output and gradients are the same."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    expected = evaluate(attention, x, attention)
    found = evaluate(attention, x, lambda x: checkpoint(attention, x, use_reentrant=False))
    require_close(found, expected, "under torch.utils.checkpoint", rtol=0, atol=1e-12)


def can_be_exported(subject: Subject) -> None:
    """torch.export makes one graph that takes any number of images, and gives the same."""
    attention, x = subject.build(), subject.images(subject.sizes[-1])
    images = torch.export.Dim("images", min=2)
    exported = torch.export.export(attention, (x,), dynamic_shapes=({0: images},), strict=False).module()
    several = subject.images(subject.sizes[-1], batch=5)
    require_close(_output(exported, several), _output(attention, several), "as exported, 5 images")
