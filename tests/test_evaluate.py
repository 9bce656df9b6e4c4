"""Evaluation: accuracies that are known, however images are batched, shared and prepared."""

import argparse
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from crafted_images import ACC1, ACC5, CLASSES, COLOURS, OFFSETS, ROOT, crafted, crafted_model, run
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from attention_zoo import create_model
from attention_zoo.published.places import Official
from attention_zoo.published.weights import to_official
from runners.cells.weights import save_checkpoint
from runners.evaluation.images import eval_set
from runners.evaluation.models import Asked, open_model
from runners.evaluation.scoring import Way, answer, merge, score
from runners.machine.conditions import Conditions

__all__ = ["crafted", "run"]  # fixtures

LOSS = math.log(sum(math.exp(-rank) for rank in range(8))) + sum(OFFSETS) / 19
WAY = Way(64, 0, torch.device("cpu"), Conditions())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_known_answers_are_counted_whatever_the_batch(run, batch_size):
    (row,) = run("--batch-size", batch_size)
    assert (row["acc1"], row["acc5"], row["n_eval"], row["unread"]) == (ACC1, ACC5, 19, 0)
    assert row["loss"] == pytest.approx(LOSS, abs=1e-3)
    assert (row["model"], row["attention"], row["num_classes"], row["resolution"]) == ("small", "vanilla", 8, "64x64")
    assert (row["batch_size"], row["processes"], row["crop_pct"]) == (batch_size, 1, 0.875)
    assert f"{ACC1:.4f} {ACC5:.4f}" in run.said.out and "random weights" not in run.said.out


@pytest.mark.parametrize("world_size", [2, 3, 24])
def test_each_image_counts_once_however_many_processes_share_them(crafted, world_size):
    opened = open_model(Asked(None, crafted / "own.pth", False, None, {}, 0))
    images = eval_set(f"imagefolder:{crafted}")
    images.transform = create_transform(**opened.data_config, is_training=False)
    parts = [answer(opened.model, images, images.labels, WAY, share=(r, world_size)) for r in range(world_size)]
    found = score(merge(reversed(parts), 19), images.labels)
    assert (found["acc1"], found["acc5"], found["n_eval"]) == (ACC1, ACC5, 19)
    alone = answer(opened.model, images, images.labels, WAY)
    assert found["loss"] == pytest.approx(score(alone, images.labels)["loss"], rel=1e-6)
    for wrong in (parts[1:], [*parts, parts[0]]):
        with pytest.raises(RuntimeError, match="answers to 19 images: not each was seen once"):
            merge(wrong, 19)


