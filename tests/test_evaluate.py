"""Evaluation: accuracies that are known, however images are batched and shared; class orders; bad input."""

import argparse
import json
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
from PIL import Image
from timm.data import ImageNetInfo, RealLabelsImagenet, create_transform
from torchvision import transforms

from attention_zoo import create_model
from attention_zoo.published.places import Official
from attention_zoo.published.weights import to_official
from runners.cells.weights import save_checkpoint
from runners.evaluate import main
from runners.evaluation.images import eval_set
from runners.evaluation.labels import class_indices, read_real_labels
from runners.evaluation.models import Asked, open_model
from runners.evaluation.scoring import Answers, Way, answer, merge, score
from runners.machine.conditions import Conditions
from runners.store import evaluations
from runners.store.csv import read_csv
from runners.store.evaluations import EVALUATION_COLUMNS, append_evaluations, check_evaluations
from runners.store.files import StoreError

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ZOO_DATA", ROOT.parent / "shared" / "data"))
PHOTOGRAPHS = DATA / "imagenet_one_per_class.tar"
COLOURS = [(r, g, b) for r in (30, 220) for g in (40, 230) for b in (20, 200)]
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
OFFSETS = [0, 0, 1, 0, 4, 0, 5, 7, 0, 0, 3, 6, 0, 0, 2, 0, 0, 7, 0]
"""Of each image: by how much the number of its class exceeds that of its colour, modulo 8."""
ACC1, ACC5 = 100 * 11 / 19, 100 * 15 / 19
LOSS = math.log(sum(math.exp(-rank) for rank in range(8))) + sum(OFFSETS) / 19
WAY = Way(64, 0, torch.device("cpu"), Conditions())


def plain(model):
    """Data config of a model of ours at 64 px."""
    return {**open_model(Asked("small", None, False, "vanilla", {}, 8)).data_config, "input_size": (3, 64, 64)}


