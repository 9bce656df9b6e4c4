"""Images as a sweep meets them: refused in one line before any work, trained on, and told of in the row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import tar_of, write_data, write_folder

from ablations.study import Axes, Cell
from runners.cells.plan import command_for, make_plan
from runners.data.folders import open_folders
from runners.jobs.launch import Order
from runners.jobs.options import RunOptions
from runners.jobs.submission import Request
from runners.retry import _split
from runners.store.store import open_store
from runners.sweep import main
from runners.table import load

ROOT = Path(__file__).parents[1]
OWN = """
import torch
from torch.utils.data import Dataset

class Mine(Dataset):
    num_classes = 3
    targets = [0, 1, 2, 0, 1, 2, 0, 1]

    def __init__(self, split):
        pass

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3, 32, 32), index / 8), self.targets[index]
"""
TRAINED = ["--attn", "swin", "--measure", "accuracy", "--cluster", "debug", "--steps", "5", "--batch-size", "4"]
TRAINED += ["--resolution", "32", "--threads", "1", "--workers", "0"]

BAD = {
    "imagefolder:nowhere": "does not exist",
    "imagefolder:one": "one class, 'cat'",
    "imagefolder:unknown": "1 only in the test images (yak)",
    "imagefolder:cut": "train.tar is damaged or cut off",
    "imagefolder:empty": "has neither train/ nor train.tar",
    "imagefolder:empty,split=0.2": "holds no images in folders of classes",
    "imagefolder:notes.txt": "is no folder",
    "imagefolder:good,spilt=0.2": "'spilt=0.2' is not one of train=, val=, split=",
    "imagefolder:good,split=2": "split=2 must be a share",
    "imagefolder:good,mean=1/2/3": "mean=1/2/3 must be three numbers",
    "imagefolder:good,norm=none": "norm=none must be imagenet or data",
    "imagefoldr:/good": "unknown data 'imagefoldr'",
    "imagefoldr:good": "it cannot be imported: ModuleNotFoundError",
    "timm:hfids/good": "what works: timm:hfds/NAME, timm:tfds/NAME, timm:torch/NAME, timm:wds/NAME",
    "timm:wds/x,root=good": "good has no shards x-train-*.tar or train-*.tar",
    "timm:torch/cifar10,root=good": "nothing is downloaded without download=on",
    "good": "unknown data 'good'",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working directory with data of every kind; returns it."""
    write_data(tmp_path / "good")
    write_data(tmp_path / "one", classes=("cat",))
    write_data(tmp_path / "unknown")
    write_folder(tmp_path / "unknown" / "val", {"yak": 1})
    (tmp_path / "cut").mkdir()
    for part in ("train", "val"):
        tar_of(tmp_path / "good" / part, tmp_path / "cut" / f"{part}.tar")
    os.truncate(tmp_path / "cut" / "train.tar", 3000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no data")
    monkeypatch.chdir(tmp_path)
    open_folders.cache_clear()
    return tmp_path


@pytest.mark.parametrize("spec", BAD)
def test_bad_data_end_a_dry_run_with_one_line(data, spec, capsys):
    assert main(["--attn", "vanilla", "--data", spec, "--batch-size", "4", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert BAD[spec] in printed.err and "error: " in printed.err
    assert spec.partition(":")[0] in printed.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "-1"], "--workers"),
        (["--batch-size", "4", "--set", "recipe.auto_augment=ran-m9"], "auto_augment 'ran-m9' is no policy of timm"),
        (["--batch-size", "4", "--set", "recipe.auto_augment=rand-x9"], "auto_augment 'rand-x9' is no policy of timm"),
        (["--strict-data", "yes"], "'yes' is not one of on, off"),
        (["--batch-size", "19"], "batch size must be 1 to 18 for imagefolder:good, got 19"),
        (["--batch-size", "5", "--set", "recipe.mixup=0.8"], "Mixup and CutMix join pairs"),
    ],
)
def test_bad_options_of_data_end_a_dry_run_with_one_line(data, flags, words, capsys):
    line = ["--attn", "vanilla", "--data", "imagefolder:good", *flags, "--dry-run"]
    try:
        code = main(line)
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2
    assert (error := capsys.readouterr().err).count("\n") == 1 and words in error


