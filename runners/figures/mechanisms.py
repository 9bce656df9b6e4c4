"""What figures ask of a mechanism whose name stands in a row: its class says how it is drawn."""

from collections.abc import Mapping
from fractions import Fraction

import attention_zoo
from attention_zoo.base import Attention, Example
from attention_zoo.config import FULL, parse_values


def known(name: str) -> type[Attention] | None:
    """Find the class of a registered mechanism; a row may name anything, and nothing is imported because of that."""
    try:
        return attention_zoo.resolve(name) if name in attention_zoo.names() else None
    except ValueError:
        # an installed package offers it, and it is broken
        return None


def legend(name: str) -> str:
    """Name of a mechanism in figures."""
    cls = known(name)
    return cls.legend or name if cls else name


def exponent(name: str, settings: Mapping[str, object]) -> Fraction | None:
    """Power of the tokens by which the core of the first stage grows on large maps; None where it is not known.

    `settings` are those of a row, as text; of a schedule over the stages the first counts.
    """
    cls = known(name)
    if cls is None:
        return None
    try:
        first = {field: parse_values(cls.Config, field, str(text))[0] for field, text in settings.items()}
        if FULL in first.values():
            return attention_zoo.resolve("vanilla").exponent
        return _declared(name, cls, cls.Config(**first))
    except ValueError:
        # a row of another version, with fields or values that this one does not have
        return None


def examples(name: str) -> tuple[Example, ...]:
    """Settings that show what a query reads: those of the class, else its defaults; none if it has no connectivity."""
    cls = known(name)
    if cls is None or cls.connectivity is Attention.connectivity:
        return ()
    return cls.examples or _EXAMPLES.get(name) or (Example(reads="default settings"),)


def _declared(name: str, cls: type[Attention], config: object) -> Fraction | None:
    if getattr(config, "region_size", None) == "auto":
        return Fraction(4, 3)
    return cls.core_exponent(config) or _EXPONENTS.get(name)  # type: ignore[arg-type]


# Of classes that do not say it themselves.
_EXPONENTS = {
    **dict.fromkeys(("vanilla", "dat", "pvt", "sep", "bra"), Fraction(2)),
    **dict.fromkeys(("swin", "maxvit", "crossformer", "sliding"), Fraction(1)),
    **dict.fromkeys(("cswin", "axial", "crisscross"), Fraction(3, 2)),
}
_EXAMPLES = {
    "vanilla": (Example(reads="all tokens"),),
    "swin": (
        Example(reads="windows of 4x4", config={"window": 4, "shift": 0}, turn=1),
        Example(reads="windows, shifted by 2", config={"window": 4, "shift": 2}, turn=2),
    ),
    "cswin": (Example(reads="stripes, 2 tokens wide", config={"stripe": 2}),),
    "maxvit": (
        Example(reads="windows of 4x4", config={"window": 4, "kind": "block"}, turn=1),
        Example(reads="dilated grids of 4x4", config={"window": 4, "kind": "grid"}, turn=2),
    ),
    "crossformer": (
        Example(reads="4x4 neighbours", config={"group": 4, "interval": 3, "kind": "short"}, turn=1),
        Example(reads="4x4 at intervals of 3", config={"group": 4, "interval": 3, "kind": "long"}, turn=2),
    ),
    "dat": (Example(reads="around 12 moved points", config={"stride": 4, "kernel": 5, "map_size": (12, 16)}),),
    "bra": (Example(reads="top 4 of 16 regions", config={"regions": 4, "topk": 4}),),
    "sliding": (Example(reads="neighbourhood of 5x5", config={"kernel": 5}),),
    "axial": (Example(reads="row, then column"),),
    "crisscross": (Example(reads="row and column at once"),),
    "pvt": (Example(reads="12 patches, a key each", config={"reduction": 4}),),
    "sep": (
        Example(reads="windows of 4x4", config={"window": 4, "kind": "local"}, turn=1),
        Example(reads="12 patches, a key each", config={"reduction": 4, "kind": "global"}, turn=2),
    ),
}
