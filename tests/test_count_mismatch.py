"""Counts that differ are refused with their numbers, and what cannot be counted is named."""

import pytest
import torch
from counted_models import HEIGHT, OPERATORS, WIDTH, Model, attend
from torch import nn
from torch.nn import functional as F

import attention_zoo
from attention_zoo import Macs, counting
from runners.measure.macs import CountMismatch, count


def test_a_wrong_closed_form_is_refused_with_the_three_numbers():
    model = Model(lambda m, x: m.f(x), 361, f=nn.Linear(6, 5))
    with pytest.raises(CountMismatch, match=r"4x6.*361.*fvcore 360.*torch 360.*macs\(\)"):
        count(model, HEIGHT, WIDTH)


@pytest.mark.parametrize("operator", ["scaled_dot_product_attention", "baddbmm", "matmul"])
def test_counters_that_disagree_are_refused_with_module_and_operator(operator, monkeypatch):
    monkeypatch.delitem(counting.PRODUCTS, f"aten::{operator}")  # as fvcore counts without us
    functions = {
        "scaled_dot_product_attention": lambda m, x: attend(x, x),
        "baddbmm": OPERATORS["baddbmm"][0],
        "matmul": OPERATORS["matmul, left broadcast"][0],
    }
    mixer = Model(functions[operator], 0)
    model = Model(
        lambda m, x: m.stage.mixer(m.stage.linear(x)),
        0,
        stage=nn.ModuleDict({"mixer": mixer, "linear": nn.Linear(6, 6)}),
    )
    with pytest.raises(CountMismatch) as caught:
        count(model, HEIGHT, WIDTH)
    assert "stage.mixer" in str(caught.value) and operator in str(caught.value)
    assert "stage.linear" not in str(caught.value) and "the model itself" not in str(caught.value)
    with pytest.raises(CountMismatch, match=f"executed MACs.*stage.mixer.*{operator}"):
        count(Model(lambda m, x: x, 0), HEIGHT, WIDTH, executed=model)


def test_an_operator_that_nobody_counts_is_named():
    assert count(
        Model(lambda m, x: F.gelu(x.softmax(-1) + 1).unflatten(3, (2, 3)).roll(1, 2).topk(2)[0], 0), HEIGHT, WIDTH
    )["uncounted_ops"] == ("aten::softmax:1;aten::topk:1")


def test_einsum_of_three_operands_is_an_error_that_names_it():
    with pytest.raises(counting.CounterFailed, match=r"fvcore.*aten::einsum.*bchw,bcvw,bcvu->bchu"):
        count(Model(lambda m, x: torch.einsum("bchw,bcvw,bcvu->bchu", x, x, x), 0), HEIGHT, WIDTH)


def test_an_operator_that_torch_cannot_count_is_named(monkeypatch):
    def formula(*tensors, out_val):
        raise ValueError("three axes")

    monkeypatch.setitem(counting.flop_registry, torch.ops.aten.baddbmm, formula)
    with pytest.raises(counting.CounterFailed, match=r"torch.*aten.baddbmm.*ValueError: three axes"):
        count(Model(OPERATORS["baddbmm"][0], 0), HEIGHT, WIDTH)


def test_a_call_that_fvcore_cannot_trace_is_told_so():
    mixed = Model(lambda m, x: {"map": x, 1: x}, 0)
    with pytest.raises(counting.CounterFailed, match="fvcore cannot trace Model: "):
        count(mixed, HEIGHT, WIDTH)


def test_a_wrong_closed_form_of_a_mixer_is_told_with_stage_and_map(monkeypatch):
    swin = attention_zoo.resolve("swin")
    closed_form = swin.macs

    def macs(self, height, width):
        return closed_form(self, height, width) + Macs(core=7)

    model = attention_zoo.create_model("small", attn="swin", num_classes=10)
    true = [
        closed_form(mixers[0], *size).total for mixers, size in zip(model.mixers(), ((16, 24), (8, 12)), strict=False)
    ]
    monkeypatch.setattr(swin, "macs", macs)
    with pytest.raises(CountMismatch) as caught:
        count(model, 64, 96)
    for stage, (size, macs) in enumerate(zip(("16x24", "8x12"), true, strict=True), start=1):
        told = f"Swin at stage {stage}, on a {size} map: closed form {macs + 7}, fvcore {macs}, torch {macs}"
        assert told in str(caught.value)
    assert "Vanilla" not in str(caught.value) and "mlp" not in str(caught.value)
