"""Checkpoints as visualize.py reads them: they say what model they hold, import nothing unasked, are written whole."""

import os

import pytest
import torch
from pictured_models import CONFIG, small_model
from safetensors.torch import save_file

from attention_zoo import create_model
from attention_zoo.published.places import Official
from attention_zoo.published.weights import to_official
from runners.cells.weights import load_model, save_checkpoint


def test_own_checkpoints_say_what_they_are(tmp_path):
    source = small_model(**CONFIG)
    save_checkpoint(tmp_path / "own.pt", source, "small", attn="bra", **CONFIG)
    model, label = load_model(str(tmp_path / "own.pt"))
    assert label == "small, bra, topk=2-2-3-full, regions=4 (weights of own.pt)"
    assert not model.training
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "plain.pth")
    again, _ = load_model(str(tmp_path / "plain.pth"), arch="small", config=CONFIG)
    with torch.no_grad():
        torch.testing.assert_close(again(images), source(images))


def test_checkpoints_of_published_models_have_the_official_names(tmp_path):
    source = create_model("biformer_tiny", num_classes=2)
    state = to_official(source, Official("models.BiFormer"))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    model, label = load_model(str(tmp_path / "model.safetensors"), arch="biformer_tiny")
    assert label == "biformer_tiny (weights of model.safetensors)"
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_imports_no_module_unless_that_is_asked_for(tmp_path):
    save_checkpoint(tmp_path / "mine.pth", small_model("swin"), "small", attn="attention_zoo.mechanisms.swin:Swin")
    with pytest.raises(ValueError, match=r"attn=attention_zoo\.mechanisms\.swin:Swin"):
        load_model(str(tmp_path / "mine.pth"))
    assert "Swin" in load_model(str(tmp_path / "mine.pth"), attn="attention_zoo.mechanisms.swin:Swin").label


def test_a_field_of_a_mechanism_may_be_called_like_an_argument(tmp_path):
    save_checkpoint(tmp_path / "own.pth", small_model(), "small", attn="bra", path="a", model=1, arch="b")
    assert torch.load(tmp_path / "own.pth", weights_only=True)["attention_zoo"]["config"] == {
        "path": "a",
        "model": 1,
        "arch": "b",
    }


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "own.pth"
    save_checkpoint(path, small_model(), "small", attn="bra")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot write .*own.pth/other.pth"):
        save_checkpoint(path / "other.pth", small_model(), "small", attn="bra")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=r"own.pth: No space left"):
        save_checkpoint(path, small_model("swin"), "small", attn="swin")
    assert path.read_bytes() == before and [found.name for found in tmp_path.iterdir()] == ["own.pth"]
