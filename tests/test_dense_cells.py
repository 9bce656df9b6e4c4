"""Cells of dense tasks: the plan, and every error before any work."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_cells import HEADS, measured, one, plan
from dense_files import write_coco, write_segfolder, write_voc
from PIL import Image

from ablations.study import Cell, cell_key
from runners import Sweep
from runners.cells.models import build_model
from runners.cells.plan import command_for
from runners.cells.shares import check_shares
from runners.cli.options import read_command
from runners.jobs.options import RunOptions
from runners.store.names import cell_name
from runners.sweep import make_sweep
from runners.train.recipes import make_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data of each kind, by the word that stands for them in a command line."""
    root = tmp_path_factory.mktemp("data")
    return {
        "SEG": f"segfolder:{write_segfolder(root / 'seg')}",
        "COCO": f"coco:{write_coco(root / 'coco')}",
        "VOC": f"voc:{write_voc(root / 'voc')}",
    }


def filled(line: str, data: dict[str, str]) -> str:
    for word, spec in data.items():
        line = line.replace(word, spec)
    return line


DEFAULTS = {
    "segment": ("semantic_fpn", "scenes", "dense_short"),
    "detect": ("retinanet", "scenes", "dense_short"),
    "instance": ("mask_rcnn", "scenes", "dense_short"),
    "classify": ("", "digit-vote", "probe"),
}


def test_each_task_has_defaults_of_its_own() -> None:
    cells = plan(f"--attn swin --resolution 32 --task {','.join(DEFAULTS)}").cells
    assert {cell.task: (cell.head, cell.data, cell.recipe) for cell in cells} == DEFAULTS
    assert [cell.task for cell in cells] == list(DEFAULTS)


def test_cells_of_classification_keep_their_keys() -> None:
    # as they were before there were tasks: the canonical JSON of what differs from the defaults, by hand
    assert cell_key(one("")) == cell_key(Cell()) == "44136fa355b3678a"
    assert one("--task classify").to_dict() == {}
    assert set(one("--task segment").to_dict()) == {"task", "head", "data", "recipe"}


def test_fields_of_the_head_make_cells_and_defaults_none() -> None:
    cells = plan("--attn swin --task segment --resolution 32 --set head.width=32,128 --set head.dropout=0.2").cells
    assert [cell.head_settings for cell in cells] == [(("dropout", 0.2), ("width", 32)), (("dropout", 0.2),)]
    assert len({cell_key(cell) for cell in cells}) == 2
    assert one("--task segment --set head.width=128") == one("--task segment")
    made = plan("--attn swin --resolution 32 --task segment,instance --set head.proposals=9,10").cells
    assert [(cell.task, cell.head_settings) for cell in made] == [
        ("segment", ()),
        ("instance", (("proposals", 9),)),
        ("instance", (("proposals", 10),)),
    ]
    assert "proposals=9" in cell_name(made[1])


@pytest.mark.parametrize(
    ("line", "regions"),
    [
        ("--task segment --resolution 512x2048", 8),
        ("--task detect --resolution 800x1280", 16),
        ("--task instance --resolution 512", 16),
        ("--task segment --resolution 480x2048", None),
        ("--task segment --resolution 512 --regions 4", 4),
        ("--task segment --resolution 512 --region-size 2", None),
        ("--task classify --resolution 512", None),
    ],
)
def test_regions_at_the_published_sizes(line: str, regions: int | None) -> None:
    cell = one(f"--attn bra --layout stl {line}")
    assert dict(cell.settings).get("regions") == regions
    assert "regions" in dict(cell.defaults) or regions


@pytest.mark.parametrize("px", [pytest.param(512, marks=pytest.mark.slow), 64])
def test_regions_of_published_models(px: int) -> None:
    cell = one(f"--model biformer_tiny --task segment --resolution {px}")
    with torch.device("meta"):
        model: Any = build_model(cell)
    found = {mixer.config.regions for mixer in model.backbone.model.mixers()[0]}
    assert found == {8 if px == 512 else 7}


