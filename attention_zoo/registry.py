"""Names of mechanisms: what is known, what a user brings, and errors that say so."""

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from attention_zoo.base import Attention
from attention_zoo.config import field_names

GROUP = "attention_zoo.mechanisms"
_MECHANISMS: dict[str, type[Attention]] = {}
_T = TypeVar("_T", bound=type[Attention])


def register(name: str) -> Callable[[_T], _T]:
    """Enter a mechanism under a name; the same class defined again, by a cell of a notebook, takes its place.

    Raises:
        ValueError: another class has the name.
    """

    def enter(cls: _T) -> _T:
        known = _MECHANISMS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"mechanism {name!r} is already {known.__qualname__}")
        _MECHANISMS[name] = cls
        return cls

    return enter


def names() -> list[str]:
    """Names of the built-in mechanisms and of those that installed packages offer as entry points."""
    return sorted({*_MECHANISMS, *(point.name for point in entry_points(group=GROUP))})


def suggest(what: str, name: str, known: list[str]) -> str:
    """Word the error about an unknown name: what it is, the nearest known, all known."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(known)}"


def resolve(name: str) -> type[Attention]:
    """Find a mechanism by its name, its entry point, or as `package.module:Class`; a user's is checked first.

    Raises:
        ValueError: nobody offers that name, it cannot be imported, or it breaks the contract.
    """
    if name not in _MECHANISMS:
        # with torch's counter, which takes 0.3 s to import and which nothing built in needs
        from attention_zoo.check.contract import check_contract

        _MECHANISMS[name] = check_contract(name, find(name))
    return _MECHANISMS[name]


def find(name: str) -> Any:
    """Find what a name stands for, as `resolve` does, but whatever it is.

    Raises:
        ValueError: nobody offers that name, or it cannot be imported.
    """
    if name in _MECHANISMS:
        return _MECHANISMS[name]
    offered = {point.name: point.value for point in entry_points(group=GROUP)}
    if ":" not in name and name not in offered:
        raise ValueError(f"{suggest('mechanism', name, names())}, or package.module:Class")
    module, _, attribute = offered.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"mechanism {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def create(name: str, *, dim: int, num_heads: int, **config: Any) -> Attention:
    """Build a mechanism by name; `config` are fields of its `Config`.

    Raises:
        ValueError: unknown mechanism or field (the known ones are listed), or values that do not fit.
    """
    cls = resolve(name)
    known = field_names(cls.Config)
    for field in config:
        if field not in known:
            raise ValueError(suggest(f"field of {name}", field, known))
    return build(cls, dim, num_heads, cls.Config(**config))


def build(cls: type[Attention], dim: int, num_heads: int, config: Any) -> Attention:
    """Call a mechanism's constructor; its one home, since each narrows the type of its config."""
    return cls(dim, num_heads, config)
