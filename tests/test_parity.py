"""The parity command, on the stored cases where they are present, and on cases made here."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attention_zoo import create
from attention_zoo.parity import FUNCTION, check, implementations, main, read_case
from attention_zoo.published.classes import counterpart

FOLDER = Path(os.environ.get("ZOO_GOLDEN") or Path(__file__).parents[1].parent / "shared" / "golden")
FILES = sorted(FOLDER.rglob("*.safetensors"))
needs_golden = pytest.mark.skipif(not FILES, reason=f"no golden cases in {FOLDER}; set ZOO_GOLDEN to their folder")


@needs_golden
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_published_code_gives_the_same(path):
    result = check(read_case(path, path.stem), rtol=1e-4, atol=0.0)
    assert result.passed, result


@needs_golden
@pytest.mark.parametrize("impl", ["reference", "gather", "dense"])
@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "models"], ids=lambda p: p.stem)
def test_each_implementation_gives_the_same(path, impl):
    case = read_case(path, path.stem)
    if case.kind == FUNCTION:
        pytest.skip("a function, which is computed in one way")
    module, _ = counterpart(case.kind, case.config)
    if impl not in implementations(module) or (impl,) == module.impls:
        pytest.skip(f"{type(module).__name__} has no {impl} here, or no other")
    if impl != "gather":  # a loop does not say which routes it took, and dense attention to all regions takes none
        tensors = {name: tensor for name, tensor in case.tensors.items() if not name.startswith("extra/r_idx")}
        case = dataclasses.replace(case, tensors=tensors)
    result = check(case, rtol=1e-4, atol=0.0, impl=impl)
    assert result.passed, result


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
    assert f"{len(FILES)} passed, 0 failed" in capsys.readouterr().out


def write(path, *, kind="vanilla.Attention", layout="NHWC", config=None, **changes):
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
        {"kind": kind, "layout": layout, "config": json.dumps(config)},
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
        ({"kind": "swin.Unknown"}, "no counterpart of 'swin.Unknown'; known: bra.BiLevelRoutingAttention"),
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
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert re.search(f"cannot be built: case: .*{reason}", captured.err)
    assert "1 passed, 0 failed, 1 could not be built" in captured.out


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
    ],
    ids=str,
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([argument.format(tmp_path) for argument in arguments])
    assert message in capsys.readouterr().err


@needs_golden
def test_the_command_runs(tmp_path):
    shutil.copy(FILES[0], tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "attention_zoo.parity", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 passed" in done.stdout
