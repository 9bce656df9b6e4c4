"""The parity command, on the stored cases where they are present, and on cases made here."""

import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from golden import CASES, FILES, ROOT, changes_the_map, listed, needs_golden, path_of
from safetensors import safe_open
from safetensors.torch import save_file

from attention_zoo import create, names
from attention_zoo.parity import known_impls, main
from attention_zoo.published.cases import FUNCTION, check, implementations, read_case
from attention_zoo.published.classes import MODELS, counterpart
from attention_zoo.published.reader import NotAMixer
from attention_zoo.registry import resolve


@needs_golden
@pytest.mark.parametrize("name", CASES)
def test_the_published_code_gives_the_same(name):
    case = read_case(path_of(name), name)
    if changes_the_map(case):
        with pytest.raises(NotAMixer, match="changes the channels or the map"):
            check(case, rtol=1e-4, atol=0.0)
        return
    result = check(case, rtol=1e-4, atol=0.0)
    assert result.passed, result


@needs_golden
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in CASES.items() if kind not in {*MODELS, FUNCTION}])
def test_each_implementation_gives_the_same(name):
    case = read_case(path_of(name), name)
    if changes_the_map(case):
        pytest.skip("it has no counterpart")
    module, _ = counterpart(case.kind, case.config)
    for impl in implementations(module):
        if impl != "flex":  # it is compiled, and has no gradients on a CPU
            result = check(case, rtol=1e-4, atol=0.0, impl=impl)
            assert result.passed, (impl, result)


@needs_golden
def test_nothing_depends_on_the_name_of_a_case(tmp_path, capsys):
    shuffled = random.Random(0).sample(FILES, len(FILES))
    for number, path in enumerate(shuffled):
        folder = tmp_path / f"family{number % 3}"
        folder.mkdir(exist_ok=True)
        renamed = folder / f"case{number:02}.safetensors"
        with safe_open(path, "pt") as file:
            header = {**file.metadata(), "case": f"case{number:02}", "family": "none", "note": "", "split": "hidden"}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no mapping
        save_file(tensors, renamed, header)
    assert main([str(tmp_path)]) == 0
    left_out = sum(changes_the_map(read_case(path, "")) for path in FILES)
    said = f"{len(FILES) - left_out} passed, 0 failed, 0 could not be built"
    assert said in capsys.readouterr().out


def write(path, *, kind="vanilla.Attention", layout="NHWC", config=None, repo=None, commit=None, **changes):
    """Write a case that our own module made, and that a change can spoil."""
    torch.manual_seed(0)
    attention = create("vanilla", dim=8, num_heads=2)
    x, probe = torch.randn(2, 1, 4, 5, 8)
    x.requires_grad_()
    y = attention(x)
    (gradient,) = torch.autograd.grad((y * probe).sum(), x)
    weights = {f"weights/{name}": tensor.detach() for name, tensor in attention.state_dict().items()}
    tensors = {"input": x.detach(), "output": y.detach(), "probe": probe, "grad_input": gradient, **weights}
    tensors = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    config = config or {"ctor": {"dim": 8, "num_heads": 2}, "H": 4, "W": 5}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        {"kind": kind, "layout": layout, "config": json.dumps(config)}
        | {name: value for name, value in (("repo", repo), ("commit", commit)) if value},
    )
    return tensors


def test_an_output_or_a_gradient_that_differs_fails(tmp_path, capsys):
    tensors = write(tmp_path / "good.safetensors")
    assert main([str(tmp_path)]) == 0
    for name, share in (("output", 2e-4), ("grad_input", 1e-3)):
        spoilt = tensors[name].clone()
        spoilt.view(-1)[3] += share * spoilt.abs().max()
        write(tmp_path / "bad.safetensors", **{name: spoilt})
        assert main([str(tmp_path)]) == 1
        out = capsys.readouterr().out
        assert "NO" in out and "1 passed, 1 failed" in out
        assert main([str(tmp_path), "--rtol", "1e-2"]) == 0
    nan = tensors["output"].clone()
    nan.view(-1)[0] = torch.nan
    write(tmp_path / "bad.safetensors", output=nan)
    assert main([str(tmp_path), "--rtol", "1e9"]) == 1


@needs_golden
def test_a_route_that_differs_fails(tmp_path):
    routed = next(
        path
        for path in FILES
        if "bra" in str(path.parent) and read_case(path, "").tensors.get("extra/r_idx") is not None
    )
    with safe_open(routed, "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    regions = tensors["extra/r_idx"]
    absent = next(region for region in range(regions.shape[1]) if region not in regions[0, 0].tolist())
    regions[0, 0, 0] = absent
    save_file(tensors, tmp_path / "case.safetensors", header)
    assert check(read_case(tmp_path / "case.safetensors", "case"), 1e-4, 0.0).routes == 1
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"kind": "swin.Unknown"}, "no counterpart of 'swin.Unknown'; known: axial.AxialAttention, .*bra.BiLevel"),
        ({"config": {"ctor": {"dim": 8, "num_heads": 3}}}, "dim must be a positive multiple of num_heads"),
        ({"config": {"ctor": {"dim": 8, "num_heads": 2, "flavour": 1}}}, "no counterpart of flavour=1"),
        ({"config": {"ctor": {"num_heads": 2}}}, "vanilla.Attention: .* cannot be read"),
        ({"weights/qkv.weight": None}, "missing: qkv.weight"),
        ({"weights/qkv.bias": torch.zeros(24)}, "unknown: qkv.bias"),
        ({"weights/proj.weight": torch.zeros(8, 9)}, "mis-shaped: proj.weight 8x9 instead of 8x8"),
        ({"layout": "CHW"}, "a known layout: 'CHW'"),
        ({"output": None}, "not a case: .*without output"),
        ({"output": torch.zeros(1, 4, 4, 8)}, r"output is \(1, 4, 5, 8\) where \(1, 4, 4, 8\) is stored"),
    ],
    ids=str,
)
def test_a_case_that_cannot_be_built_says_why(tmp_path, capsys, case, reason):
    write(tmp_path / "other.safetensors")
    write(tmp_path / "case.safetensors", **case)
    assert main([str(tmp_path), "--write", str(tmp_path / "page.md")]) == 2
    assert not (tmp_path / "page.md").exists()
    captured = capsys.readouterr()
    assert re.search(f"cannot be built: case: .*{reason}", captured.err)
    assert "1 passed, 0 failed, 1 could not be built" in captured.out