@pytest.mark.slow
def test_two_processes_of_torchrun_count_as_one_does(run, crafted, tmp_path):
    flags = ["--data", f"imagefolder:{crafted}", "--checkpoint", crafted / "own.pth", "--workers", "0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "runners/evaluate.py", *flags, "--results", tmp_path / "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("table: ") == 1
    run()
    both = pd.read_csv(tmp_path / "runs" / "evaluations.csv")
    assert both["processes"].tolist() == [2, 1]
    for name in ("acc1", "acc5", "n_eval"):
        assert both[name].nunique() == 1
    assert both["loss"][0] == pytest.approx(both["loss"][1], rel=1e-6)


def test_a_tar_is_read_as_its_folder(run, crafted, tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(crafted / "val", "val")
    for spec in (f"imagefolder:{tmp_path}/val.tar", f"imagefolder:{tmp_path}", f"imagefolder:{crafted}/val"):
        (row,) = run("--data", spec)
        assert (row["acc1"], row["acc5"], row["n_eval"], row["data"]) == (ACC1, ACC5, 19, spec)


def test_images_that_cannot_be_read_are_named_and_do_not_count(run, crafted, tmp_path):
    whole = next((crafted / "val" / "ant").iterdir()).read_bytes()
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), COLOURS[CLASSES.index(name)]).save(tmp_path / "data" / name / "good.png")
    (tmp_path / "data" / "ant" / "empty.png").write_bytes(b"")
    (tmp_path / "data" / "hen" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (row,) = run("--data", f"imagefolder:{tmp_path}/data", "--batch-size", 1)
    assert (row["acc1"], row["n_eval"], row["unread"]) == (100, 8, 2)
    assert "cannot be read: ant/empty.png\ncannot be read: hen/cut.png\n" in run.said.out


def test_each_resolution_is_a_row(run):
    rows = run("--resolution", "64,96x64")
    assert [row["resolution"] for row in rows] == ["64x64", "96x64"]
    assert rows[0]["acc1"] == ACC1
    (again,) = run("--resolution", "96x64", "--crop-pct", "1.0")
    assert again["crop_pct"] == 1


def random_image(width_px, height_px):
    pixels = np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("side", [224, 384, 160])
def test_images_are_prepared_as_by_the_evaluation_of_biformer(side):
    with torch.device("meta"):
        config = open_model(Asked("biformer_tiny", None, False, None, {}, 1000)).data_config
    assert config["input_size"] == (3, 224, 224)
    official = transforms.Compose(
        [
            transforms.Resize(int((256 / 224) * side), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    ours = create_transform(**config | {"input_size": (3, side, side)}, is_training=False)
    image = random_image(500, 375)
    assert torch.equal(ours(image), official(image))


def test_official_files_are_read_and_the_average_where_it_is_asked_for(tmp_path):
    model = create_model("biformer_tiny", num_classes=8)
    state = to_official(model, Official("models.BiFormer"))
    average = {name: tensor + 1 for name, tensor in state.items()}
    args = argparse.Namespace(lr=1e-3, output_dir=Path("runs"))
    torch.save({"model": state, "model_ema": average, "optimizer": {}, "args": args}, tmp_path / "training.pth")
    for ema, added in ((False, 0), (True, 1)):
        opened = open_model(Asked("biformer_tiny", tmp_path / "training.pth", ema, None, {}, 0))
        assert torch.equal(opened.model.head.bias, model.head.bias + added)
        assert (opened.num_classes, str(opened.identity)) == (8, "biformer_tiny")


def test_a_model_of_timms_is_prepared_by_its_own_config(run, tmp_path):
    model = timm.create_model("test_vit", num_classes=8)
    training = {
        "epoch": 1,
        "arch": "test_vit",
        "state_dict": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in model.state_dict().items()},
        "state_dict_ema": {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()},
        "args": argparse.Namespace(lr=1e-3),
        "metric": np.float64(81.4),
    }
    training["state_dict_ema"]["head.bias"][2] = 9.0
    torch.save(training, tmp_path / "last.pth.tar")
    flags = ["--model", "timm:test_vit", "--checkpoint", tmp_path / "last.pth.tar"]
    small, own = run(*flags, "--resolution", "64,160")
    assert (own["mean"], own["crop_pct"], own["ema"]) == ("0.5;0.5;0.5", 0.95, False)
    # equal logits: of equal ones the lower class comes first
    labels = [(index + offset) % 8 for index, offset in enumerate(OFFSETS)]
    assert (own["acc1"], own["acc5"]) == (100 * labels.count(0) / 19, 100 * sum(k < 5 for k in labels) / 19)
    assert own["loss"] == small["loss"] == pytest.approx(math.log(8))
    (average,) = run(*flags, "--resolution", "64", "--ema")
    assert (average["acc1"], average["ema"]) == (100 * labels.count(2) / 19, True)


def test_logits_that_are_not_finite_are_wrong(run, crafted, tmp_path):
    model = crafted_model()
    with torch.no_grad():
        model.head.bias[0] = math.nan
    save_checkpoint(tmp_path / "nan.pth", model, "small", attn="vanilla")
    (row,) = run("--checkpoint", tmp_path / "nan.pth")
    assert (row["acc1"], row["acc5"], row["n_eval"]) == (0, 0, 19) and pd.isna(row["loss"])
    assert "not finite" in run.said.out


def test_without_a_checkpoint_weights_are_random_and_it_is_said(run):
    (row,) = run("--model", "small", "--attn", "bra", "--set", "topk=2")
    assert (row["model"], row["attention"], row["settings"], row["num_classes"]) == ("small", "bra", "topk=2", 8)
    assert pd.isna(row["checkpoint"]) and "random weights" in run.said.out
