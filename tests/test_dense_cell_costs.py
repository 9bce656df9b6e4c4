"""Costs of cells of dense tasks: MACs, latency, memory and training steps, of backbone and head."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_cells import HEADS, measured, one

from attention_zoo.dense import DenseModel
from runners.cells.models import build_model
from runners.cells.shares import least_images
from runners.measure.goal import Goal
from runners.measure.rounds import Work

SMALL = "--attn swin --layout small32 --resolution 32"
EXHAUSTIVE = [pytest.mark.slow, pytest.mark.exhaustive]
COUNTED = [
    (SMALL, "segment"),
    *(pytest.param(SMALL, task, marks=pytest.mark.slow) for task in ("detect", "instance")),
    pytest.param("--model swin_tiny", "segment", marks=pytest.mark.slow),
    pytest.param("--model timm:resnet18", "segment", marks=pytest.mark.slow),
    pytest.param("--model timm:convnext_atto", "instance", marks=pytest.mark.slow),
    *(
        pytest.param(*pair, marks=EXHAUSTIVE)
        for pair in (
            ("--model swin_tiny", "detect"),
            ("--model swin_tiny", "instance"),
            ("--model biformer_tiny", "detect"),
            ("--model timm:resnet18", "detect"),
            ("--model timm:resnet18", "instance"),
            ("--model timm:swin_tiny_patch4_window7_224", "segment"),
        )
    ),
]


@pytest.mark.parametrize(("subject", "task"), COUNTED)
def test_macs_of_backbone_and_head(subject: str, task: str, tmp_path: Path) -> None:
    size = "" if "resolution" in subject else " --resolution 64x96"
    cell = one(f"{subject}{size} {HEADS[task]}")
    row = measured(cell, "flops", tmp_path)
    with torch.device("meta"):
        model: Any = build_model(cell)
    assert isinstance(model, DenseModel)
    head = model.head_macs(cell.height_px, cell.width_px)
    assert row["head_gmacs"] == head / 1e9
    assert row["gmacs"] == pytest.approx(row["backbone_gmacs"] + row["head_gmacs"]) and row["backbone_gmacs"] > 0
    if "timm" not in subject:
        assert row["gmacs"] == model.macs(cell.height_px, cell.width_px).total / 1e9
        assert 0 < row["attention_gmacs"] < row["backbone_gmacs"]
    fixed = (50, 10) if task == "instance" else (None, None)
    assert (row["proposals"], row["masks"]) == fixed
    assert row["params_m"] == sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("measure", ["launches", "memory", pytest.param("throughput", marks=pytest.mark.exhaustive)])
def test_costs_of_a_tiny_cell(measure: str, task: str, tmp_path: Path) -> None:
    cell = one(f"--attn swin --layout small32 --resolution 32 {HEADS[task]} --batch-size 2 --threads 1")
    row = measured(cell, measure, tmp_path, patience_s=0.0)
    names = {
        "launches": ["kernel_launches"],
        "memory": ["peak_infer_mib", "peak_train_mib"],
        "throughput": ["infer_latency_ms", "train_step_ms", "vs_vanilla"],
    }[measure]
    assert all(row[name] > 0 and math.isfinite(row[name]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["memory", pytest.param("throughput", marks=pytest.mark.exhaustive)])
def test_one_image_of_upernet_is_measured_in_inference_alone(measure: str, tmp_path: Path) -> None:
    upernet = "--task segment --head upernet --set head.width=8 --set head.auxiliary_width=8"
    cell = one(f"--attn swin --layout small32 --resolution 64 {upernet} --batch-size 1 --threads 1")
    row = measured(cell, measure, tmp_path, patience_s=0.0)
    inference, training = {
        "memory": ("peak_infer_mib", "peak_train_mib"),
        "throughput": ("infer_latency_ms", "train_step_ms"),
    }[measure]
    assert row[inference] > 0 and row.get(training) is None


@pytest.mark.parametrize(
    ("head", "batch", "why"), [("upernet", 1, "2 images"), ("upernet", 2, ""), ("retinanet", 1, "")]
)
def test_a_step_is_measured_where_batch_norm_has_two_values(head: str, batch: int, why: str) -> None:
    task = "segment" if head == "upernet" else "detect"
    cell = one(f"--attn swin --layout small32 --task {task} --head {head} --resolution 64 --batch-size {batch}")
    goal = Goal(least_images=least_images(cell))
    work = Work(build=None, build_baseline=None, input_shape=(batch, 3, 64, 64), goal=goal)  # type: ignore[arg-type]
    assert (why in work.why_untrained) if why else work.why_untrained is None  # type: ignore[operator]
