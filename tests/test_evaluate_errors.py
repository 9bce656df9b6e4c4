"""Evaluations that are refused in one line; the table of evaluations: its columns, and that it keeps what it had."""

import tarfile

import pytest
import timm
import torch
from crafted_images import ACC1, ACC5, CLASSES, ROOT, crafted, run
from PIL import Image

from attention_zoo import create_model
from runners.cells.weights import save_checkpoint
from runners.evaluate import main
from runners.store import evaluations
from runners.store.evaluations import EVALUATION_COLUMNS, append_evaluations, check_evaluations
from runners.store.files import StoreError

__all__ = ["crafted", "run"]  # fixtures


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
