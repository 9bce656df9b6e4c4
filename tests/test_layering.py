"""Imports point one way, read from the sources."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
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
        "weights.py": {"safetensors", "numpy"},
        "cases.py": {"safetensors"},
    }
    # torchvision has the parts of dense heads, timm the rivals' backbones
    dense = {"torchvision", "timm"} if path.name == "features.py" else {"torchvision"}
    folder = dense if path.parent.name == "dense" else set()
    assert packages(path) <= {"attention_zoo", "torch"} | more.get(path.name, set()) | folder


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


ALONE = """
import sys
from importlib.machinery import PathFinder

hidden, find = sys.argv[1].split(","), PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
import runpy, torch, attention_zoo
assert attention_zoo.create("bra", dim=8, num_heads=2)(torch.zeros(1, 8, 8, 8)).shape == (1, 8, 8, 8)
attention_zoo.create_model("small", attn="swin")(torch.zeros(1, 3, 64, 64))
for program, *arguments in (["attention_zoo"], ["attention_zoo.check", "swin", "--size", "4x4"]):
    sys.argv = [program, *arguments]
    try:
        runpy.run_module(program, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
try:
    import runners
except ModuleNotFoundError as error:
    print(error)
"""


def test_mechanisms_models_and_their_check_need_nothing_of_the_sweeps():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[>=\[]", line)[0] for line in project["optional-dependencies"]["sweeps"]}
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    # what torch, timm or fvcore bring themselves
    hidden = {modules.get(name, name) for name in extra} - {"jinja2", "PIL"}
    command = [sys.executable, "-c", ALONE, ",".join(sorted(hidden))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| `bra` |" in done.stdout and "pip install 'attention-zoo[sweeps]'" in done.stdout.splitlines()[-1]


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


CONTRACT = {
    "base",
    "config",
    "registry",
    "regions",
    "layouts",
    "padding",
    "partitioned",
    "pooled",
    "routing",
    "dispatch",
}
"""Files at the top level of the zoo that its mechanisms stand on."""

ZOO = {
    **dict.fromkeys(CONTRACT, CONTRACT),
    # a user's class is checked when its name is first resolved
    "registry": {*CONTRACT, "check"},
    # the guarded import of what can be deleted
    "dispatch": {*CONTRACT, "kernels"},
    "kernels": {"regions"},
    "mechanisms": CONTRACT,
    "operators": set(),
    "counting": {"operators"},
    "check": {*CONTRACT, "counting"},
    "hosts": {*CONTRACT, "mechanisms"},
    "published": {*CONTRACT, "mechanisms", "hosts"},
    "dense": {*CONTRACT, "hosts", "published", "models"},
}
"""What the files of each wing of the zoo may import of the others; the files that stand on all of them are not here."""


COMMANDS = {
    *("sweep", "status", "collect", "retry", "cancel", "clean", "report", "compare", "visualize", "evaluate"),
    # under this name the pickles of earlier versions find their task
    "slurm_job",
}

RUNNERS = {
    "measures": set(),
    "store": {"measures"},
    "table": {"measures", "store"},
    "machine": set(),
    "data": set(),
    "train": {"measures", "store", "machine", "data"},
    "measure": {"measures", "store", "machine", "data", "train"},
    "cells": {"measures", "store", "machine", "data", "train", "measure", "dense"},
    "pictures": {"data", "cells"},
    "evaluation": {"store", "machine", "data", "cells"},
    "rows": {"measures", "store", "table"},
    "figures": {"measures", "store", "rows"},
    "dense": {"store", "machine", "data", "train", "figures"},
    "reporting": {"measures", "store", "rows", "figures"},
    "jobs": {"measures", "store", "table", "machine", "train", "measure", "cells"},
    "cli": {"measures", "store", "table", "cells", "jobs"},
    # `from runners import Sweep`
    "__init__": {"jobs"},
}
"""What the files of each wing may import of the others, from the bottom to the top."""


def module(path):
    """Dotted name of a file; that of a package is its folder's."""
    return label(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def ours(path, package):
    """Modules of a package that a file imports; `from a import b` is b where b is a module, else a."""
    modules = {module(source) for source in sources(package)}
    found = imported(path) & modules - {module(path)}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def wing(name):
    """Second part of a dotted name: a folder, or a file at the top level."""
    return name.split(".")[1] if "." in name else "__init__"


@pytest.mark.parametrize("path", sources("attention_zoo"), ids=label)
def test_a_wing_of_the_zoo_imports_those_below(path):
    here = wing(module(path))
    above = {wing(name) for name in ours(path, "attention_zoo")} - {here}
    assert here in ZOO or path.parent == ROOT / "attention_zoo"
    assert here not in ZOO or above <= ZOO[here]


def test_the_zoo_is_imported_without_dense_tasks():
    users = {wing(module(path)) for path in sources("attention_zoo") if "attention_zoo.dense" in imported(path)}
    assert users <= {"dense"}


def test_kernels_are_imported_where_they_are_chosen_and_nowhere_else():
    folder = ROOT / "attention_zoo" / "kernels"
    users = {
        label(path)
        for package in OURS
        for path in sources(package)
        if path.parent != folder and any(name.startswith("attention_zoo.kernels") for name in imported(path))
    }
    assert users == {"attention_zoo/dispatch.py"}


@pytest.mark.parametrize("path", sources("runners"), ids=label)
def test_a_wing_of_the_runners_imports_those_below(path):
    here = wing(module(path))
    above = {wing(name) for name in ours(path, "runners")} - {here}
    assert here in COMMANDS or path.stem == "__main__" or above <= RUNNERS[here]


def test_at_the_top_level_of_the_runners_are_commands_and_what_is_documented():
    files = {path.stem for path in sources("runners") if path.parent == ROOT / "runners"}
    folders = {path.parent.name for path in sources("runners") if path.parent.parent == ROOT / "runners"}
    assert files == {*COMMANDS, "__init__", "measures", "table"}
    assert folders == {*RUNNERS} - files


@pytest.mark.parametrize("package", sorted(OURS))
def test_no_circle_of_modules(package):
    arrows = {module(path): ours(path, package) for path in sources(package)}
    assert any(arrows.values())
    list(graphlib.TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize(("library", "package"), [("fvcore", "attention_zoo/"), ("submitit", "runners/")])
def test_a_library_enters_through_one_file(library, package):
    users = [label(path) for ours in OURS for path in sources(ours) if library in packages(path)]
    assert len(users) == 1
    assert all(user.startswith(package) for user in users)


def loaded_by(program):
    """Top-level packages that a program has loaded at its end."""
    program = f"import sys; {program}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_studies_are_listed_without_torch():
    program = "import ablations; [ablations.load_study(name) for name in ablations.study_names()]"
    assert "ablations" in loaded_by(program) and not loaded_by(program) & {"torch", "attention_zoo"}


def test_measures_import_no_library():
    assert loaded_by("import runners.measures") - loaded_by("pass") <= {"runners", *sys.stdlib_module_names}
