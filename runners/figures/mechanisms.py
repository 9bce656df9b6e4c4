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
        return cls.core_exponent(cls.Config(**first))
    except ValueError:
        # a row of another version, with fields or values that this one does not have
        return None


def examples(name: str) -> tuple[Example, ...]:
    """Settings that show what a query reads: those of the class, else its defaults; none if it has no connectivity."""
    cls = known(name)
    if cls is None or cls.connectivity is Attention.connectivity:
        return ()
    return cls.examples or (Example(reads="default settings"),)
