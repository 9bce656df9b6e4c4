"""The zoo's models in timm's registry, and timm's scripts run with them."""

import argparse
import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import slow_but
from timm.models import group_parameters, load_checkpoint
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from attention_zoo import create_model, names, timm_models, timm_run
from attention_zoo.published.models import PUBLISHED
from attention_zoo.published.places import Official
from attention_zoo.published.weights import SETTINGS, to_official

ROOT = Path(__file__).parents[1]
OURS = {
    **{f"zoo_{name}": {"name": name} for name in PUBLISHED},
    **{f"zoo_stl_{name}": {"name": "stl", "attn": name} for name in names()},
}
SMALL = "zoo_stl_vanilla"


def build(name=SMALL, create=timm.create_model, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **settings).eval()


def images(height_px=32, width_px=32, count=1):
    return torch.randn(count, 3, height_px, width_px, generator=torch.Generator().manual_seed(0))


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_timm_lists_all():
    assert set(timm.list_models("zoo_*")) == set(OURS) == set(timm.list_models(module="timm_models"))
    assert set(OURS) <= set(timm_models.__all__) <= set(vars(timm_models))
    assert timm.list_models("zoo_*", pretrained=True) == []


@pytest.mark.parametrize("name", [*(f"zoo_{name}" for name in sorted(PUBLISHED)), "zoo_stl_swin"])
def test_a_name_is_the_model_of_the_zoo(name):
    with torch.device("meta"):
        model, own = timm.create_model(name), create_model(**OURS[name])
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in own.state_dict().items()}
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    assert model.pretrained_cfg["architecture"] == name
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", ["zoo_biformer_tiny", "zoo_stl_swin"])
def test_the_same_seed_gives_the_weights_of_the_zoo(name):
    model = build(name, num_classes=5)
    own = build(OURS[name]["name"], create_model, num_classes=5, attn=OURS[name].get("attn"))
    assert same_weights(model, own)
    assert torch.equal(model(images(64, 64)), own(images(64, 64)))


@pytest.mark.parametrize("name", slow_but(*sorted(OURS)[:4], of=sorted(OURS)))
def test_each_has_features_at_four_strides(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True).eval()
    assert model.model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    dims = model.model.layout.dims
    assert (tuple(model.feature_info.channels()), model.feature_info.reduction()) == (dims, [4, 8, 16, 32])
    maps = model(torch.empty(1, 3, 230, 198, device="meta"))
    sizes = [(58, 50), (29, 25), (15, 13), (8, 7)]
    assert [tuple(map_.shape) for map_ in maps] == [(1, dim, *size) for dim, size in zip(dims, sizes, strict=True)]


def test_features_at_224_px():
    with torch.device("meta"):
        maps = timm.create_model("zoo_biformer_tiny", features_only=True)(torch.empty(1, 3, 224, 224))
    assert [map_.shape[1:] for map_ in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0, 1), (-2,), 2], ids=str)
def test_features_are_what_the_stages_of_a_plain_forward_return(out_indices):
    model = build("zoo_biformer_tiny")
    features = build("zoo_biformer_tiny", features_only=True, out_indices=out_indices)
    stages, x = [], images(70, 58)
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, y: stages.append(y.permute(0, 3, 1, 2)))
    with torch.no_grad():
        model(x)
        found = features(x)
    taken = range(4)[-out_indices:] if isinstance(out_indices, int) else out_indices
    assert len(found) == len(taken)
    for map_, stage in zip(found, taken, strict=True):
        assert torch.equal(map_, stages[stage]) and map_.is_contiguous()
    assert features.feature_info.channels() == [model.layout.dims[stage] for stage in taken]
    needed = max(stage % 4 for stage in taken) + 1
    assert len(features.model.stages) == len(features.model.downsamples) == needed
    assert features.model.get_classifier() is not model.get_classifier()
    assert features.model.macs(64, 64).total < model.macs(64, 64).total


def test_pruning_a_layout_with_positions_keeps_those_it_needs():
    model = create_model("small", attn="vanilla", num_classes=10).eval()
    _, maps = model.forward_intermediates(images(), indices=[1])
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert (len(model.positions), len(model.stages), model.num_features) == (2, 2, 48)
    assert torch.equal(model.forward_intermediates(images(), intermediates_only=True)[-1], maps[0])


