"""Mechanisms that a notebook or a script registers: other processes are handed the class, and rows a hash of its code.

A child process gets the class through a pipe, by value if it cannot be imported; nothing of it is written to a file.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FunctionType, NoneType
from typing import Any

import cloudpickle

from attention_zoo import names, register, resolve
from attention_zoo.registry import GROUP

PLAIN = (str, bytes, int, float, complex, NoneType)


def is_registered_here(name: str) -> bool:
    """Whether a mechanism is known to this process alone: neither built in, nor installed, nor `module:Class`.

    No name is that of a cell with a model instead, which every process knows.
    """
    if not name:
        return False
    is_built_in = resolve(name).__module__.startswith("attention_zoo.")
    return not (is_built_in or ":" in name or any(point.name == name for point in entry_points(group=GROUP)))


def pack(name: str) -> bytes:
    """Pickle a mechanism under its name, by value where no other process could import it."""
    return bytes(cloudpickle.dumps((name, resolve(name))))


def unpack(content: bytes) -> None:
    """Register a mechanism that `pack` wrote, unless it is known."""
    name, mechanism = cloudpickle.loads(content)
    if name not in names():  # a class that was imported may have registered itself
        register(name)(mechanism)


@contextlib.contextmanager
def offered(name: str) -> Iterator[Path | None]:
    """Offer a mechanism to one child process, which gives the path to `take`; None if any process knows it."""
    if not is_registered_here(name):
        yield None
        return
    content = pack(name)
    with tempfile.TemporaryDirectory(prefix="attention_zoo_") as folder:  # only this user may enter it
        path = Path(folder) / "mechanism"
        os.mkfifo(path, mode=0o600)
        writer = threading.Thread(target=_write, args=(path, content), daemon=True)
        writer.start()
        try:
            yield path
        finally:
            _drain(path, writer)


def _drain(path: Path, writer: threading.Thread) -> None:
    """Read in the place of a child that died before it did: its writer waits for a reader, whenever it gets to open."""
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while writer.is_alive():
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 1 << 16)
            writer.join(timeout=0.01)
    finally:
        os.close(reader)


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:
        pipe.write(content)


def take(path: Path | None) -> bytes | None:
    """Register the mechanism that the parent process offers; return it as `pack` wrote it."""
    if path is None:
        return None
    content = path.read_bytes()
    unpack(content)
    return content


def code_hash(mechanism: type) -> str:
    """Hash of the compiled code of a class and of what its module adds to it: functions, classes, plain constants.

    It changes with what the class does or holds, and neither with the lines that it stands on nor with the process.
    """
    return hashlib.sha256("\n".join(_code_of(mechanism, set())).encode()).hexdigest()[:16]


def _code_of(value: Any, seen: set[int]) -> Iterator[str]:
    """Describe a value as text; what has no text that every process would write alike is left out."""
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, tuple):
        for item in value:
            yield from _code_of(item, seen)
    elif isinstance(value, frozenset):
        yield from sorted(map(repr, value))
    elif isinstance(value, CodeType):
        yield f"{value.co_code.hex()} {value.co_names} {value.co_varnames} {value.co_freevars}"
        yield from _code_of(value.co_consts, seen)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _code_of(value.__func__, seen)
    elif isinstance(value, property):
        yield from _code_of((value.fget, value.fset), seen)
    elif isinstance(value, (type, FunctionType)) and id(value) not in seen:
        seen.add(id(value))
        yield from _code_of_class(value, seen) if isinstance(value, type) else _code_of_function(value, seen)


def _code_of_class(cls: type, seen: set[int]) -> Iterator[str]:
    yield cls.__qualname__
    for base in cls.__bases__:
        yield f"{base.__module__}.{base.__qualname__}"
        if base.__module__ == cls.__module__:
            yield from _code_of(base, seen)
    for name, member in sorted(vars(cls).items()):
        if isinstance(member, FunctionType) or not name.startswith("__"):
            yield name
            yield from _code_of(member, seen)


def _code_of_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    yield from _code_of(function.__code__, seen)
    yield from _code_of((function.__defaults__, tuple((function.__kwdefaults__ or {}).items())), seen)
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, PLAIN) or getattr(value, "__module__", None) == function.__module__:
            yield name
            yield from _code_of(value, seen)


def _names(code: CodeType) -> set[str]:
    """Names that a function and those inside it look up outside."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)
