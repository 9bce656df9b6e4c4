"""Weights of the zoo's models by timm's ways of loading: our own, official files, and what is neither."""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import load_checkpoint
from timm_cells import SMALL, build, images, same_weights

from attention_zoo import create_model, timm_run
from attention_zoo.published.places import Official
from attention_zoo.published.weights import SETTINGS, to_official


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
