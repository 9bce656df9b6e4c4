"""Images and a checkpoint for tests of evaluating, for which the right answers are known."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from attention_zoo import create_model
from runners.cells.weights import save_checkpoint
from runners.evaluate import main
from runners.evaluation.models import Asked, open_model
from runners.store.csv import read_csv
from runners.store.evaluations import EVALUATION_COLUMNS

ROOT = Path(__file__).parents[1]
COLOURS = [(r, g, b) for r in (30, 220) for g in (40, 230) for b in (20, 200)]
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
OFFSETS = [0, 0, 1, 0, 4, 0, 5, 7, 0, 0, 3, 6, 0, 0, 2, 0, 0, 7, 0]
"""Of each image: by how much the number of its class exceeds that of its colour, modulo 8."""
ACC1, ACC5 = 100 * 11 / 19, 100 * 15 / 19


def plain():
    """Data config of a model of ours at 64 px."""
    return {**open_model(Asked("small", None, False, "vanilla", {}, 8)).data_config, "input_size": (3, 64, 64)}


def crafted_model():
    """A model that gives to an image of colour c the logit -((k - c) mod 8) for class k."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("small", attn="vanilla", num_classes=8).eval()
    prepare = create_transform(**plain(), is_training=False)
    images = torch.stack([prepare(Image.new("RGB", (64, 64), colour)) for colour in COLOURS])
    wanted = -torch.tensor([[(k - c) % 8 for k in range(8)] for c in range(8)], dtype=torch.float64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).double()
        model.head.weight.copy_((torch.linalg.pinv(features) @ wanted).T)
        model.head.bias.zero_()
        torch.testing.assert_close(model(images).double(), wanted, atol=1e-3, rtol=0)
    return model


@pytest.fixture(scope="module")
def crafted(tmp_path_factory):
    """A folder with val/CLASS/*.png of one colour each, and a checkpoint for which the right answers are known."""
    folder = tmp_path_factory.mktemp("crafted images")
    for name in CLASSES:
        (folder / "val" / name).mkdir(parents=True)
    for index, offset in enumerate(OFFSETS):
        colour = COLOURS[index % 8]
        size = [(64, 64), (40, 70), (200, 90)][index % 3]
        Image.new("RGB", size, colour).save(folder / "val" / CLASSES[(index + offset) % 8] / f"{index}.png")
    save_checkpoint(folder / "own.pth", crafted_model(), "small", attn="vanilla")
    return folder


@pytest.fixture
def run(crafted, tmp_path, capsys):
    """run(*flags) -> rows that the command adds, for the crafted model and images unless flags name others."""

    def call(*flags, code=0):
        given = [str(flag) for flag in flags]
        defaults = {"--data": f"imagefolder:{crafted}", "--checkpoint": str(crafted / "own.pth"), "--workers": "0"}
        if "--model" in given and "--checkpoint" not in given:
            del defaults["--checkpoint"]
        given += [word for flag, value in defaults.items() if flag not in given for word in (flag, value)]
        table = tmp_path / "runs" / "evaluations.csv"
        before = len(pd.read_csv(table)) if table.exists() else 0
        try:
            assert main([*given, "--results", str(tmp_path / "runs")]) == code
        except SystemExit as end:
            assert end.code == code
        call.said = capsys.readouterr()
        if code:
            assert call.said.err.count("\n") == 1 and call.said.out == "", call.said
            return call.said.err
        dtypes = {name: column.dtype for name, column in EVALUATION_COLUMNS.items()}
        return read_csv(table, dtypes).iloc[before:].to_dict("records")

    return call
