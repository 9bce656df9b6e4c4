"""Files of weights of dense models, and what a dense model starts from."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dense_cells import one

from ablations.study import Cell
from runners.cells.models import build_model
from runners.cells.starting import Start, read_start, start_from
from runners.cells.weights import load_file, read_checkpoint, save_checkpoint


def saved(line: str, path: Path, dense: tuple[str, str] | None) -> Cell:
    cell = one(line)
    save_checkpoint(path, build_model(cell, 4), cell.layout, attn=cell.attn, dense=dense)
    return cell


def test_a_file_of_a_dense_model_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    saved("--attn swin --layout small32 --task segment --set head.width=8", path, ("segment", "semantic_fpn"))
    assert str(read_checkpoint(path)[1]) == "small32, swin, semantic_fpn for task segment"
    with pytest.raises(ValueError, match="semantic_fpn for task segment; models of images as a whole alone") as error:
        load_file(path)
    assert "\n" not in str(error.value)
    plain = tmp_path / "plain.pth"
    saved("--attn swin --layout small32", plain, None)
    assert load_file(plain)[1].task == "classify"


@pytest.mark.slow
def test_what_a_dense_model_starts_from(tmp_path: Path) -> None:
    segment = "--attn swin --layout small32 --task segment --set head.width=8"
    files = {
        "classifier": "--attn swin --layout small32 --seeds 1",
        "same": f"{segment} --seeds 1",
        "other head": "--attn swin --layout small32 --task detect --set head.width=8 --seeds 1",
        "other backbone": "--attn vanilla --layout small32 --task segment --set head.width=8 --seeds 1",
    }
    for name, line in files.items():
        saved(line, tmp_path / name, None if name == "classifier" else (one(line).task, one(line).head))

    def started(name: str, **options: Any) -> dict[str, torch.Tensor]:
        model = build_model(one(segment), 4)
        start_from(model, read_start(tmp_path / name), **options)
        return model.state_dict()

    fresh = build_model(one(segment), 4).state_dict()
    for name, options, is_whole in (
        ("classifier", {}, False),
        ("same", {}, True),
        ("same", {"reset_classes": True}, False),
    ):
        given, found = read_start(tmp_path / name).state, started(name, **options)
        for key in fresh:
            inner = key.removeprefix("backbone.model.") if name == "classifier" else key
            from_file = inner in given and (is_whole or not key.startswith("head."))
            assert torch.equal(found[key], given[inner] if from_file else fresh[key]), key
    assert any(key.startswith("head.") for key in fresh)
    with pytest.raises(ValueError, match="another head or for other classes; give --reset-classes"):
        started("other head")
    found, given = started("other head", reset_classes=True), read_start(tmp_path / "other head").state
    assert all(
        torch.equal(found[key], given[key] if key in given and key[:5] != "head." else fresh[key]) for key in found
    )
    with pytest.raises(ValueError, match="weights of another model: it lacks"):
        started("other backbone", reset_classes=True)
    with pytest.raises(ValueError, match="a model of a dense task, which a classifier cannot start from"):
        start_from(build_model(one("--attn swin --layout small32"), 4), read_start(tmp_path / "same"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "twins_svt_small"])
def test_a_backbone_of_timm_starts_from_its_classifier(name: str, tmp_path: Path) -> None:
    classifier = timm.create_model(name, num_classes=7).eval()
    model: Any = build_model(one(f"--model timm:{name} --task segment --set head.width=8"), 4).eval()
    start_from(model, Start(classifier.state_dict(), tmp_path, ""))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        last = classifier.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.backbone.maps(images)[-1].permute(0, 3, 1, 2), last)