@pytest.mark.parametrize(
    "line",
    [
        "--attn bra --layout stl --task segment --resolution 512x1024 --head upernet --set head.auxiliary_width=0",
        "--attn bra --layout stl --task segment --resolution 512 --regions 4 --seeds 3",
        "--attn swin --task detect --data COCO,images=2 --batch-size 1 --recipe retinanet1x --epochs 2",
        f"--attn swin {HEADS['instance']} --set recipe.lr=1e-4 --set recipe.clip_norm=2 --steps 7",
        pytest.param(
            "--model timm:resnet18 --task segment --data scenes:objects=2:noise=0.1 --resolution 64x96",
            marks=pytest.mark.slow,
        ),
        "--attn swin --task segment --data SEG --batch-size 2 --set recipe.eval_every=2 --set recipe.accumulate=2",
    ],
)
def test_the_command_of_a_row_makes_that_row(line: str, data: dict[str, str]) -> None:
    cell = one(filled(line, data))
    again = make_sweep(read_command(command_for(cell, ["flops"]).split()[2:])).plan.cells
    assert again == (cell,) and again[0].defaults == cell.defaults
    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell


def test_epochs_of_files_are_steps(data: dict[str, str]) -> None:
    assert one(filled("--task segment --data SEG --batch-size 2 --epochs 4", data)).steps == 12
    # one of three images has no object, and one no box with an area but another with
    assert one(filled("--task detect --data COCO --batch-size 1 --epochs 4", data)).steps == 8
    kept = "--task detect --data COCO --batch-size 1 --epochs 4 --set recipe.keep_empty=on"
    assert one(filled(kept, data)).steps == 12
    assert one(filled("--task detect --data COCO --recipe retinanet1x --batch-size 2", data)).steps == 12
    assert one("--task segment --recipe fpn80k").steps == 80_000