def test_the_commands_line_ends_without_a_traceback(data):
    command = [sys.executable, str(ROOT / "runners" / "sweep.py"), "--data", "imagefolder:cut", "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_training_says_what_its_images_were(data, capsys):
    (data / "good" / "train" / "cat" / "1.png").write_bytes(b"broken")
    (data / "good" / "val" / "dog" / "0.png").write_bytes(b"broken")
    assert main([*TRAINED, "--data", "imagefolder:good,mean=0.5/0.4/0.3", "--out", "runs"]) == 0
    (row,) = load(data / "runs").to_dict("records")
    assert (row["n_train"], row["n_eval"], row["num_classes"], row["broken_images"]) == (18, 8, 3, 2)
    assert (row["norm_mean"], row["norm_std"]) == ("0.5/0.4/0.3", "0.229/0.224/0.225")
    assert row["data_hash"] == open_folders("imagefolder:good").fingerprint()
    store = open_store(data / "runs", create=False)
    (record,) = (record for record in store.records(row["cell_key"]) if record.measure == "accuracy")
    assert record.samples["broken_images"] == [
        "cat/1.png: no image that Pillow can read",
        "dog/0.png: no image that Pillow can read",
    ]
    assert len(record.samples["loss"]) == 5


def test_strict_data_fails_with_the_name(data, capsys):
    (data / "good" / "val" / "dog" / "0.png").write_bytes(b"broken")
    assert main([*TRAINED, "--data", "imagefolder:good", "--strict-data", "--out", "runs"]) == 1
    (row,) = load(data / "runs").to_dict("records")
    assert (row["status"], row["error_type"]) == ("error", "BrokenImage")
    assert row["error_message"].endswith("dog/0.png cannot be read: no image that Pillow can read")


def test_a_class_of_ones_own_trains_and_its_code_is_part_of_the_data(data, monkeypatch, capsys):
    monkeypatch.syspath_prepend(data)
    (data / "own_data_of_commands.py").write_text(OWN)
    spec = "own_data_of_commands:Mine,norm=data"
    assert main([*TRAINED, "--data", spec, "--out", "runs"]) == 0
    (row,) = load(data / "runs").to_dict("records")
    assert (row["status"], row["num_classes"], row["n_train"]) == ("ok", 3, 8)
    # whole parts of 255 * 0/8 to 255 * 7/8
    assert row["norm_mean"] == "0.4358/0.4358/0.4358"
    assert row["data_hash"] != open_folders(spec).fingerprint()


def test_the_command_of_a_row_quotes_a_path():
    cell = Cell(attn="vanilla", data="imagefolder:/my images,split=0.1")
    assert "--data 'imagefolder:/my images,split=0.1' --measure" in command_for(cell, ["flops"])


def test_a_module_that_only_a_file_names_is_left_alone(tmp_path):
    ours, theirs = Cell(attn="swin"), Cell(attn="swin", data="theirs:Mine,norm=data")
    cells = {name: (cell, ("accuracy",)) for name, cell in (("ours", ours), ("theirs", theirs))}
    order = Order(study="s", cells=cells, request=Request())
    (kept,), left = _split([order], [])
    assert ([*kept.cells], left) == (["ours"], {"theirs:Mine"})
    (kept,), left = _split([order], ["theirs:Mine"])
    assert ([*kept.cells], left) == (["ours", "theirs"], set())


def test_workers_are_no_part_of_a_cell(data):
    assert RunOptions().workers is None and RunOptions(workers=3).workers == 3
    assert "workers" not in Cell.__dataclass_fields__
    plan = make_plan([Axes(attn=("vanilla",), data=("imagefolder:good",), batch_size=(4,))])
    assert len(plan.cells) == 1


def test_the_number_of_workers_reaches_the_data(data, monkeypatch, capsys):
    from runners.cells import task_data

    asked = []

    def make_data(*arguments, workers, **more):
        asked.append(workers)
        raise ValueError("enough")

    monkeypatch.setattr(task_data, "make_data", make_data)
    main([*TRAINED[:-2], "--workers", "7", "--data", "imagefolder:good", "--out", "runs"])
    assert asked == [7]
