"""Which tokens an output depends on through the values, by gradients: all that `connectivity` allows, and no other.

q and k are cut off from the gradient behind their projection, so that weights, routes and offsets stay as they are, and
LePE is off. One backward pass tells all pairs: each copy of an image in a batch is asked for one query of one head.
"""

from unittest import mock

import pytest
import torch
from conftest import Mechanism, mechanisms, subject_of, with_marks
from torch import nn

from attention_zoo.regions import coordinates

SIZES = [(5, 7), (6, 6)]
IN_STEPS = {
    "axial": lambda config: config.get("layers") != "sum",
    "axial_deeplab": lambda config: config.get("axes", "both") == "both",
    "crisscross": lambda config: config.get("recurrence", 1) > 1,
}
"""Softmaxes of softmaxes: their connectivity is what one of them reads directly, as their docstrings say."""


def is_in_steps(setting):
    return IN_STEPS.get(setting.name, lambda config: False)(setting.config)


SETTINGS = [Mechanism(name, {**config, "lepe": False}) for name, config in mechanisms()]
IN_ONE = [setting for setting in SETTINGS if not is_in_steps(setting)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


def build(setting, size):
    """The mechanism without its last projection, which would mix heads, and one image."""
    subject = subject_of(setting)
    attention, x = subject.build(), subject.images(size, batch=1)
    for name in ("proj", "proj_rows"):
        if hasattr(attention, name) and not (name == "proj" and setting.config.get("layers") == "sequence"):
            setattr(attention, name, nn.Identity())
    for qkv, _ in attention.projections:
        qkv.register_forward_hook(lambda _, __, y: cut_off(y, 2 * attention.qk_dim))
    return attention, x


def cut_off(qkv, width):
    return torch.cat((qkv[..., :width].detach(), qkv[..., width:]), -1)


def reached(attention, x):
    """Tokens whose change moves a query's mixed values: (heads, N, N) boolean."""
    tokens, heads = x.shape[1] * x.shape[2], attention.num_heads
    copies = x.expand(heads * tokens, -1, -1, -1).clone().requires_grad_()
    head, query = torch.arange(heads * tokens) // tokens, torch.arange(heads * tokens) % tokens
    y = attention(copies).flatten(1, 2).unflatten(-1, (heads, -1))  # (copies, N, heads, D)
    asked = y[torch.arange(heads * tokens), query, head]
    probe = torch.cos(torch.arange(asked.shape[1], dtype=asked.dtype))
    (gradient,) = torch.autograd.grad((asked * probe).sum(), copies)
    return (gradient != 0).any(-1).flatten(1).unflatten(0, (heads, tokens))


def allowed(attention, x):
    tokens = x.shape[1] * x.shape[2]
    return attention.connectivity(x).expand(1, attention.num_heads, tokens, tokens)[0]


@each_size
@pytest.mark.parametrize("setting", with_marks(IN_ONE))
def test_values_reach_a_query_where_connectivity_allows_and_everywhere_there(setting, size):
    attention, x = build(setting, size)
    found, expected = reached(attention, x), allowed(attention, x)
    if setting.config.get("kv_pool") != "max":
        assert torch.equal(found, expected)
        return
    # a maximum takes one token of each cell for each channel: of each routed region some, and of no other
    assert not (found & ~expected).any()
    cut = attention.partition(*size)
    region = cut.locate(*coordinates(*size, x.device))
    for of_region in (region == index for index in range(cut.count)):
        assert torch.equal(found[..., of_region].any(-1), expected[..., of_region].any(-1))


def step_of_axial(attention, kept):
    """Let one of the two softmaxes give its values as they are."""
    along, calls = attention._along_lines, iter(range(2))
    return mock.patch.object(attention, "_along_lines", lambda q, k, v: along(q, k, v) if next(calls) == kept else v)


def step_of_axial_deeplab(attention, kept):
    other = attention.first if kept else attention.second
    return mock.patch.object(other, "forward", lambda qkv: other.split(qkv)[2].flatten(1, 2))


@each_size
@pytest.mark.parametrize("name", ["axial", "axial_deeplab"])
def test_each_of_two_softmaxes_reaches_its_lines_and_both_the_whole_map(name, size):
    settings = [setting for setting in SETTINGS if setting.name == name and is_in_steps(setting)]
    assert settings
    step = {"axial": step_of_axial, "axial_deeplab": step_of_axial_deeplab}[name]
    rows, cols = torch.arange(size[0] * size[1]) // size[1], torch.arange(size[0] * size[1]) % size[1]
    for setting in settings:
        attention, x = build(setting, size)
        assert reached(attention, x).all()
        by_step = []
        for kept in range(2):
            with step(attention, kept):
                by_step.append(reached(attention, x))
        starts_with_rows = setting.config.get("layers", "shared") == "shared" and name == "axial"
        for found, line in zip(by_step, (rows, cols) if starts_with_rows else (cols, rows), strict=True):
            assert torch.equal(found, (line[:, None] == line).expand_as(found))
        assert torch.equal(by_step[0] | by_step[1], allowed(attention, x))


@each_size
def test_each_pass_of_crisscross_reaches_its_cross_and_two_the_whole_map(size):
    settings = [setting for setting in SETTINGS if setting.name == "crisscross" and is_in_steps(setting)]
    assert settings
    for setting in settings:
        attention, x = build(setting, size)
        assert reached(attention, x).all()
        attention.recurrence = 1
        assert torch.equal(reached(attention, x), allowed(attention, x))


def test_a_key_that_connectivity_leaves_out_is_noticed():
    attention, x = build(Mechanism("swin", {"window": 3, "lepe": False}), (6, 6))
    found, expected = reached(attention, x), allowed(attention, x).clone()
    assert torch.equal(found, expected)
    expected[1, 4, 5] = False
    assert not torch.equal(found, expected)
