"""Checks of what a mechanism says of itself: multiply-adds in closed form, geometry, and what figures show of it."""

import dataclasses
import math

import torch

from attention_zoo.base import Macs
from attention_zoo.check.oracle import equals_its_reference, require_agreement, spy
from attention_zoo.check.subject import Failed, NotApplicable, Subject, describe, on, require_connectivity
from attention_zoo.counting import count_macs, differences
from attention_zoo.layouts import STL

LARGE = ((224, 224), (896, 896))
"""Maps between which a core's multiply-adds grow as on large maps."""


def describes_its_map(subject: Subject) -> None:
    """`macs` and `geometry` return what a row needs."""
    attention = subject.build()
    for size in subject.sizes:
        macs, geometry = attention.macs(*size), attention.geometry(*size)
        if not isinstance(macs, Macs):
            raise Failed(f"macs(height, width) must return attention_zoo.Macs, got {describe(macs)}")
        if wrong := [name for name, value in vars(macs).items() if type(value) is not int]:
            raise Failed(f"Macs holds whole numbers, got {macs} ({', '.join(wrong)})")
        if macs.host:
            raise Failed(f"Macs.host is what the model around a mechanism adds, so it must be 0 here, got {macs.host}")
        if "pad_ratio" not in geometry:
            raise Failed(f"geometry(height, width) must hold pad_ratio, got {geometry}")
        if attention.impl_on(*size) not in (*subject.cls.impls, "reference"):
            raise Failed(f"impl_on(height, width) must be one of {subject.cls.impls}, got {attention.impl_on(*size)!r}")


def macs_are_those_counted(subject: Subject) -> None:
    """The closed form is what fvcore and torch count in one forward, to the last multiply-add."""
    ways = subject.cls.impls
    attention = subject.build(impl=ways[0]) if len(ways) > 1 else subject.build()
    for size in subject.sizes:
        macs, counts = attention.macs(*size), count_macs(attention, (1, *size, subject.dim))
        by_fvcore, by_torch = counts.totals
        if {macs.total, by_fvcore, by_torch} == {macs.total}:
            continue
        where = differences(counts)
        counted = ", ".join(f"{operator} {n}" for operator, n in sorted(counts.torch[""].items())) or "nothing"
        raise Failed(
            f"{subject.cls.__name__} {on(size)}: closed form {macs.total} ({_parts(macs)}), fvcore {by_fvcore}, torch "
            f"{by_torch} ({counted})" + (f"; the counters differ in {where}" if where else "")
        )


def _parts(macs: Macs) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(macs).items() if value)


def core_covers_connectivity(subject: Subject) -> None:
    """The core of the closed form has a product for each pair that connectivity allows, at least."""
    size = subject.unpadded_size()
    attention, x = subject.build(), subject.images(size, batch=1)
    require_agreement(attention, x)
    with spy(attention, "connectivity") as asked, torch.no_grad():
        attention.reference(x)
    if not asked.called:
        raise NotApplicable("its reference does not call connectivity, so its keys may be others than tokens")
    tokens = size[0] * size[1]
    pairs = int(attention.connectivity(x).expand(1, attention.num_heads, tokens, tokens).sum())
    least = pairs * (attention.qk_dim + attention.dim) // attention.num_heads
    core = attention.macs(*size).core
    if core < least:
        raise Failed(f"Macs.core is {core} {on(size)}; the {pairs} pairs of connectivity need {least}")


def grows_as_declared(subject: Subject) -> None:
    """The core and routing of the closed form grow with the tokens by the declared exponent, on large maps.

    Of blocks that take turns in a model, all together.
    """
    declared = subject.cls.core_exponent(subject.config)
    if declared is None:
        raise NotApplicable("it declares no `exponent`, so the figures draw no slope of its closed form")
    config = subject.config
    blocks = [dataclasses.replace(subject, config=config.at(0, i, STL)).build() for i in range(config.period)]
    few, many = (sum(macs.core + macs.routing for block in blocks for macs in [block.macs(*size)]) for size in LARGE)
    ratio = math.prod(LARGE[1]) / math.prod(LARGE[0])
    found = math.log(many / few) / math.log(ratio)
    if abs(found - declared) > 0.05:
        raise Failed(f"exponent is {declared}, and core and routing of macs grow as N^{found:.2f}")


def shows_its_examples(subject: Subject) -> None:
    """Each of `examples` builds and tells the connectivity of the figure's map."""
    if not subject.cls.examples:
        raise NotApplicable("it declares no `examples`: the figure of connectivity shows its defaults")
    require_connectivity(subject)
    for example in subject.cls.examples:
        shown = dataclasses.replace(subject, config=subject.cls.Config(**example.config))
        size = (12, 16)
        attention, x = shown.build(), shown.images(size, batch=1)
        if attention.connectivity(x, torch.tensor([0])).shape[-2:] != (1, size[0] * size[1]):
            raise Failed(f"example {example.reads!r}: connectivity of one query must have {size[0] * size[1]} keys")


def counts_lepe(subject: Subject) -> None:
    """LePE is computed, adds its multiply-adds to `Macs.position`, and changes nothing else of them."""
    try:
        config = subject.config.replace(lepe=True)
        on_config, off_config = config, config.replace(lepe=False)
    except ValueError as error:
        if "lepe" not in str(error):
            raise
        raise NotApplicable(f"its Config refuses LePE: {error}") from error
    size = subject.sizes[-1]
    with_lepe, without = (dataclasses.replace(subject, config=c, sizes=(size,)) for c in (on_config, off_config))
    macs, bare = with_lepe.build().macs(*size), without.build().macs(*size)
    if macs.position <= bare.position or dataclasses.replace(macs, position=bare.position) != bare:
        raise Failed(
            f"with lepe=True macs is {_parts(macs)}, without {_parts(bare)}: only `position` may grow; start from "
            "shared_macs(height, width), or refuse lepe in Config.__post_init__"
        )
    require_agreement(without.build(), subject.images(size))
    try:
        equals_its_reference(with_lepe)
    except Failed as reason:
        raise Failed(
            f"with lepe=True: {reason}; add value_term(x, v) before output(y), or refuse lepe in Config.__post_init__"
        ) from reason
