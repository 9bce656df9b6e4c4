"""What a user meets who adds a mechanism: a class in a file of their own, that stands in no list of ours."""

import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attention_zoo import registry
from attention_zoo.__main__ import main as print_table
from attention_zoo.check.__main__ import main
from attention_zoo.check.contract import CHECKS, run
from attention_zoo.check.subject import Subject
from runners.cli.options import read_command
from runners.figures import mechanisms
from runners.figures.gallery import gallery_panels
from runners.figures.looks import looks
from runners.figures.sheet import shown_names
from runners.sweep import make_sweep
from runners.visualize import main as visualize

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_mechanism.md").read_text()
TEMPLATE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
# one softmax over tokens is not what it computes
LINEAR = """
class Linear(Strided):
    def forward(self, x):
        q, k, v = self.project(x)
        y = q.exp() @ (k.exp().mT @ v) / (q.exp() * k.exp().sum(2, keepdim=True)).sum(-1, keepdim=True)
        return self.output(y).reshape(x.shape)

    def macs(self, height, width):
        shared, head = self.shared_macs(height, width), self.dim // self.num_heads
        return dataclasses.replace(shared, core=2 * height * width * self.dim * head, position=0)
"""


numbers = itertools.count()


REFERENCE = """
    def reference(self, x):
        q, k, v = self.project(x)
        weights = q.exp() @ k.exp().mT
        return self.output(weights / weights.sum(-1, keepdim=True) @ v).reshape(x.shape)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(source) -> a new module of that source, in a folder of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str):
        name = f"own_module_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return importlib.import_module(name)

    return write


def outcome(check: str, cls, **config):
    (found,) = (each for each in CHECKS if each.name == check)
    return run(found, Subject(cls, cls.Config(**config)))


@pytest.mark.slow
def test_the_template_passes_every_check_and_is_short(tmp_path):
    assert len(TEMPLATE.splitlines()) <= 40
    (tmp_path / "strided.py").write_text(TEMPLATE)
    command = [sys.executable, "-m", "attention_zoo.check", "strided:Strided", "--set", "every=3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for check in CHECKS:
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{check.name}  "))
        assert re.search(r"  (pass$|-    +\S)", line), line


BROKEN = {
    "another key": ("% x.shape[2] % self.every", "// x.shape[2] % self.every"),
    "masks": ("token % x.shape[2]", "token[token >= 0] % x.shape[2]"),
    "cpu": (", device=x.device)", ")"),
    "closed form": ("-(-height // self.every)", "(height // self.every)"),
    "view": (".reshape(x.shape)", ".view(x.shape) if x.view(-1) is not None else x"),
    "exponent": ("Fraction(2)", "Fraction(1)"),
    "example": ('{"every": 3}', '{"evry": 3}'),
    "weights behind a layer": (
        "self.output(y if lepe is None else y + lepe)",
        "torch.nn.functional.linear((y if lepe is None else y + lepe).transpose(1, 2).flatten(2), self.proj.weight, "
        "self.proj.bias)",
    ),
    "LePE left out": ("y if lepe is None else y + lepe", "y"),
    "reference by forward": ("    def macs(", "    def reference(self, x):\n        return self(x)\n\n    def macs("),
    "three operands": (
        "(y if lepe is None else y + lepe)",
        "(torch.einsum('bhnd,de,ef->bhnf', y, *2 * (torch.eye(y.shape[-1], dtype=y.dtype, device=y.device),)))",
    ),
}
FAILS = {
    "another key": ("forward equals reference, with gradients", ["output differs", "`reference`", "`weights`"]),
    "masks": ("meta device", ["meta", "masks as indices"]),
    "cpu": ("meta device", ["x.device"]),
    "closed form": ("macs equal two counters", ["Strided", "5x7", "closed form 26880", "fvcore 30240", "torch 30240"]),
    "view": ("views that are not contiguous", ["view"]),
    "exponent": ("exponent", ["exponent is 1", "N^2.00"]),
    "example": ("examples", ["evry"]),
    "weights behind a layer": ("hooks on its layers", ["proj"]),
    "LePE left out": ("LePE", ["lepe=True", "output differs", "value_term(x, v)"]),
    "reference by forward": ("reference stands alone", ["forward"]),
    "three operands": ("macs equal two counters", ["fvcore cannot count aten::einsum", "bhnd,de,ef->bhnf"]),
}


@pytest.mark.parametrize("mistake", FAILS)
def test_each_mistake_fails_its_check_with_the_reason(written, mistake):
    old, new = BROKEN[mistake]
    assert old in TEMPLATE
    check, reasons = FAILS[mistake]
    assert outcome(check, written(TEMPLATE).Strided).outcome == "pass"
    result = outcome(check, written(TEMPLATE.replace(old, new)).Strided)
    assert result.outcome == "fail"
    for reason in reasons:
        assert reason in result.why


def test_linear_attention_is_told_to_write_its_reference(written):
    cls = written("import dataclasses\n" + TEMPLATE + LINEAR).Linear
    assert outcome("macs equal two counters", cls).outcome == "pass"
    result = outcome("forward equals reference, with gradients", cls)
    assert result.outcome == "fail"
    assert "inherited masked softmax" in result.why and "`reference` (plain loops) or `weights`" in result.why


def test_a_reference_of_its_own_needs_no_connectivity(written):
    source = "import dataclasses\n" + TEMPLATE.replace("def connectivity", "def links") + LINEAR + REFERENCE
    cls = written(source.replace('examples = (Example(reads="every third token", config={"every": 3}),)', "")).Linear
    subject = Subject(cls, cls.Config(), sizes=((5, 7),))
    results = {check.name: run(check, subject) for check in CHECKS if not check.is_slow}
    # its Config takes lepe=True, which it then ignores
    assert {name for name, result in results.items() if result.outcome == "fail"} == {"exponent", "LePE"}
    assert results["forward equals reference, with gradients"].outcome == "pass"
    registry.register("links")(cls)
    assert "links" not in {panel.name for panel in gallery_panels()}


def test_a_mechanism_that_writes_fast_still_runs(written):
    cls = written(TEMPLATE.replace("def forward(", "def fast(")).Strided
    assert outcome("forward equals reference, with gradients", cls).outcome == "pass"
    assert outcome("reference stands alone", cls).outcome == "pass"


def test_a_failed_check_ends_with_1_and_bad_input_with_2(written, capsys):
    path = f"{written(TEMPLATE.replace('Fraction(2)', 'Fraction(1)')).__name__}:Strided"
    assert main([path, "--size", "5x7"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "  fail  " in line] == [line for line in lines if line.startswith("exponent  ")]


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        (["swn"], ["unknown mechanism 'swn'", "did you mean 'swin'"]),
        (["nowhere:Mine"], ["nowhere:Mine", "No module named 'nowhere'"]),
        (["torch.nn:Linear"], ["torch.nn:Linear", "attention_zoo.Attention"]),
        (["swin", "--set", "windw=3"], ["--set windw=3", "did you mean 'window'"]),
        (["swin", "--set", "window=wide"], ["window", "an integer", "'wide'"]),
        (["swin", "--set", "window"], ["'window'", "FIELD=VALUE"]),
        (["swin", "--size", "6by6"], ["'6by6'", "HxW"]),
        (["swin", "--dim", "10", "--heads", "4"], ["dim=10", "num_heads=4"]),
        (["bra", "--set", "regions=1", "--size", "5x7"], ["--size 5x7", "topk=4", "1 regions"]),
        ([], ["mechanism"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("bra", "swin") else "",
)
def test_bad_input_is_one_line(arguments, reasons, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    captured = capsys.readouterr()
    assert (exit.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    for reason in reasons:
        assert reason in captured.err


def test_settings_of_a_path_are_named_by_its_class(written):
    name = f"{written(TEMPLATE).__name__}:Strided"

    def settings(line: str) -> list[dict[str, object]]:
        return [dict(cell.settings) for cell in make_sweep(read_command(line.split())).plan.cells]

    assert settings(f"--attn {name},swin --set Strided.every=2,3") == [{}, {"every": 3}, {}]
    assert settings(f"--attn {name} --set {name}.every=3") == [{"every": 3}]
    with pytest.raises(ValueError, match=r"Strided\.evry=3.*did you mean 'every'"):
        settings(f"--attn {name} --set Strided.evry=3")
    with pytest.raises(ValueError, match=r"Strode\.every=3.*not selected"):
        settings(f"--attn {name} --set Strode.every=3")


def test_figures_read_the_class_and_no_list(written):
    cls = written(TEMPLATE).Strided
    assert mechanisms.exponent("strided", {}) is None
    registry.register("strided")(cls)
    assert mechanisms.exponent("strided", {"every": "3"}) == 2
    assert mechanisms.exponent("strided", {"every": "3-3-full-full"}) == 2
    assert [panel.example for panel in gallery_panels() if panel.name == "strided"] == list(cls.examples)
    cls.legend = "strided attention"
    assert shown_names(["strided", "vanilla"], {}) == {"strided": "strided attention", "vanilla": "vanilla"}
    found = looks(["vanilla", "strided", "strided every=3"])
    assert len({(look.colour, look.marker) for look in found.values()}) == 3


def test_the_table_of_mechanisms_has_its_row(written, capsys):
    told = '    paper, reads, cost = "1234.56789", "every third token", "4NC² + 2N²C / 9"\n    exponent ='
    registry.register("strided")(written(TEMPLATE.replace("    exponent =", told)).Strided)
    assert print_table([]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "`strided`" in line)
    assert all(text in row for text in ("1234.56789", "every third token", "4NC² + 2N²C / 9"))


def test_a_name_that_stands_in_a_table_alone_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert mechanisms.exponent("hostile:Mine", {}) is None
    assert mechanisms.legend("hostile:Mine") == "hostile:Mine"


def test_pictures_of_a_path_take_settings_by_its_class(written, tmp_path, capsys):
    name = f"{written(TEMPLATE).__name__}:Strided"
    arguments = ["--model", "small", "--attn", name, "--set", "Strided.every=3", "--stage", "1"]
    assert visualize([*arguments, "--image", "digit-vote", "--out", str(tmp_path / "pictures")]) == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"layers.csv", "overview.png", "stage1.png"}


@pytest.mark.slow
def test_tests_and_benchmarks_take_a_registered_mechanism_by_itself(tmp_path):
    (tmp_path / "own_plugin.py").write_text(
        f"{TEMPLATE}\n\nfrom attention_zoo import register\nregister('own')(Strided)\n"
    )
    files = [
        "tests/test_contract.py",
        "tests/test_compile.py",
        "tests/test_complexity.py",
        "benchmarks/test_modules.py",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rp",
        "-p",
        "own_plugin",
        "-m",
        "",
        "-k",
        "own and not known",
        *files,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"PASSED (\S+?)::\S*\[(.*)\]", done.stdout)
    assert {file for file, _ in passed} == set(files)
    checks = [test for file, test in passed if file == files[0] and test.startswith("own")]
    # with its defaults and with its example
    assert {test.split("-")[0] for test in checks} == {"own", "own,every=3"}
    assert len(checks) > len(CHECKS)
