"""The code of a mechanism as a hash: numbers of code that has changed since are not taken for those of today's.

Of a class in a module it is the source of the module and of what that imports from its own package, read from the files
and never run; of a built-in mechanism all of attention_zoo; of one that a notebook registered the compiled code.
Of a model of timm it is timm's version and the name.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, NamedTuple

import attention_zoo
from ablations.study import Cell
from attention_zoo import resolve
from runners.cells.named import is_rival, version_of
from runners.cells.registered import code_hash, is_registered_here
from runners.machine.environment import PACKAGES, commit
from runners.store.record import Record

INSTALLED = ("site-packages", "dist-packages")


class Code(NamedTuple):
    """Hash of a mechanism's code; `is_built_in`: it is that of this program, which a clean checkout names better."""

    hash: str
    is_built_in: bool = False
    is_registered: bool = False

    def differs(self, record: Record) -> bool:
        """Whether a record was measured with other code, as far as it says."""
        before = record.values.get("attention_hash")
        if before is None:  # of an earlier version
            return self.is_registered
        if not self.is_built_in:
            return bool(before != self.hash)
        is_clean = not commit()["git_dirty"] and not record.environment.get("git_dirty")
        return bool(before != self.hash) and not is_clean


def code_of_cell(cell: Cell) -> Code:
    """Code of what a cell measures, a mechanism or a model.

    Raises:
        ValueError: no such mechanism.
    """
    if not cell.model:
        return code_of(cell.attn)
    if is_rival(cell.model):
        return Code(hashlib.sha256(version_of(cell.model).encode()).hexdigest()[:16])
    return Code(_zoo_hash(), is_built_in=True)


def code_of(name: str) -> Code:
    """Code of a mechanism by its name.

    Raises:
        ValueError: no such mechanism.
    """
    mechanism: Any = resolve(name)
    return _code_of(name, mechanism)


@functools.cache
def _code_of(name: str, mechanism: Any) -> Code:
    if is_registered_here(name):
        return Code(code_hash(mechanism), is_registered=True)
    if mechanism.__module__.startswith("attention_zoo."):
        return Code(_zoo_hash(), is_built_in=True)
    named = [name.partition(":")[0]] if ":" in name else []
    files = {file for module in (mechanism.__module__, *named) for file in _files(module)}
    return Code(_hash(sorted(files)) if files else code_hash(mechanism))


@functools.cache
def code_of_module(name: str) -> str:
    """Hash of the source of an imported module and of what it imports from its own package; empty without source."""
    files = _files(name)
    return _hash(sorted(files)) if files else ""


@functools.cache
def _zoo_hash() -> str:
    folder = Path(attention_zoo.__file__).parent
    return _hash(sorted((str(path.relative_to(folder)), path) for path in folder.rglob("*.py")))


def _hash(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        content = path.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _files(module: str) -> set[tuple[str, Path]]:
    """Modules of the package of a module that it imports, itself included, by name; empty where it has no source."""
    root, own = _root(module)
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        path = None if name in found or top in PACKAGES or own not in (None, top) else _file(root, name)
        if path:
            found[name] = path
            # the packages around it are run before it
            waiting += [*_parents(name), *_imports(path, name)]
    return {(name, path) for name, path in found.items()}


def _root(module: str) -> tuple[Path, str | None]:
    """Folder that a module's names count from, and the package that they are in; None: any file beside the module."""
    top = module.partition(".")[0]
    loaded = sys.modules[top]
    places = [Path(place) for place in getattr(loaded, "__path__", ())]
    if places:
        return places[0].parent, top
    folder = Path(getattr(loaded, "__file__", None) or ".").resolve().parent
    return folder, top if set(INSTALLED) & {*folder.parts} or folder == Path(ast.__file__).parent else None


def _file(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_name(f"{base.name}.py"), base / "__init__.py") if path.is_file()), None)


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _imports(path: Path, name: str) -> Iterator[str]:
    """Names that a file imports, anywhere in it; `from a import b` may mean a.b too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
