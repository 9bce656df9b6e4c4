"""Imports point one way, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attention_zoo
from attention_zoo import registry

ROOT = Path(__file__).parents[1]
OURS = {"attention_zoo", "ablations", "runners"}
MECHANISMS = {registry.resolve(name).__module__ for name in attention_zoo.names()}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    """Every dotted module that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path):
    """Top-level packages that a file imports, the standard library left out."""
    return {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names


def label(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("attention_zoo"), ids=label)
def test_the_zoo_imports_torch_alone(path):
    more = {
        "blocks.py": {"timm"},
        "counting.py": {"fvcore"},
        "timm_models.py": {"timm"},
        "timm_run.py": {"timm"},
        "weights.py": {"safetensors"},
        "cases.py": {"safetensors"},
    }
    assert packages(path) <= {"attention_zoo", "torch"} | more.get(path.name, set())


@pytest.mark.parametrize("path", sources("attention_zoo"), ids=label)
def test_mechanisms_are_imported_by_the_package_and_by_no_other(path):
    allowed = {
        "__init__.py": MECHANISMS,
        # full attention is a stage of the host
        "pyramid.py": {"attention_zoo.mechanisms.vanilla"},
        "models.py": {"attention_zoo.mechanisms.vanilla"},
        "attention_maps.py": MECHANISMS,
    }
    # the published classes name the mechanisms and configurations that they are
    names = MECHANISMS if path.parent.name == "published" else allowed.get(path.name, set())
    assert imported(path) & MECHANISMS <= names


def test_the_mechanisms_are_files_of_the_zoo():
    assert {
        "attention_zoo.mechanisms.bra",
        "attention_zoo.mechanisms.swin",
        "attention_zoo.mechanisms.vanilla",
    } <= MECHANISMS
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in MECHANISMS)


@pytest.mark.parametrize("path", sources("ablations"), ids=label)
def test_studies_import_the_zoo_at_most(path):
    assert packages(path) <= {"ablations", "attention_zoo"}


@pytest.mark.parametrize("path", sources("runners"), ids=label)
def test_runners_import_no_tests(path):
    assert not packages(path) & {"tests", "benchmarks", "pytest", "hypothesis", "conftest"}


@pytest.mark.parametrize(("library", "package"), [("fvcore", "attention_zoo/"), ("submitit", "runners/")])
def test_a_library_enters_through_one_file(library, package):
    users = [label(path) for ours in OURS for path in sources(ours) if library in packages(path)]
    assert len(users) <= 1
    assert all(user.startswith(package) for user in users)


def test_planning_does_not_import_torch():
    modules = [label(path).removesuffix(".py").replace("/", ".") for path in sources("ablations")]
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "torch was imported"
