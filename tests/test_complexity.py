"""MACs of operators and of every mechanism: closed form, fvcore and torch agree, and counting changes nothing."""

import subprocess
import sys

import pytest
import torch
from conftest import slow_but
from counted_models import DEVICES, HEIGHT, OPERATORS, WIDTH, Model, attend
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import attention_zoo
from ablations.study import Cell
from runners.cells.models import counted_cell
from runners.measure.macs import count


@pytest.mark.parametrize("name", OPERATORS)
def test_the_three_counts_equal_the_formula_by_hand(name):
    function, macs, parts = OPERATORS[name]
    columns = count(Model(function, macs, **parts), HEIGHT, WIDTH)
    assert columns["gmacs"] == columns["executed_gmacs"] == columns["attention_gmacs"] == macs / 1e9
    assert columns["gflops"] == 2 * macs / 1e9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([(2, 2), (2, 1), (1, 2), (1, 1)]), max_size=3), st.integers(0, 1))
def test_matmul_counts_any_broadcast_of_batch_axes(axes, missing):
    left, right = torch.ones(*(a for a, _ in axes), 3, 5), torch.ones(*[b for _, b in axes][missing:], 5, 2)
    macs = (left @ right).numel() * 5
    model = Model(lambda m, x: m.left @ m.right + x.sum(), macs, left=left, right=right)
    assert count(model, HEIGHT, WIDTH)["gmacs"] == macs / 1e9


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 3]))
def test_convolution_counts_any_geometry(kernel, stride, padding, dilation, groups):
    reach = dilation * (kernel - 1) + 1
    out = [(side + 2 * padding - reach) // stride + 1 for side in (12, 10)]
    assume(min(out) >= 1)
    macs = out[0] * out[1] * 6 * (3 // groups) * kernel**2
    convolution = nn.Conv2d(3, 6, kernel, stride, padding, dilation, groups)
    assert count(Model(lambda m, x: m.f(x), macs, f=convolution), 12, 10)["gmacs"] == macs / 1e9


@pytest.mark.parametrize(
    ("layer", "per_element"),
    [
        *((nn.BatchNorm2d(3), 2), (nn.GroupNorm(3, 3), 5), (nn.LayerNorm(6), 5), (nn.RMSNorm(6), 5)),
        *((nn.AvgPool2d(2), 1), (nn.MaxPool2d(2), 1), (nn.AdaptiveAvgPool2d(1), 1)),
        *((nn.Upsample(scale_factor=2, mode="bilinear"), 16), (Model(lambda m, x: x.mean((2, 3)), 0), 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_norms_pooling_and_sampling_are_other_operations(layer, per_element):
    columns = count(Model(lambda m, x: m.f(x), 0, f=layer), HEIGHT, WIDTH)
    assert columns["other_gops"] == per_element * 3 * 4 * 6 / 1e9
    assert columns["uncounted_ops"] == ""


def test_the_implementation_that_ran_is_counted_beside_the_algorithm():
    gathered = Model(lambda m, x: attend(x, x[:, :, :1]), 3 * 4 * 1 * 12)
    dense = Model(lambda m, x: attend(x, x), None)
    columns = count(gathered, HEIGHT, WIDTH, executed=dense)
    assert (columns["gmacs"], columns["executed_gmacs"]) == (144 / 1e9, 576 / 1e9)


def test_parameters_include_frozen_ones():
    model = Model(lambda m, x: x, 0, f=nn.Linear(6, 5).requires_grad_(False))
    assert count(model, HEIGHT, WIDTH)["params_m"] == 35 / 1e6


def test_the_model_its_mode_and_the_random_state_stay_as_they_are():
    def forward(model, x):
        model.cache["table"] = model.table + 1
        torch.rand(3)
        return model.f(x) + model.table.sum()

    model = Model(forward, 0, f=nn.BatchNorm2d(3), table=torch.ones(2), cache={}).train()
    before, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    count(model, HEIGHT, WIDTH)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.f.training and not model.cache and model.table.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.f._forward_hooks


def can_trace_convolutions_on_meta():
    x, weight = torch.zeros(1, 3, 4, 4, device="meta"), torch.zeros(2, 3, 3, 3, device="meta")
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, False, False)
    try:
        torch._convolution(x, weight, None, *options)
    except NotImplementedError:
        return False
    return True


@pytest.mark.skipif(not can_trace_convolutions_on_meta(), reason="this version of torch counts on the CPU")
def test_maps_are_counted_without_their_memory():
    DEVICES.clear()
    side = 1024
    macs = 2 * side * side * 8 * 27 + 8 * side * side * side * 2
    plain = torch.ones(side)  # neither parameter nor buffer
    model = Model(lambda m, x: attend(m.f(x), m.f(x) + m.plain), macs, f=nn.Conv2d(3, 8, 3, padding=1), plain=plain)
    count(model, side, side)
    assert set(DEVICES) == {"meta"}


def test_a_model_that_looks_at_its_data_is_counted_on_the_cpu():
    DEVICES.clear()
    count(Model(lambda m, x: x if x.sum().item() > 1 else x + 1, 0), HEIGHT, WIDTH)
    assert DEVICES[-1] == "cpu"


def test_fvcore_is_imported_late_and_its_warnings_are_silenced():
    code = """
import sys
from types import SimpleNamespace
from torch import nn
from runners.measure.macs import count
assert "fvcore" not in sys.modules
model = nn.Linear(6, 5)
model.macs, model.attention_macs = lambda *_: SimpleNamespace(total=360), lambda *_: 0
count(model, 4, 6)
assert "fvcore" in sys.modules
"""
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", path + code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size_px", slow_but((76, 44), of=[(64, 64), (64, 96), (76, 44)]))
@pytest.mark.parametrize("name", slow_but("bra", "sep", of=attention_zoo.names()))
def test_three_roads_agree_on_every_mechanism(name, size_px):
    # the last size needs padding on most maps; macs describes the plain way
    model = attention_zoo.create_model("small", attn=name, num_classes=10, impl="plain")
    columns = count(model, *size_px)
    assert columns["gmacs"] == columns["executed_gmacs"] == model.macs(*size_px).total / 1e9


@pytest.mark.parametrize("topk", [1, 4, 8, 16])
def test_counters_agree_on_what_ran_of_every_topk(topk):
    models = [
        attention_zoo.create_model("small", attn="bra", topk=topk, clip_topk=True, num_classes=10, impl=impl)
        for impl in ("plain", "auto")
    ]
    columns = count(models[0], 64, 64, executed=models[1])
    assert columns["executed_gmacs"] > 0.9 * columns["gmacs"]


def test_only_what_runs_otherwise_is_counted_apart():
    bra, swin = Cell(attn="bra"), Cell(attn="swin")
    assert dict(counted_cell(bra).settings) == {"impl": "plain"}
    assert counted_cell(counted_cell(bra)) == counted_cell(bra)
    assert counted_cell(swin) == swin
