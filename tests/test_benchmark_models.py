"""What is compared: the paper's steps compute what ours does, and the floor has the products of a model."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create, create_model
from attention_zoo.published.classes import counterpart_model
from attention_zoo.published.models import PUBLISHED
from benchmarks import sections
from benchmarks.floor import FUSED, FUSED_BACKWARD, Recorder, floor, record, replay, separate_products
from benchmarks.models import OUR_SWIN, TIMM_SWIN, Work, build
from benchmarks.paper_steps import PaperBiFormer

NARROW = {"depth": [1, 1, 2, 1], "embed_dim": [32, 64, 64, 64], "num_classes": 10}


@pytest.fixture(scope="module")
def paper_and_ours():
    """BiFormer of few channels with sharp routes: in the steps of the paper, and ours padded as published.

    In float64: outputs are in the thousands, and of one near 0 float32 keeps three digits.
    """
    arguments = {**PUBLISHED["biformer_tiny"].arguments, **NARROW, "qk_dims": NARROW["embed_dim"]}
    ours, _ = counterpart_model("models.BiFormer", {"ctor": {**arguments, "auto_pad": True}, "H": 112, "W": 112})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 2 * parameter[0].numel() ** -0.5, generator=generator)
    needed = ("mlp_ratios", "topks", "n_win", "head_dim")
    paper = PaperBiFormer(**NARROW, **{name: arguments[name] for name in needed})
    paper.load_state_dict(ours.state_dict())
    return paper.double(), ours.double()


@pytest.mark.parametrize("size_px", [(112, 224), (96, 120)], ids=str)
def test_the_steps_of_the_paper_give_what_ours_gives(paper_and_ours, size_px):
    paper, ours = (model.eval() for model in paper_and_ours)
    images = torch.randn(2, 3, *size_px, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = paper(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


def test_so_do_their_gradients(paper_and_ours):
    paper, ours = (model.train() for model in paper_and_ours)
    gradients = []
    for model in (paper, ours):
        images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        images.requires_grad_()
        model(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients, atol=1e-4 * float(gradients[0].abs().max()), rtol=1e-3)


@pytest.mark.slow
def test_biformer_tiny_in_the_steps_of_the_paper():
    paper, ours = build("paper_steps").eval(), build("biformer_tiny").eval()
    paper.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), paper(images), atol=1e-4, rtol=1e-4)


def test_our_swin_is_the_size_of_timms():
    with torch.device("meta"):
        ours, theirs = build(OUR_SWIN), build(TIMM_SWIN)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.fixture
def compiled_anew():
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.exhaustive  # a minute and a half each
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("name", ["bra", "dat"])
def test_a_model_compiled_with_frozen_weights_computes_the_same(name):
    torch.manual_seed(0)
    model = create_model("small", attn=name, num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)
    frozen, plain = sections.Compiled(model, frozen=True), sections.Compiled(model, frozen=False)
    with torch.inference_mode():
        expected = model(images)
        # a graph that is not frozen must not be taken for one that is
        torch.testing.assert_close(plain(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(frozen(images), expected, rtol=1e-3, atol=1e-4)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = torch.zeros_like(layer.weight)
        # packed copies were read; else what is reported as frozen is not
        torch.testing.assert_close(frozen(images), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(plain(images), expected, rtol=1e-3, atol=1e-4)


def test_the_floor_holds_every_product():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    work = Work(2, side_px=8)
    names = [str(function) for function, _, _ in record(model, work)]
    assert names == ["aten.convolution.default", "aten.addmm.default"]
    training = Work(2, training=True, side_px=8)
    names = [str(function) for function, _, _ in record(model, training)]
    assert sorted(names[2:]) == ["aten.convolution_backward.default", "aten.mm.default", "aten.mm.default"]
    floor(model, training)()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("attn", ["vanilla", "swin", "axial"])
def test_the_floor_has_the_multiply_adds_of_the_model(attn):
    model, work = create_model("small", attn=attn), Work(2, side_px=64)
    # torch counts no fused call of a CPU
    forms = [separate_products(call) if call[0] is FUSED else [call] for call in record(model, work)]
    with FlopCounterMode(display=False) as counter:
        for form in forms:
            replay(form)
    assert counter.get_total_flops() == 2 * work.batch * model.macs(64, 64).total


def test_the_floor_takes_the_faster_form_of_attention(monkeypatch):
    attention = create("vanilla", dim=8, num_heads=2)
    ran = []

    def turns(contenders, rounds):
        with Recorder() as recorder:
            for run in contenders.values():
                run()
        ran.append([str(function) for function, *_ in recorder.calls])
        return {"0": [2.0] * rounds, "1": [1.0] * rounds}

    monkeypatch.setattr("benchmarks.floor.take_turns", turns)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), ToChannelsLast(), attention, nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    run = floor(model, Work(2, side_px=6, training=True))
    forward, backward = ran
    assert forward == [str(FUSED), *["aten.bmm.default"] * 2]
    assert backward == [str(FUSED_BACKWARD), *["aten.bmm.default"] * 4]
    with Recorder() as recorder:
        run()
    functions = [function for function, *_ in recorder.calls]
    assert not {FUSED, FUSED_BACKWARD} & set(functions)
    # all pairs of tokens are weighed: never q (k^T v), which would need fewer products without a softmax
    shapes = [[tuple(t.shape) for t in args] for function, args, _ in recorder.calls if "bmm" in str(function)]
    assert shapes[:2] == [[(4, 36, 4), (4, 4, 36)], [(4, 36, 36), (4, 36, 4)]]


class ToChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)
