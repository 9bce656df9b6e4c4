"""A real sweep of images that is killed at any step ends, after the same command, with the bits of one that was not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from dense_files import write_coco
from image_files import write_classes
from numpy.typing import NDArray

from runners.table import load

ROOT = Path(__file__).parents[1]
STEPS = 26
FIELDS = [
    *("ema=0.9", "drop_path=0.2", "accumulate=2", "checkpointing=on", "clip_norm=1", "warmup_epochs=1", "lr=2e-3"),
]
"""Beside those of small300: crop, flip, RandAugment, erasing, Mixup and CutMix, smoothing, an evaluation each epoch."""

DENSE_FIELDS = ["recipe.ema=0.9", "recipe.eval_every=2", "head.width=8", "head.box_width=16", "head.rois_per_image=8"]
"""Beside the flip of dense_short. Each step is an epoch, and proposals are drawn in the model."""

SCORES = {
    "classify": ["acc1", "acc5", "val_loss", "train_loss", "acc1_ema", "acc1_best", "best_step", "weights_best"],
    "instance": ["ap", "ap50", "ap_mask", "train_loss", "ap_mask_ema", "ap_mask_best", "best_step", "weights_best"],
}
"""Tasks, and columns that each must have in common with a training that was not killed."""


def write_images(task: str, root: Path) -> Path:
    """80 training and 16 test images of 32 px in 4 classes, 10 steps of 8 in an epoch; or 3 of COCO's kind and 3."""

    def mark(pixels: NDArray[np.uint8], number: int) -> None:
        pixels[8 * (number % 4) :][:8] += np.uint8(120)

    return write_classes(root, {"train": 80, "val": 16}, mark) if task == "classify" else write_coco(root)


def command(task: str, images: Path, out: Path) -> list[str]:
    cell = ["--attn", "swin", "--layout", "small32", "--steps", str(STEPS), "--threads", "1", "--task", task]
    more = ["--measure", "accuracy", "--save-weights", "--checkpoint-every", "0", "--out", str(out)]
    if task == "classify":
        fields = [f"recipe.{field}" for field in FIELDS]
        data = ["--data", f"imagefolder:{images}", "--recipe", "small300", "--batch-size", "8"]
    else:
        fields, data = DENSE_FIELDS, ["--data", f"coco:{images}", "--resolution", "32", "--batch-size", "2"]
    return [sys.executable, "runners/sweep.py", *cell, *data, *more, *(w for field in fields for w in ("--set", field))]


def sweep(task: str, images: Path, out: Path) -> None:
    done = subprocess.run(command(task, images, out), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def saved_step(out: Path) -> int:
    """Step of the newest saved state, 0 if there is none."""
    for path in out.glob("cells/*/training.*"):
        if path.suffix != ".before":
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                return int(json.loads(file.readline())["step"])
    return 0


def kill_at(step: int, task: str, images: Path, out: Path) -> None:
    """Start a sweep, and end all of its processes with signal 9 once the state of a step is saved."""
    process = subprocess.Popen(command(task, images, out), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while saved_step(out) < step:
        assert process.poll() is None and time.monotonic() < deadline, "the sweep did not come so far"
        time.sleep(0.002)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGSTOP)  # so that none makes a record of another's end
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()


def weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the last and of the best evaluation, by the names of their files."""
    found = sorted(out.glob("cells/*/weights.*.pth"))
    return {path.name: torch.load(path, weights_only=True)["model"] for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", pytest.param("instance", marks=pytest.mark.exhaustive)])
def test_kill_9_at_a_random_step(task: str, tmp_path: Path) -> None:
    images = write_images(task, tmp_path / "images")
    straight, killed, draw = tmp_path / "straight", tmp_path / "killed", random.Random(task)
    sweep(task, images, straight)
    first, second = draw.randint(1, STEPS // 2), draw.randint(STEPS // 2 + 1, STEPS - 2)
    for step in (first, second):
        kill_at(step, task, images, killed)
        assert step <= saved_step(killed) < STEPS
    sweep(task, images, killed)

    (row,), (whole,) = (load(out).to_dict("records") for out in (killed, straight))
    assert (row["status"], row["resumed"], whole["resumed"]) == ("ok", 2, 0)
    same = [*SCORES[task], "weights"]
    pd.testing.assert_series_equal(*(pd.Series({name: each[name] for name in same}) for each in (row, whole)))
    assert not pd.isna(row["train_loss"])
    found, expected = weights(killed), weights(straight)
    assert len(expected) == 2 and found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert all(torch.equal(found[name][key], tensor) for key, tensor in tensors.items()), name
    assert not [path.name for path in killed.glob("cells/*/*") if "training" in path.name]
