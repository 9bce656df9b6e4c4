import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import attention_zoo
from ablations.study import Cell
from attention_zoo import Macs, counting
from runners.cells.models import counted_cell
from runners.measure.macs import CountMismatch, count

HEIGHT, WIDTH = 4, 6
DEVICES: list[str] = []


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0].mT, None


class Model(nn.Module):
    """A model of one function of the image (1, 3, 4, 6), and a closed form made by hand."""

    def __init__(self, function, macs, **parts):
        super().__init__()
        self.function, self.closed_form = function, macs
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        DEVICES.append(x.device.type)
        return self.function(self, x)

    def macs(self, height_px, width_px):
        return SimpleNamespace(total=self.closed_form)

    def attention_macs(self, height_px, width_px):
        return self.closed_form


def attend(queries, keys, **options):
    return F.scaled_dot_product_attention(queries, keys, keys, **options)


def heads(x, num):
    return x[:, :1].expand(-1, num, -1, -1)


OPERATORS = {
    "linear": (lambda m, x: m.f(x), 3 * 4 * 6 * 5, {"f": nn.Linear(6, 5)}),
    "linear without bias": (lambda m, x: m.f(x), 3 * 4 * 6 * 5, {"f": nn.Linear(6, 5, bias=False)}),
    "convolution": (lambda m, x: m.f(x), (2 * 3) * 8 * 3 * 9, {"f": nn.Conv2d(3, 8, 3, stride=2, padding=1)}),
    "depthwise": (lambda m, x: m.f(x), (4 * 6) * 3 * 25, {"f": nn.Conv2d(3, 3, 5, padding=2, groups=3)}),
    "grouped": (lambda m, x: m.f(x), (4 * 6) * 6 * 1 * 9, {"f": nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)}),
    "padding by name": (lambda m, x: m.f(x), (4 * 6) * 8 * 3 * 9, {"f": nn.Conv2d(3, 8, 3, padding="same")}),
    "function with keywords": (
        lambda m, x: F.conv2d(input=x, weight=m.w, padding=(0, 1)),
        (2 * 6) * 2 * 3 * 9,
        {"w": nn.Parameter(torch.ones(2, 3, 3, 3))},
    ),
    "transposed convolution": (lambda m, x: m.f(x), (4 * 6) * 3 * 8 * 4, {"f": nn.ConvTranspose2d(3, 8, 2, 2)}),
    "matmul": (lambda m, x: x @ x.mT, 3 * 4 * 6 * 4, {}),
    "matmul, left broadcast": (lambda m, x: x[:, :1] @ x.mT, 3 * 4 * 6 * 4, {}),
    "matmul, right broadcast": (lambda m, x: x @ x[:, :1].mT, 3 * 4 * 6 * 4, {}),
    "matmul, right without batch": (lambda m, x: x @ x[0, 0].mT, 3 * 4 * 6 * 4, {}),
    "matmul with a vector": (lambda m, x: x @ x[0, 0, 0], 3 * 4 * 6, {}),
    "vector with matmul": (lambda m, x: x[0, 0, 0] @ x.mT, 3 * 4 * 6, {}),
    "dot": (lambda m, x: x.flatten() @ x.flatten(), 3 * 4 * 6, {}),
    "bmm": (lambda m, x: torch.bmm(x[0], x[0].mT), 3 * 4 * 6 * 4, {}),
    "baddbmm": (lambda m, x: torch.baddbmm(x.new_zeros(1, 4, 4), x[0], x[0].mT), 3 * 4 * 6 * 4, {}),
    "addmm": (lambda m, x: torch.addmm(x.new_zeros(4), x[0, 0], x[0, 1].mT), 4 * 6 * 4, {}),
    "einsum": (lambda m, x: torch.einsum("bchw, bcvw -> bchv", x, x), 3 * 4 * 6 * 4, {}),
    "einsum, ellipsis": (lambda m, x: torch.einsum("...hw,vw->...hv", x, x[0, 0]), 3 * 4 * 6 * 4, {}),
    "einsum, broadcast": (lambda m, x: torch.einsum("bchw,bcvw->bchv", x[:, :1], x), 3 * 4 * 6 * 4, {}),
    "einsum, broadcast the other way": (
        lambda m, x: torch.einsum("bchw,bcvw->bchv", x, x[:, :1]),
        3 * 4 * 6 * 4,
        {},
    ),
    "einsum without a sum": (lambda m, x: torch.einsum("bchw,bcvw->bchvw", x, x), 0, {}),
    "einsum that sums one operand": (lambda m, x: torch.einsum("bchw,vw->bcw", x, x[0, 0]), 0, {}),
    "einsum that also sums one": (lambda m, x: torch.einsum("bchw,vw->bch", x, x[0, 0]), 3 * 4 * 6, {}),
    "fused attention": (lambda m, x: attend(x, x[:, :, :3]), 3 * 4 * 3 * (6 + 6), {}),
    "fused attention, three axes": (lambda m, x: attend(x[0], x[0]), 3 * 4 * 4 * (6 + 6), {}),
    "fused attention, six axes": (
        lambda m, x: attend(x[None, None], x[None, None]),
        3 * 4 * 4 * (6 + 6),
        {},
    ),
    "fused attention, values of another size": (
        lambda m, x: F.scaled_dot_product_attention(x, x, x[..., :2]),
        3 * 4 * 4 * (6 + 2),
        {},
    ),
    "fused attention, bias": (
        lambda m, x: attend(x, x, attn_mask=m.b),
        3 * 4 * 4 * 12,
        {"b": nn.Parameter(torch.ones(3, 4, 4))},
    ),
    "fused attention, mask": (lambda m, x: attend(x, x, attn_mask=x[..., :4] > 0), 3 * 4 * 4 * 12, {}),
    "fused attention, keys broadcast": (lambda m, x: attend(x, x[:, :1]), 3 * 4 * 4 * 12, {}),
    "fused attention, queries broadcast": (lambda m, x: attend(x[:, :1], x), 3 * 4 * 4 * 12, {}),
    "fused attention, grouped queries": (
        lambda m, x: attend(heads(x, 4), heads(x, 2), enable_gqa=True),
        4 * 4 * 4 * 12,
        {},
    ),
    "nn.MultiheadAttention": (
        lambda m, x: m.f(x[0], x[0], x[0], need_weights=False)[0],
        3 * (4 * 4 * 6 * 6 + 4 * 4 * 12),
        {"f": nn.MultiheadAttention(6, 2, batch_first=True)},
    ),
    "fused attention on the CPU": (lambda m, x: attend(x + x.sum().item(), x), 3 * 4 * 4 * 12, {}),
    "nn.MultiheadAttention on the CPU": (
        lambda m, x: m.f(x[0] + x.sum().item(), x[0], x[0], need_weights=False)[0],
        3 * (4 * 4 * 6 * 6 + 4 * 4 * 12),
        {"f": nn.MultiheadAttention(6, 2, batch_first=True)},
    ),
    "custom autograd function": (
        lambda m, x: Doubled.apply(x, m.w),
        3 * 4 * 6 * 2,
        {"w": nn.Parameter(torch.ones(6, 2))},
    ),
    "selection": (
        lambda m, x: x.gather(-1, x.topk(2).indices).index_select(1, torch.tensor([0, 2], device=x.device)),
        0,
        {},
    ),
    "choice by data": (lambda m, x: m.f(x[x <= 0]), 3 * 4 * 6 * 2, {"f": nn.Linear(72, 2)}),
    "norms and pooling": (lambda m, x: F.avg_pool2d(m.f(x), 2).mean((2, 3)), 0, {"f": nn.BatchNorm2d(3)}),
}


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
    if min(out) < 1:
        return
    macs = out[0] * out[1] * 6 * (3 // groups) * kernel**2
    convolution = nn.Conv2d(3, 6, kernel, stride, padding, dilation, groups)
    assert count(Model(lambda m, x: m.f(x), macs, f=convolution), 12, 10)["gmacs"] == macs / 1e9


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
