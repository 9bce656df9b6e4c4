"""The zoo's models under timm's training: checkpointing, decay by layer and name, and timm's scripts."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm_cells import build, images

from attention_zoo import create_model, timm_run

ROOT = Path(__file__).parents[1]


def test_checkpointing_changes_no_gradient():
    model = build("small", create=create_model, attn="bra", num_classes=10, drop_path_rate=0.5)

    def gradients():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            loss = model.train()(images(count=2)).square().sum()
        return loss, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    calls = []
    model.blocks()[0][0].attn.register_forward_hook(lambda *_: calls.append(0))
    plain = gradients()
    assert len(calls) == 1
    model.set_grad_checkpointing()
    checkpointed = gradients()
    assert len(calls) == 3
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    model.set_grad_checkpointing(False)
    assert not model.grad_checkpointing


def test_what_does_not_decay():
    model = create_model("small", attn="swin", num_classes=10)
    tables = {f"stages.{stage}.{block}.attn.bias_table" for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1))}
    assert model.no_weight_decay() == {f"positions.{stage}" for stage in range(4)} | tables
    free, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    chosen = {id(parameter) for parameter in decayed["params"]}
    undecayed = {name for name, parameter in model.named_parameters() if id(parameter) not in chosen}
    assert undecayed == model.no_weight_decay() | {name for name, p in model.named_parameters() if p.ndim < 2}
    with torch.device("meta"):
        tables = timm.create_model("zoo_stl_dat").no_weight_decay()
    assert tables and all(name.endswith("attn.position") for name in tables)


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_layers_are_grouped_by_depth(layout):
    model = create_model(layout, attn="vanilla", num_classes=10)
    depth = group_parameters(model, model.group_matcher(), reverse=True)
    total = sum(model.layout.depths)
    assert depth["head.weight"] == depth["head.bias"] == total + 1
    assert all(layer == total for name, layer in depth.items() if name.startswith("norm."))
    block = 1
    for stage, count in enumerate(model.layout.depths):
        for kind in ("downsamples", "positions"):
            ends = {layer for name, layer in depth.items() if f"{name}.".startswith(f"{kind}.{stage}.")}
            assert ends <= ({block} if stage else {0})
        for index in range(count):
            layers = {layer for name, layer in depth.items() if name.startswith(f"stages.{stage}.{index}.")}
            assert layers == {block}
            block += 1
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse.keys() == depth.keys() == dict(model.named_parameters()).keys()
    for name, layer in coarse.items():
        kind, stage = name.split(".")[:2]
        expected = 5 if kind in ("norm", "head") else 0 if kind != "stages" and stage == "0" else 1 + int(stage)
        assert layer == expected, name


def test_layer_decay_trains_with_timms_optimizer():
    model = create_model("small", attn="vanilla", num_classes=10)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert scales == {0.5**layer for layer in range(7)}


SCRIPT = """
import sys

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

from beside import classes

if __name__ == "__main__":
    model = timm.create_model(sys.argv[1], num_classes=classes, drop_path_rate=0.1)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224), config
    create_transform(**config)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    ema, meter = ModelEmaV3(model), AverageMeter()
    x, target = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for _ in range(2):
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        meter.update(loss.item())
    print(f"{tuple(logits.shape)} {accuracy(logits, target, topk=(1,))[0].item():.0f} {meter.count}")
    sys.exit(int(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_script_of_timms_kind_runs_from_outside(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("classes = 4\n")
    command = [sys.executable, "-m", "attention_zoo.timm_run", str(script), "zoo_biformer_tiny", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("(2, 4) ") and done.stdout.endswith(" 2\n")


def test_a_script_sees_what_python_would_give_it(tmp_path, monkeypatch, capsys):
    script = tmp_path / "show.py"
    script.write_text("import sys\nprint(__name__, __file__, sys.argv, sys.path[0])\n")
    monkeypatch.setattr(sys, "argv", ["timm_run"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert timm_run.main([str(script), "--model", "a b"]) == 0
    expected = f"__main__ {script} {[str(script), '--model', 'a b']} {tmp_path.resolve()}\n"
    assert capsys.readouterr().out == expected


def test_running_no_script_says_how(tmp_path, capsys):
    assert timm_run.main(["--help"]) == 0
    shown = capsys.readouterr()
    assert "example: python -m attention_zoo.timm_run train.py" in shown.out and not shown.err
    assert timm_run.main([]) == 2
    assert capsys.readouterr().err == shown.out
    missing = str(tmp_path / "absent.py")
    assert timm_run.main([missing, "--lr", "1"]) == 2
    error = capsys.readouterr().err
    assert missing in error and error.count("\n") == 1