def test_hooks_give_features_as_the_stages_have_them():
    getter, hooks = build(features_only=True), build(features_only=True, feature_cls="hook")
    assert hooks.output_fmt == "NHWC"
    for first, second in zip(getter(images()), hooks(images()), strict=True):
        assert torch.equal(first, second.permute(0, 3, 1, 2))


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_intermediates_come_with_the_features(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    x = images()
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x)) and len(maps) == 4
    assert torch.equal(model.forward_head(last), model(x))
    one = model.forward_intermediates(x, indices=[1, -1], output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(one[0], maps[1].permute(0, 2, 3, 1)) and torch.equal(one[1], last)
    early, only = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(early.permute(0, 3, 1, 2), maps[1]) and len(only) == 1
    normed = model.forward_intermediates(x, indices=2, norm=True, intermediates_only=True)
    assert torch.equal(normed[0], maps[2])
    model.set_global_pool("")
    expected = model.forward_head(last, pre_logits=True).permute(0, 3, 1, 2)
    torch.testing.assert_close(normed[1], expected)
    with pytest.raises(ValueError, match="there are 4 stages, 0 to 3; got indices="):
        model.forward_intermediates(x, indices=[4])
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NHWC, got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_forward_is_features_then_head(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    features = model.forward_features(images())
    assert torch.equal(model(images()), model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.num_features) == (1, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(images()))


@pytest.mark.parametrize("layout", ["stl", "small"])
def test_reset_classifier(layout):
    model = build(layout, create=create_model, attn="vanilla", num_classes=10)
    pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
    total = model.macs(32, 32).total
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity) and model.num_classes == 0
    assert torch.equal(model(images()), pooled)
    assert model.macs(32, 32).total == total - 10 * model.num_features
    model.to(torch.bfloat16).reset_classifier(7)
    head = model.get_classifier()
    assert (head.weight.shape, head.weight.dtype) == ((7, model.num_features), torch.bfloat16)
    assert head.weight.float().std().item() == pytest.approx({"stl": 0.02, "small": 0.1}[layout], rel=0.1)
    assert model(images().bfloat16()).shape == (1, 7) and not head.bias.any()
    model.reset_classifier(0, "")
    assert model(images(64, 96).bfloat16()).shape == (1, 2, 3, model.num_features)
    with pytest.raises(ValueError, match="global_pool must be 'avg' or '', got 'max'"):
        model.reset_classifier(3, "max")


def test_what_timm_passes_reaches_the_model():
    model = build(num_classes=0, global_pool="")
    assert (model(images(64, 96)).shape, model.num_classes) == ((1, 2, 3, 768), 0)
    assert build(global_pool="", num_classes=3)(images(64, 96)).shape == (1, 2, 3, 3)
    model = build("zoo_biformer_tiny", drop_path_rate=0.26, num_classes=3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.blocks() for block in stage]
    assert rates == pytest.approx([0.02 * block for block in range(14)])
    assert build("zoo_stl_bra", topk="1-4-16-full").mixers()[1][0].config.topk == 4


def test_dropout_is_ahead_of_the_classifier_in_training_alone():
    model, plain = build(drop_rate=0.5), build()
    assert same_weights(model, plain)
    features = model.forward_features(images(64, 64))
    assert torch.equal(model.forward_head(features), plain.forward_head(features))
    pooled = plain.train().forward_head(features, pre_logits=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = model.train().forward_head(features, pre_logits=True)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * pooled[kept])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"in_chans": 1}, ValueError, "{name} reads images of 3 channels, got in_chans=1"),
        ({"global_pool": "max"}, ValueError, "global_pool must be 'avg' or '', got 'max'"),
        ({"pretrained": True}, ValueError, "{name} has no pretrained weights to download; use pretrained=False"),
        ({"img_size": 64}, ValueError, "img_size"),
        ({"attn": "swin"}, TypeError, "'attn'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["zoo_biformer_tiny", "zoo_stl_swin"])
def test_settings_that_are_refused(name, settings, error, message):
    with pytest.raises(error, match=message.format(name=name)):
        timm.create_model(name, **settings)


def test_weights_saved_here_come_back(tmp_path):
    first = build(num_classes=5)
    torch.save({"state_dict": first.state_dict()}, tmp_path / "own.pth")
    second = timm.create_model(SMALL, num_classes=5, checkpoint_path=tmp_path / "own.pth").eval()
    assert same_weights(first, second) and same_weights(first, copy.deepcopy(second))
    assert torch.equal(first(images()), copy.deepcopy(second)(images()))


def test_official_weights_are_read_from_a_file(tmp_path):
    path = tmp_path / "official.pth"
    source = build("biformer_tiny", create=create_model)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)
    torch.save({"model": to_official(source, Official("models.BiFormer"))}, path)
    read = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    assert same_weights(timm.create_model("zoo_biformer_tiny", checkpoint=path), source)
    assert same_weights(timm.create_model("zoo_biformer_tiny", **read), source)
    finer = timm.create_model("zoo_biformer_tiny", num_classes=10, **read)
    features = timm.create_model("zoo_biformer_tiny", features_only=True, out_indices=(1, 3), **read)
    for model in (finer, features.model):
        model.reset_classifier(0)
        weights, theirs = model.state_dict(), source.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())
    torch.save(source.state_dict(), path)
    assert same_weights(timm.create_model("zoo_biformer_tiny", **read), source)
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"models\.BiFormer.*unknown: other; missing"):
        timm.create_model("zoo_biformer_tiny", **read)


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """biformer_tiny with 4 classes, and a training of the authors' main.py that holds its weights."""
    model = build("biformer_tiny", create=create_model, num_classes=4)
    state = to_official(model, Official("models.BiFormer"))
    training = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, output_dir=Path("runs"), best=np.float64(81.4)),
        "scaler": {"scale": 1024.0},
        "model_ema": {name: tensor + 1 for name, tensor in state.items()},
    }
    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save(training, path)
    return model, path