REFUSED = {
    "--task segment --head retinanet": ["--head retinanet", "segment: semantic_fpn|upernet"],
    "--task classify --head upernet": ["--head upernet", "classify: none"],
    "--task segment --set head.widht=3": ["--set head.widht", "did you mean 'width'"],
    "--task detect --set head.fpn_width=3": ["retinanet", "'fpn_width'", "known: detections, width"],
    "--task classify --set head.width=3": ["--set head.width", "classify has no head"],
    "--task segment --set head.width=wide": ["--set head.width=wide", "a number"],
    "--task segment --set head.width=0": ["width of semantic_fpn must be an integer from 1 to 65536, got 0"],
    "--task segment --set head.width=999999999": ["from 1 to 65536, got 999999999"],
    "--task segment --set head.dropout=nan": ["dropout", "nan"],
    "--task segment --head upernet --set head.pools=1": ["'pools'", "known: auxiliary_width, dropout, width"],
    "--task segment --data digit-vote": ["--data", "'digit-vote'", "known: scenes"],
    "--task classify --data scenes": ["--data", "scenes", "segment, detect, instance"],
    "--task detect --data SEG": ["no annotations for task 'detect'", "segfolder is for segment"],
    "--task segment --data COCO": ["no annotations for task 'segment'"],
    "--task instance --data VOC": ["no annotations for task 'instance'"],
    "--task segment --data scenes:objects=0": ["objects must be at least 1"],
    "--task segment --recipe short": ["--recipe short is for classify", "dense_short"],
    "--task classify --recipe fpn80k": ["--recipe fpn80k is for dense tasks", "probe"],
    "--task segment --recipe fpn": ["--recipe", "'fpn'", "fpn80k"],
    "--task segment --set recipe.mixup=0.5": ["recipe.mixup=0.5", "classes of images"],
    "--task segment --set recipe.smoothing=0.1": ["recipe.smoothing=0.1"],
    "--task classify --set recipe.zoom_min=0.5": ["recipe.zoom_min=0.5", "dense tasks"],
    "--task segment --set recipe.zoom_min=3": ["zoom_min must be above 0, at most zoom_max, got 3"],
    "--task detect --set recipe.hflip=0": ["recipe.hflip=0", "changes nothing of data scenes"],
    "--task segment --recipe fpn80k --set recipe.eval_labels=resized": ["recipe.eval_labels=resized changes nothing"],
    "--task detect --data COCO --batch-size 2 --set recipe.zoom_min=0.5": ["recipe.zoom_min=0.5", "of task=detect"],
    "--task segment --data SEG --batch-size 2 --set recipe.keep_empty=on": ["recipe.keep_empty=on", "task=segment"],
    "--task segment --set recipe.zoom_max=17": ["zoom_max", "17"],
    "--task segment --set recipe.zoom_max=nan": ["zoom_max must be above 0, at most 16, got nan"],
    "--task detect --data COCO --batch-size 2 --set recipe.short_px=1000000": ["short_px must be 0 to 16384 px"],
    "--task detect --data COCO --batch-size 2 --set recipe.long_px=10": ["recipe.long_px=10 must be at least", "64 px"],
    "--task segment --set recipe.distillation=soft --set recipe.teacher=biformer_tiny": ["has no teacher"],
    "--task segment --set recipe.token_labels=teacher": ["no token labels"],
    "--task segment --tune-lr 1e-3,2e-3": ["tune_lr is for classify"],
    "--task segment --freeze": ["freeze is for classify"],
    "--task segment --reset-classes": ["reset_classes needs init_from"],
    "--task segment --init-from /nowhere.pth": ["init_from=/nowhere.pth", "neither a file nor the key"],
    "--task segment --epochs 2": ["--epochs 2", "scenes is an endless stream", "--steps"],
    "--task segment --set recipe.eval_every=1": ["recipe.eval_every=1", "endless"],
    "--task detect --recipe retinanet1x": ["counts epochs", "--steps"],
    "--task segment --data segfolder:/nowhere": ["segfolder:/nowhere", "does not exist"],
    "--task segment --data SEG,val_split=test --batch-size 2": ["val_split=test", "no images/test/"],
    "--task segment --data SEG": ["batch size must be 1 to 6, the training images, got 64"],
    "--task detect --data COCO --batch-size 3": ["batch size must be 1 to 2"],
    "--task segment --model timm:vit_tiny_patch16_224": ["timm:vit_tiny_patch16_224", "strides (4, 8, 16, 32)"],
    "--task segment --model timm:vgg11 --set recipe.drop_path=0.1": ["timm:vgg11 has no drop path"],
    "--task segment --model timm:resnet18 --set recipe.checkpointing=on --set recipe.checkpointed_stages=1": [
        "models of timm have all or none"
    ],
    "--task segment --set recipe.checkpointed_stages=1": ["it needs recipe.checkpointing=on"],
}


@pytest.mark.parametrize("line", [pytest.param(i, marks=[pytest.mark.slow] if "timm" in i else []) for i in REFUSED])
def test_what_does_not_fit_is_one_clear_error(line: str, data: dict[str, str]) -> None:
    with pytest.raises(ValueError) as error:
        plan(filled(f"{line}", data))
    assert "\n" not in str(error.value)
    for part in REFUSED[line]:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["--resolution 31", "--resolution 64x16", "--task segmet"])
def test_what_no_cell_can_have_is_refused_by_the_command_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_command(["--task", "segment", *text.split()])
    assert text.split()[1] in capsys.readouterr().err


def annotation(root: Path, split: str = "train2017") -> Path:
    return root / "annotations" / f"instances_{split}.json"


def of_another_split(root: Path) -> None:
    os.replace(annotation(root, "val2017"), annotation(root))
    annotation(root, "val2017").write_text(annotation(root).read_text())


