"""The whole contract as a list of checks, and its short form for what a user brings."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from attention_zoo.base import Attention
from attention_zoo.check import costs, inputs, oracle, ordinary
from attention_zoo.check.subject import Failed, NotApplicable, Subject
from attention_zoo.config import AttentionConfig


class Check(NamedTuple):
    """A sentence of the contract, and the function that raises `Failed` where a mechanism breaks it."""

    name: str
    run: Callable[[Subject], None]
    is_slow: bool = False


CHECKS = (
    Check("keeps shape and dtype", inputs.keeps_shape_and_dtype),
    Check("forward equals reference, with gradients", oracle.equals_its_reference),
    Check("every impl gives the same", oracle.agrees_by_each_impl),
    Check("any size of map", oracle.fits_any_size),
    Check("reference stands alone", oracle.reference_stands_alone),
    Check("a dropped key is noticed", oracle.notices_a_dropped_key),
    Check("a shifted bias is noticed", oracle.notices_a_shifted_bias),
    Check("a rolled query is noticed", oracle.notices_a_rolled_query),
    Check("padding may hold NaN", oracle.ignores_padding),
    Check("connectivity of some queries", inputs.connectivity_takes_queries),
    Check("weights of some queries", inputs.weights_take_queries),
    Check("images do not mix", inputs.images_do_not_mix),
    Check("batch of 0", inputs.takes_no_images),
    Check("views that are not contiguous", inputs.takes_views),
    Check("meta device", inputs.runs_on_meta),
    Check("autocast to bfloat16", inputs.runs_under_autocast),
    Check("macs and geometry", costs.describes_its_map),
    Check("macs equal two counters", costs.macs_are_those_counted),
    Check("core covers connectivity", costs.core_covers_connectivity),
    Check("exponent", costs.grows_as_declared),
    Check("examples", costs.shows_its_examples),
    Check("LePE", costs.counts_lepe),
    Check("hooks on its layers", ordinary.calls_its_layers),
    Check("adapters on its linear layers", ordinary.takes_adapters),
    Check("another module as proj", ordinary.takes_another_projection),
    Check("parametrized weights", ordinary.takes_parametrizations),
    Check("functional_call", ordinary.takes_functional_weights),
    Check("second derivatives", ordinary.has_second_derivatives),
    Check("deepcopy and pickle", ordinary.can_be_copied),
    Check("gradient checkpointing", ordinary.can_be_recomputed),
    Check("torch.export", ordinary.can_be_exported, is_slow=True),
)


class Result(NamedTuple):
    """What a check found: `pass`, `fail`, or `-` where it has nothing to check; and why."""

    check: str
    outcome: Literal["pass", "fail", "-"]
    why: str = ""


def run(check: Check, subject: Subject) -> Result:
    """Run one check; whatever a mechanism raises is a failure."""
    try:
        check.run(subject)
    except NotApplicable as reason:
        return Result(check.name, "-", str(reason))
    except Failed as reason:
        return Result(check.name, "fail", str(reason))
    except Exception as error:
        return Result(check.name, "fail", f"{type(error).__name__}: {error}")
    return Result(check.name, "pass")


def check_declaration(cls: Any) -> type[Attention]:
    """Return the class, if it is one of a mechanism.

    Raises:
        Failed: it is no `Attention`, or has no frozen `Config` of its own.
    """
    if not (isinstance(cls, type) and issubclass(cls, Attention)):
        raise Failed(f"it must be a subclass of attention_zoo.Attention, got {cls!r}")
    config = cls.Config
    # a subclass that is not decorated itself inherits the fields of its parents, and its own are lost
    is_declared = isinstance(config, type) and "__dataclass_fields__" in vars(config)
    if not (is_declared and issubclass(config, AttentionConfig)):
        raise Failed(f"its Config must be a frozen dataclass that extends AttentionConfig, got {config!r}")
    return cls


def check_contract(name: str, cls: Any) -> type[Attention]:
    """Try a mechanism with its defaults on a small map before a sweep spends time on it; returns it.

    Raises:
        ValueError: it is no `Attention`, has no frozen `Config`, lacks `macs` or `connectivity`, changes shape or
            type, or its `forward` and `reference` disagree.
    """
    try:
        mechanism = check_declaration(cls)
        if mechanism.macs is Attention.macs:
            raise Failed("it has no macs(height, width)")
        if mechanism.connectivity is Attention.connectivity and mechanism.reference is Attention.reference:
            raise Failed("it has neither connectivity(x) nor a reference(x) of its own")
        _try_out(Subject(mechanism, mechanism.Config(), dim=24, sizes=((5, 6),)))
    except Failed as reason:
        raise ValueError(
            f"mechanism {name!r} breaks the contract: {reason}; python -m attention_zoo.check {name} tells more"
        ) from reason
    return mechanism


def _try_out(subject: Subject) -> None:
    (size,) = subject.sizes
    try:
        with torch.no_grad():
            attention, x = subject.build(), subject.images(size)
            for method in ("forward", "reference"):
                inputs.returned(attention, x, method)
            costs.describes_its_map(subject)
            oracle.has_same_output(attention, x, size, rtol=1e-6, atol=1e-9)
    except Failed:
        raise
    except Exception as error:
        where = f"a {size[0]}x{size[1]} map of {subject.dim} channels, {subject.num_heads} heads"
        raise Failed(f"on {where} it raises {type(error).__name__}: {error}") from error
