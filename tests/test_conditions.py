"""What a cell asks for of precision, kernels, layout in memory and determinism is what its measures compute with."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from figure_rows import frame
from test_train import Stripes
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import attention_zoo
from ablations import Cell, cell_key
from ablations.values import PRECISIONS
from runners.cells.run import Job, run_job
from runners.machine import conditions as module
from runners.machine.conditions import Conditions, in_force
from runners.machine.failures import Unsupported
from runners.machine.hardware import hardware
from runners.rows.selection import CONDITIONS, conditions
from runners.store.store import open_store
from runners.table import load
from runners.train.accuracy import train_and_evaluate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def attend():
    with Operators() as operators:
        F.scaled_dot_product_attention(*torch.randn(3, 1, 2, 8, 4).unbind())
    return operators.seen


def settings():
    return {
        **in_force(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
    }


FULL = {"matmul_precision": "highest", "cudnn_tf32": False, "benchmark": False, "deterministic": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"precision": "tf32"}, {"matmul_precision": "high", "cudnn_tf32": True}),
        ({"deterministic": True}, {"deterministic": True}),
        ({"cudnn_benchmark": True}, {"benchmark": True}),
        ({"sdpa": "math"}, {"flash": False}),
        ({"sdpa": "flash"}, {"math": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fails", [False, True])
def test_torch_is_set_so_within_the_block_and_as_before_after_it(given, expected, fails, monkeypatch):
    ampere = replace(hardware(CPU), has_tf32=lambda: True)  # stands for a GPU of capability 8.0
    monkeypatch.setattr(module, "hardware", lambda device: ampere)
    before = settings()
    with pytest.raises(KeyError) if fails else nullcontext(), Conditions(**given).applied(CPU):
        assert settings() == {"math": True, "flash": True, **FULL, **expected}
        if fails:
            raise KeyError
    assert settings() == before


def test_the_kernel_that_was_asked_for_runs():
    with Conditions(sdpa="flash").applied(CPU):
        assert "_scaled_dot_product_flash_attention_for_cpu" in attend()
    with Conditions(sdpa="math").applied(CPU):
        seen = attend()
        assert "_scaled_dot_product_flash_attention_for_cpu" not in seen and any("softmax" in name for name in seen)


@pytest.mark.parametrize(
    ("given", "device", "words"),
    [
        ({"precision": "tf32"}, CPU, ["tf32", "CUDA", "8.0", "cpu"]),
        ({"sdpa": "cudnn"}, CPU, ["sdpa cudnn", "CUDA", "math", "flash"]),
        ({"sdpa": "efficient"}, CPU, ["sdpa efficient", "CUDA"]),
    ],
)
def test_what_a_device_cannot_do_is_unsupported_and_says_what_it_can(given, device, words):
    with pytest.raises(Unsupported) as error, Conditions(**given).applied(device):
        pass
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("capability", "found"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_is_what_devices_from_ampere_on_have(capability, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware(CUDA).has_tf32() is found


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"precision must be one of fp32, .*, got 'fp16'"):
        Conditions(precision="fp16")


TOLERANCE = {"amp-bf16": 0.03, "amp-fp16": 0.005, "bf16-weights": 0.03, "fp16-weights": 0.005}
"""Of the logits."""
ALL_REGIONS = {"bra": {"topk": 16}}
"""Where fewer were read, rounding would choose others on one processor and not on another, and logits differ by 0.1."""


@pytest.mark.parametrize("name", attention_zoo.names())
def test_every_mechanism_computes_in_every_precision(name):
    torch.manual_seed(0)
    model = attention_zoo.create_model("small", attn=name, **ALL_REGIONS.get(name, {})).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        exact = model(images)
        for precision, tolerance in TOLERANCE.items():
            given = Conditions(precision=precision)
            other = attention_zoo.create_model("small", attn=name, **ALL_REGIONS.get(name, {})).eval()
            other.load_state_dict(model.state_dict())
            with given.autocast(CPU):
                found = given.place(other, CPU)(given.place_images(images, CPU))
            assert found.dtype == given.dtype, precision
            assert (found.float() - exact).norm() < tolerance * exact.norm(), precision


@pytest.mark.parametrize("precision", TOLERANCE)
def test_routing_computes_in_every_precision(precision):
    """Rounding may choose other regions, so that only what must hold whichever are chosen is asked."""
    given = Conditions(precision=precision)
    model = given.place(attention_zoo.create_model("small", attn="bra").eval(), CPU)
    with torch.inference_mode(), given.autocast(CPU):
        found = model(given.place_images(torch.randn(1, 3, 64, 64), CPU))
    assert found.dtype == given.dtype and found.isfinite().all() and found.std() > 0


def test_channels_last_is_the_same_computation_on_images_and_weights_of_that_layout():
    model = attention_zoo.create_model("small", attn="swin").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        given = Conditions(memory_format="channels_last")
        placed = given.place_images(images, CPU)
        assert placed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(given.place(model, CPU)(placed), expected, atol=1e-4, rtol=1e-4)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def trained(path=None, progress=None, **given):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(512, 8))
    row, samples = train_and_evaluate(
        model,
        Stripes(),
        steps=12,
        seed=0,
        device=CPU,
        conditions=Conditions(**given),
        state_path=path,
        checkpoint_every_s=0,
        progress=progress,
    )
    return model, row, samples["loss"]


class Cut(BaseException):
    """The process is gone."""


def test_the_loss_is_scaled_in_fp16_and_the_scale_goes_on_with_a_resumed_training(tmp_path, monkeypatch):
    scales = []
    step = torch.amp.GradScaler.step
    # the scale grows within the 12 steps, so that one that is not resumed is seen
    make = partial(torch.amp.GradScaler, growth_interval=5)
    monkeypatch.setattr(
        Conditions, "scaler", lambda self, device: make(device.type, enabled=self.precision == "amp-fp16")
    )
    monkeypatch.setattr(
        torch.amp.GradScaler, "step", lambda self, *a: (scales.append(self.get_scale()), step(self, *a))[1]
    )
    whole, _, losses = trained(precision="amp-fp16")
    assert len(scales) == 12 and len(set(scales)) > 1

    def cut(step, steps, loss):
        if step == 7:
            raise Cut

    with pytest.raises(Cut):
        trained(tmp_path / "state", cut, precision="amp-fp16")
    scales.clear()
    resumed, row, again = trained(tmp_path / "state", precision="amp-fp16")
    assert row["resumed"] == 1 and again == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    scales.clear()
    trained(precision="amp-bf16")
    assert set(scales) == {1.0}


def test_bf16_weights_are_trained_and_fp16_weights_are_not():
    model, row, _ = trained(precision="bf16-weights")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and row["acc1"] > 12
    with pytest.raises(Unsupported, match="fp16-weights cannot be trained"):
        trained(precision="fp16-weights")


# --- cells, rows and lines


def test_autocast_to_bf16_has_the_key_and_the_file_that_it_always_had():
    cell = Cell(precision="amp-bf16")
    assert cell.to_dict() == {"precision": "bf16"}
    assert cell_key(cell) == hashlib.sha256(b'{"precision":"bf16"}').hexdigest()[:16]
    assert Cell.from_dict({"precision": "bf16"}) == cell
    assert {Cell.from_dict(Cell(precision=name).to_dict()).precision for name in PRECISIONS} == {*PRECISIONS}
    # a pickled cell of an earlier version has the old word and not the new fields
    old = object.__new__(Cell)
    object.__setattr__(old, "precision", "bf16")
    assert Conditions.of(old) == Conditions(precision="amp-bf16")


def test_a_folder_of_earlier_cells_says_amp(tmp_path):
    store = open_store(tmp_path, create=True)
    key = store.add_cell(Cell(precision="amp-bf16"))
    assert json.loads((store.folder(key) / "cell.json").read_text())["cell"] == {"precision": "bf16"}
    assert load(tmp_path)["precision"].tolist() == ["amp-bf16"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("precision", ["fp32", "tf32"]),
        ("sdpa", ["auto", "math"]),
        ("memory_format", ["contiguous", "channels_last"]),
        ("deterministic", [False, True]),
        ("cudnn_benchmark", [False, True]),
        ("compile", [False, True]),
        ("recipe", ["probe", "short"]),
        ("training", ["", "lr=0.003"]),
    ],
)
def test_rows_of_different_conditions_are_never_compared(column, values):
    assert column in CONDITIONS
    rows = frame([{"attention": "swin", "resolution": "64x64", "seed": 0, column: value} for value in values])
    first, second = conditions(rows)
    assert first != second and conditions(rows.iloc[:1]).tolist() == ["all rows"]
    assert pd.Series([first, second]).str.contains(str(values[1]) if isinstance(values[1], str) else column[:5]).any()


@pytest.mark.slow
def test_a_job_computes_records_and_names_its_conditions(tmp_path):
    store = open_store(tmp_path, create=True)
    cells = [
        Cell(attn="swin", precision="bf16-weights", sdpa="math", deterministic=True),
        Cell(attn="swin", precision="fp16-weights", memory_format="channels_last"),
        Cell(attn="swin", precision="tf32"),
    ]
    # both halves of timing once, since each takes half a minute
    measures = {"bf16-weights": ("memory", "accuracy")}
    for cell in cells:
        cell = Cell.from_dict({**cell.to_dict(), "height_px": 32, "width_px": 32, "batch_size": 2, "steps": 2})
        key = store.add_cell(cell)
        attempts = dict.fromkeys(measures.get(cell.precision, ("throughput", "memory", "accuracy")), 1)
        run_job(Job(out=tmp_path, key=key, cell=cell, attempts=attempts, patience_s=0))
    rows = load(tmp_path).set_index("precision")
    exact = rows.loc["bf16-weights"]
    assert (exact["status"], exact["sdpa"], exact["deterministic"]) == ("ok", "math", True)
    assert exact["matmul_precision"] == "highest" and not exact["cudnn_tf32"] and exact["peak_train_mib"] > 0
    half = rows.loc["fp16-weights"]
    assert half["throughput_status"] == half["memory_status"] == "ok" and half["accuracy_status"] == "unsupported"
    assert pd.isna(half["train_step_ms"]) and pd.isna(half["peak_train_mib"]) and half["vs_vanilla"] > 0
    assert rows.loc["tf32", "status"] == "unsupported" and "CUDA" in rows.loc["tf32", "error_message"]