def without_images(root: Path) -> None:
    for path in (root / "train2017").iterdir():
        path.unlink()


def many_labels(root: Path) -> None:
    Image.fromarray(np.full((36, 40), 7, np.uint8)).save(root / "annotations" / "train" / "train0.png")


def of_another_size(root: Path) -> None:
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(root / "annotations" / "train" / "train0.png")


def unlabelled(root: Path) -> None:
    (root / "annotations" / "train" / "train0.png").unlink()


def crowds(root: Path) -> None:
    path = annotation(root, "val2017")
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    path.write_text(json.dumps(content))


SPOILT: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "annotations of another split": (of_another_split, "COCO", ["train2017"]),
    "annotations of images that are not there": (without_images, "COCO", ["train2017"]),
    "a test of crowds alone": (crowds, "COCO", ["val2017", "counts"]),
    "labels above the number of classes": (many_labels, "SEG", ["train0.png", "7"]),
    "a mask of another size": (of_another_size, "SEG", ["train0.png", "40"]),
    "an image without annotation": (unlabelled, "SEG", ["train0"]),
}


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_do_not_fit_are_one_clear_error_of_the_plan_or_of_the_training(what: str, tmp_path: Path) -> None:
    spoil, kind, parts = SPOILT[what]
    root = (write_coco if kind == "COCO" else write_segfolder)(tmp_path / "data")
    spoil(root)
    task, name = ("detect", "coco") if kind == "COCO" else ("segment", "segfolder")
    line = f"--attn swin {HEADS[task]} --layout small32 --resolution 32 --data {name}:{root} --batch-size 2"
    with pytest.raises(ValueError) as error:
        cell = one(f"{line} --strict-data --steps 3")
        measured(cell, "accuracy", tmp_path / "out")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def norms(line: str, processes: int = 1) -> None:
    check_shares(plan(line).cells, processes)


def test_batch_norm_needs_two_values() -> None:
    upernet = "--attn swin --layout small32 --task segment --head upernet --resolution 64"
    norms(f"{upernet} --batch-size 2")
    norms(f"{upernet} --batch-size 4 --set recipe.accumulate=2")
    norms("--attn swin --layout small32 --task segment --resolution 64 --batch-size 1")
    norms(f"{upernet} --batch-size 2", processes=2)
    refused = {
        f"{upernet} --batch-size 1": "batch_size=1: BatchNorm of upernet .* allowed: 2 or more",
        f"{upernet} --batch-size 3 --set recipe.accumulate=2": "in each of the 2 parts of a step; allowed: 4 or more",
        "--attn swin --layout small32 --task segment --resolution 32 --batch-size 1": "BatchNorm of semantic_fpn",
    }
    for line, words in refused.items():
        with pytest.raises(ValueError, match=words):
            norms(line)
    with pytest.raises(ValueError, match=r"batch_size=3: 2 processes have not .* 2 parts .* allowed: 4 or more"):
        norms(f"{upernet} --batch-size 3 --set recipe.accumulate=2", processes=2)
    with pytest.raises(ValueError, match="BatchNorm of upernet"):
        sweep = Sweep(task="segment", head="upernet", attn="swin", batch_size=1, measures="accuracy")
        sweep.check(RunOptions())
    Sweep(task="segment", head="upernet", attn="swin", batch_size=1, measures="flops").check(RunOptions())


def test_a_range_of_zooms_is_judged_as_a_whole(data: dict[str, str]) -> None:
    segment = filled("--task segment --data SEG --batch-size 2", data)
    assert one(f"{segment} --set recipe.zoom_min=1.2").training == (("zoom_min", 1.2),)
    assert one(f"{segment} --set recipe.zoom_max=0.9 --set recipe.zoom_min=0.8").steps == 400
    with pytest.raises(ValueError, match="zoom_min must be above 0, at most zoom_max"):
        make_recipe("dense_short", (("zoom_max", 0.7),))