def test_a_class_that_changes_the_map_is_listed_and_left_out(tmp_path, capsys):
    ctor = {"in_planes": 8, "out_planes": 16, "groups": 2, "stride": 2, "width": True}
    write(tmp_path / "other.safetensors")
    kind, page = "axial.deeplab.AxialAttention", tmp_path / "page.md"
    write(tmp_path / "strided.safetensors", kind=kind, config={"ctor": ctor, "H": 4, "W": 5})
    assert main([str(tmp_path), "--write", str(page)]) == 0
    captured = capsys.readouterr()
    reason = "strided: axial.deeplab.AxialAttention with in_planes=8, out_planes=16, stride=2"
    assert f"left out: {reason}" in captured.out and f"- {reason}" in page.read_text()
    assert "1 passed, 0 failed, 0 could not be built, 1 left out" in captured.out
    assert not captured.err


def test_several_folders_name_their_cases_as_the_folder_above_does(tmp_path, capsys):
    for name in ("first/case", "second/case", "second/inner/case"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"{name}.safetensors")
    assert main([str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["first/case", "second/case", "inner/case"]
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "first"), str(tmp_path / "first")])
    assert "same name as another DIR: first/case" in capsys.readouterr().err


def test_a_file_that_is_no_case_says_so(tmp_path, capsys):
    (tmp_path / "case.safetensors").write_bytes(b"\0" * 100)
    assert main([str(tmp_path)]) == 2
    assert "cannot be built: case: not a case" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], "holds no *.safetensors"),
        (["{}/nothing"], "holds no *.safetensors"),
        (["{}", "--rtol", "-1"], "--rtol must be 0 or more, got -1.0"),
        (["{}", "--atol", "nan"], "--atol must be 0 or more, got nan"),
        (["{}", "--write", "{}/nowhere/page.md"], "nowhere/page.md: no folder"),
        (["{}", "--impl", "fast"], "invalid choice: 'fast' (choose from "),
    ],
    ids=str,
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([argument.format(tmp_path) for argument in arguments])
    assert message in capsys.readouterr().err


def test_the_ways_to_compute_are_those_of_some_mechanism():
    assert set(known_impls()) == {"reference", *(impl for name in names() for impl in resolve(name).impls)}


def test_the_page_tells_class_commit_arguments_size_and_errors_to_one_digit(tmp_path, capsys):
    ctor = {"dim": 8, "num_heads": 2, "qkv_bias": False, "attn_drop": 0.1}
    tensors = write(tmp_path / "case.safetensors", config={"ctor": ctor, "H": 4, "W": 5}, repo="a/b", commit="0123abc")
    spoilt = tensors["output"].clone()
    spoilt.view(-1)[spoilt.abs().argmax()] *= 1 + 3.4e-5
    write(tmp_path / "near.safetensors", output=spoilt, grad_input=None, probe=None)
    page = tmp_path / "page.md"
    assert main([str(tmp_path), "--write", str(page)]) == 0
    capsys.readouterr()
    text = page.read_text()
    assert "| a/b | 0123abc |" in text
    row = "| case | `vanilla.Attention` | `dim=8 num_heads=2 qkv_bias=false` | 4x5 | 0 |"
    assert row in text
    assert "| near | `vanilla.Attention` | `dim=8 num_heads=2` | 4x5 | 3e-05 |  |  | yes |" in text
    assert "2 of 2 cases pass at rtol=0.0001, atol=0," in text
    assert str(tmp_path) not in text
    assert main([str(tmp_path), "--rtol", "1e-6", "--write", str(page)]) == 1
    assert "| 4x5 | 3e-05 |  |  | NO |" in page.read_text()


def test_the_committed_page_says_that_all_agree():
    rows = listed()
    assert len(rows) > 60
    assert {row[-1] for row in rows.values()} == {"yes"}
    assert max(float(row[3]) for row in rows.values()) < 1e-5


@needs_golden
def test_the_committed_page_tells_class_and_arguments_of_a_case_as_they_are():
    rows = {name: row for name, row in listed().items() if name in CASES}
    if not rows:
        pytest.skip("the folder has none of the page's cases")
    cases = {name: read_case(path_of(name), name) for name in rows}
    assert {name: [f"`{case.kind}`", f"`{case.settings}`"] for name, case in cases.items()} == {
        name: row[:2] for name, row in rows.items()
    }


@pytest.mark.slow
def test_a_run_without_the_stored_results_says_how_many_proofs_it_skipped(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "the_command_runs"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, env={**environment, "ZOO_GOLDEN": str(tmp_path)}
    )
    said = done.stdout.splitlines()[-2]
    assert said.startswith("1 proofs against the published codes were skipped: "), done.stdout
    assert str(tmp_path) in said


@needs_golden
def test_the_command_runs(tmp_path):
    shutil.copy(FILES[0], tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "attention_zoo.parity", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 passed" in done.stdout