def crafted_model():
    """A model that gives to an image of colour c the logit -((k - c) mod 8) for class k."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("small", attn="vanilla", num_classes=8).eval()
    prepare = create_transform(**plain(model), is_training=False)
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


def test_official_files_are_read_and_the_average_where_it_is_asked_for(crafted, tmp_path):
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


WNIDS = ImageNetInfo().label_names()


def test_folders_of_imagenet_have_their_place_among_its_classes():
    assert class_indices("", [WNIDS[7], WNIDS[993]], 1000) == [7, 993]
    assert class_indices("", WNIDS, 1000) == list(range(1000))
    # a model of a part of the classes has them in their own order
    assert class_indices("", [WNIDS[7], WNIDS[993]], 2) == [0, 1]


def test_folders_that_are_numbers_have_their_number(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / str(number) / "image.png")
    found = eval_set(f"imagefolder:{tmp_path}")
    # in the order of training, which is that of the sorted names
    assert found.classes == sorted(map(str, range(12))) and class_indices("", found.classes, 12) == list(range(12))
    assert {name.partition("/")[0]: label for name, label in zip(found.names, found.labels, strict=True)}["10"] == 2
    # ImageNet-V2
    names = sorted(map(str, range(1000)))
    assert class_indices("", names, 1000) == [int(name) for name in names]
    assert class_indices("", ["1", "2", "3"], 3) == [0, 1, 2]


def test_a_label_map_says_which_class_is_which(run, tmp_path):
    (tmp_path / "map.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    (row,) = run("--label-map", tmp_path / "map.txt")
    right = [(7 - (index + offset)) % 8 == index % 8 for index, offset in enumerate(OFFSETS)]
    assert row["acc1"] == 100 * sum(right) / 19
    (tmp_path / "map.txt").write_text("ant\nbee\n")
    assert "does not name cat, dog, eel, ..., of which there are images" in run(
        "--label-map", tmp_path / "map.txt", code=2
    )


def test_real_labels_are_counted_as_timm_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 20, generator=generator)
    real = [[], *([index % 20, (index * 7) % 20] for index in range(1, 30))]
    (tmp_path / "real.json").write_text(json.dumps(real))
    names = [f"n01440764/ILSVRC2012_val_{index + 1:08d}.JPEG" for index in range(30)]
    theirs = RealLabelsImagenet(names, real_json=str(tmp_path / "real.json"))
    theirs.add_result(logits)
    expected = theirs.get_accuracy()
    answers = Answers(torch.arange(30), logits.argsort(1, descending=True)[:, :5], torch.zeros(30), ())
    found = score(answers, [0] * 30, read_real_labels(tmp_path / "real.json", names))
    assert (found["real_acc1"], found["real_acc5"]) == pytest.approx((expected[1], expected[5]))
    assert (found["real_n_eval"], found["n_eval"]) == (29, 30)
    assert 0 < expected[1] < expected[5] < 100
    # a part of the images, by their number; others by the order of their names
    assert read_real_labels(tmp_path / "real.json", [names[4], names[0]]) == [frozenset(real[4]), frozenset()]
    others = [f"class/{index}.jpg" for index in range(30)]
    in_order = sorted(range(30), key=lambda index: others[index])
    assert read_real_labels(tmp_path / "real.json", others)[in_order[3]] == frozenset(real[3])


def test_real_labels_are_columns_of_the_row(run, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([list(range(8))] * 9 + [[]] * 10))
    (row,) = run("--real-labels", tmp_path / "real.json")
    assert (row["real_acc1"], row["real_acc5"], row["real_n_eval"], row["acc1"]) == (100, 100, 9, ACC1)


def test_without_a_checkpoint_weights_are_random_and_it_is_said(run):
    (row,) = run("--model", "small", "--attn", "bra", "--set", "topk=2")
    assert (row["model"], row["attention"], row["settings"], row["num_classes"]) == ("small", "bra", "topk=2", 8)
    assert pd.isna(row["checkpoint"]) and "random weights" in run.said.out


@pytest.fixture(scope="module")
def spoilt(crafted, tmp_path_factory):
    """A folder with images and checkpoints that cannot be evaluated, or not with the others."""
    tmp = tmp_path_factory.mktemp("spoilt")
    for part in ("empty", "flat", "two/a", "two/b"):
        (tmp / part).mkdir(parents=True)
    for place in ("flat/one.png", "two/a/one.png", "two/b/one.png"):
        Image.new("RGB", (32, 32)).save(tmp / place)
    for name in CLASSES:
        (tmp / "broken" / name).mkdir(parents=True)
        (tmp / "broken" / name / "empty.jpg").touch()
    with tarfile.open(tmp / "empty.tar", "w"):
        pass
    with tarfile.open(tmp / "whole.tar", "w") as tar:
        tar.add(crafted / "val", "val")
    whole = (tmp / "whole.tar").read_bytes()
    (tmp / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    own = (crafted / "own.pth").read_bytes()
    (tmp / "own.pth").write_bytes(own)
    (tmp / "cut.pth").write_bytes(own[: len(own) // 2])
    headless = create_model("small", attn="vanilla", num_classes=0)
    save_checkpoint(tmp / "headless.pth", headless, "small", attn="vanilla")
    torch.save(timm.create_model("test_vit", num_classes=8).state_dict(), tmp / "vit.pth")
    (tmp / "three.json").write_text("[[1], [2], []]")
    return tmp


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "imagefolder:{tmp}/nowhere"], "--data imagefolder:{tmp}/nowhere: {tmp}/nowhere does not exist"),
        (["--data", "imagefolder:{tmp}/empty"], "{tmp}/empty holds no images"),
        (["--data", "imagefolder:{tmp}/empty.tar"], "{tmp}/empty.tar holds no images"),
        (["--data", "imagefolder:{tmp}/cut.tar"], "cut.tar is damaged or cut off"),
        (["--data", "imagefolder:{tmp}/flat"], "one.png lies in no folder of a class"),
        (["--data", "imagefolder:{tmp}/two"], "has 2 classes (a, b) and the model 8; say by --label-map"),
        (["--data", "imagefolder:{tmp}/own.pth"], "own.pth is neither a folder nor a .tar"),
        (["--data", "digit-vote"], "give imagefolder:PATH"),
        (["--checkpoint", "{tmp}/nowhere.pth"], "--checkpoint {tmp}/nowhere.pth: no such file"),
        (["--checkpoint", "{tmp}/cut.pth"], "cut.pth cannot be read: "),
        (["--checkpoint", "{tmp}/headless.pth"], "has no classifier"),
        (
            ["--model", "biformer_tiny", "--checkpoint", "{tmp}/own.pth"],
            "holds small, vanilla, not --model=biformer_tiny; leave --model out",
        ),
        (["--model", "biformer_tiny", "--checkpoint", "{tmp}/vit.pth"], "is no checkpoint of biformer_tiny: "),
        (["--model", "timm:test_resnet", "--checkpoint", "{tmp}/own.pth"], "has no classifier"),
        (["--model", "timm:test_vit", "--checkpoint", "{tmp}/own.pth"], "is no checkpoint of timm:test_vit: unknown: "),
        (["--checkpoint", "{tmp}/vit.pth"], "does not say what model it holds; name it by --model: "),
        (["--model", "stll", "--checkpoint", "{tmp}/vit.pth"], "unknown --model 'stll'; did you mean 'stl'"),
        (["--data", "imagefolder:{tmp}/broken"], "none of the 8 images can be read"),
        (["--model", "biformer_tny"], "unknown model 'biformer_tny'; did you mean 'biformer_tiny'"),
        (["--model", "timm:tst_vit"], "timm has no model 'tst_vit'; near: test_vit"),
        (["--model", "timm:test_vit.nowhere"], "Invalid pretrained tag (nowhere) for test_vit"),
        (["--model", "timm:test_vit", "--attn", "bra"], "has no mechanism to choose"),
        (["--ema"], "own.pth holds no moving average of weights"),
        (["--model", "small", "--ema"], "--ema takes the moving average out of a --checkpoint"),
        (["--resolution", "16"], "argument --resolution: '16' is not PX or HxW"),
        (["--model", "timm:test_mambaout", "--resolution", "32", "--batch-size", "0"], "argument --batch-size"),
        (["--crop-pct", "1.5"], "argument --crop-pct: '1.5' is no share"),
        (["--real-labels", "{tmp}/own.pth"], "--real-labels {tmp}/own.pth is no JSON"),
        (["--real-labels", "{tmp}/three.json"], "has labels of 3 images; these are 19, and ant/"),
        (["--label-map", "{tmp}/three.json"], "give a .txt"),
        (["--device", "tpu"], "device must be auto, cpu"),
        (["--precision", "tf32"], "--precision: precision tf32 needs a CUDA device"),
    ],
    ids=lambda value: " ".join(value).replace("{tmp}/", "") if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(run, spoilt, tmp_path, flags, message):
    said = run(*(flag.format(tmp=spoilt) for flag in flags), code=2)
    assert message.format(tmp=spoilt) in said
    assert not (tmp_path / "runs" / "evaluations.csv").exists()


def test_a_size_that_a_model_cannot_take_is_refused_before_any_work(run):
    said = run("--model", "timm:test_vit", "--resolution", "160,100", code=2)
    assert "--resolution 100x100: timm:test_vit cannot take it: " in said


def test_rows_are_added_and_what_was_there_stays(tmp_path):
    path = tmp_path / "evaluations.csv"
    path.write_text("model,acc1,mine\nother,81.30000000000001,'=1+1\n")
    append_evaluations(tmp_path, [{"model": "=cmd()", "acc1": 50.0, "n_eval": 2, "ema": False}])
    append_evaluations(tmp_path, [{"model": "third", "acc1": None}])
    lines = path.read_text().splitlines()
    assert lines[0].split(",")[:3] == ["model", "acc1", "mine"]
    assert set(lines[0].split(",")) == {*EVALUATION_COLUMNS, "mine"}
    assert lines[1].startswith("other,81.30000000000001,'=1+1,")
    assert lines[2].startswith("'=cmd(),50.0,,") and lines[3].startswith("third,,,")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.csv"]


def test_a_row_that_cannot_be_written_is_shown(crafted, tmp_path, monkeypatch, capsys):
    def full(folder, rows):
        raise StoreError("no space left")

    monkeypatch.setattr(evaluations, "append_evaluations", full)
    flags = ["--checkpoint", str(crafted / "own.pth"), "--data", f"imagefolder:{crafted}", "--workers", "0"]
    assert main([*flags, "--results", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert f"{ACC1:.4f} {ACC5:.4f}" in said.out and said.err == "evaluate.py: error: no space left\n"


def test_a_file_that_is_no_table_is_left_alone(tmp_path):
    path = tmp_path / "evaluations.csv"
    path.write_bytes(b"\xff\xfe\x00")
    for call in (check_evaluations, lambda folder: append_evaluations(folder, [{"model": "x"}])):
        with pytest.raises(StoreError, match=r"evaluations\.csv cannot be read as a table"):
            call(tmp_path)
    assert path.read_bytes() == b"\xff\xfe\x00"


def test_the_readme_explains_the_columns_of_evaluations():
    _, _, part = (ROOT / "results" / "README.md").read_text().partition("\n## Evaluations\n")
    listed = [line for line in part.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert listed == [
        f"| `{name}` | {c.dtype} | {c.unit} | {c.description} |" for name, c in EVALUATION_COLUMNS.items()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason=f"{PHOTOGRAPHS} is not there")
def test_photographs_of_imagenets_classes_are_in_its_order(run):
    images = eval_set(f"imagefolder:{PHOTOGRAPHS}")
    indices = class_indices("", images.classes, 1000)
    assert len(images) == len(set(images.labels)) == 1000
    for name, label in zip(images.names, images.labels, strict=True):
        assert WNIDS[indices[label]] == Path(name).parent.name
    (row,) = run("--data", f"imagefolder:{PHOTOGRAPHS}", "--model", "small", "--attn", "vanilla", "--resolution", "32")
    assert (row["n_eval"], row["unread"], row["num_classes"]) == (1000, 0, 1000)
    assert row["acc1"] < 2 and row["loss"] > 6