def test_timms_own_loading_reads_official_files(official_file):
    source, path = official_file
    with torch.serialization.safe_globals(SETTINGS):
        model = build("zoo_biformer_tiny", num_classes=4, checkpoint_path=str(path))
        assert torch.equal(model.head.bias, source.head.bias + 1)  # timm takes the average by itself
        copied = copy.deepcopy(model)
        for other in (model, copied):
            assert not any(load_checkpoint(other, str(path), use_ema=False))
            assert same_weights(other, source)


def test_weights_that_are_not_official_load_as_torch_loads_them():
    model = build("zoo_biformer_tiny", num_classes=4)
    found = model.load_state_dict({"head.bias": torch.ones(4)}, strict=False)
    assert "head.weight" in found.missing_keys and "head.bias" not in found.missing_keys and not found.unexpected_keys
    assert torch.equal(model.head.bias, torch.ones(4))
    found = model.load_state_dict({"encoder.weight": torch.ones(4)}, strict=False)
    assert found.unexpected_keys == ["encoder.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"head.bias": torch.ones(4)})
    larger = to_official(build("biformer_small", create=create_model), Official("models.BiFormer"))
    with pytest.raises(ValueError, match=r"not the weights of this models\.BiFormer: unknown: stages"):
        model.load_state_dict(larger)


VALIDATE = """
import argparse

import torch
from timm.models import create_model, load_checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--checkpoint")
parser.add_argument("--use-ema", action="store_true")
args = parser.parse_args()
model = create_model(args.model, pretrained=False, num_classes=args.num_classes)
load_checkpoint(model, args.checkpoint, args.use_ema)
print(model.head.bias.tolist())
"""
"""What timm's validate.py does with a checkpoint; it is in timm's repository, not in its package."""


def test_a_script_that_loads_as_timms_validate_py_reads_official_files(official_file, tmp_path, monkeypatch, capsys):
    source, path = official_file
    script = tmp_path / "validate.py"
    script.write_text(VALIDATE)
    monkeypatch.setattr(sys, "argv", ["timm_run"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = [str(script), "--model", "zoo_biformer_tiny", "--num-classes", "4", "--checkpoint", str(path)]
    for flags, added in (([], 0), (["--use-ema"], 1)):
        assert timm_run.main([*command, *flags]) == 0
        assert capsys.readouterr().out == f"{(source.head.bias + added).tolist()}\n"


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
