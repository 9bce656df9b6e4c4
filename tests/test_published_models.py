"""Published models by name: size and cost of the papers' tables, timm's Swin with the same weights, any image size."""

import re

import pytest
import timm
import torch
from conftest import slow_but
from golden import PATHS, needs_golden, path_of
from safetensors.torch import save_file

from attention_zoo import create_model
from attention_zoo.mechanisms.cswin import CSWin
from attention_zoo.published import models
from attention_zoo.published.cases import read_case
from attention_zoo.published.classes import counterpart_model
from attention_zoo.published.models import PUBLISHED, Published
from attention_zoo.published.places import Official
from attention_zoo.published.weights import classes_in, load_official, to_official

PAPERS = {
    # arXiv:2103.14030, table 1
    "swin_tiny": (28_288_354, 28.3, 4.5),
    "swin_small": (49_606_258, 49.6, 8.7),
    "swin_base": (87_768_224, 87.8, 15.4),
    # arXiv:2107.00652, table 2, which says 23, 35 and 78 M
    "cswin_tiny": (22_320_552, 22.3, 4.3),
    "cswin_small": (34_643_304, 35, 6.9),
    "cswin_base": (77_382_184, 78, 15.0),
    # arXiv:2108.00154, table 2
    "crossformer_tiny": (27_776_794, 27.8, 2.9),
    "crossformer_small": (30_657_394, 30.7, 4.9),
    "crossformer_base": (51_971_554, 52.0, 9.2),
    # arXiv:2201.00520, table 2, which says 29, 50 and 88 M
    "dat_tiny_2022": (28_319_138, 28.3, 4.6),
    "dat_small_2022": (49_700_402, 50, 9.0),
    "dat_base_2022": (87_881_632, 88, 15.8),
    # the host of arXiv:2303.08810, section 4.4, around MaxViT's attention
    "maxvit_stl": (28_285_666, 28.3, 4.5),
}
"""Exact number of parameters, millions of them and GMACs at 224 px; what a table rounds up is that of its own code."""
NARROW = [name for name in PATHS if re.fullmatch(r"models/(swin|cswin|crossformer|maxvit)_\w+", name)]
"""Stored outputs of the official codes with random weights, on images that the strides divide."""


@pytest.mark.parametrize("name", PAPERS)
def test_the_models_have_the_papers_size_and_cost(name):
    exact, millions, gmacs = PAPERS[name]
    with torch.device("meta"):
        model = create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == exact
    assert count / 1e6 == pytest.approx(millions, rel=0.011)
    # a paper's two digits, and what its tool counts beside products and convolutions
    assert model.macs(224, 224).total / 1e9 == pytest.approx(gmacs, rel=0.016)


def test_dat_has_two_names():
    assert all(PUBLISHED[f"dat_{size}"] is PUBLISHED[f"dat_{size}_2022"] for size in ("tiny", "small", "base"))


def test_the_classes_of_a_file_are_known_by_either_name_of_a_classifier():
    assert classes_in({"cls_head.weight": torch.zeros(7, 4)}) == 7
    assert classes_in({"head.weight": torch.zeros(3, 4)}) == 3


def swin_of_timm(side_px):
    """timm's swin_tiny, its weights far from their start, and the same under the official names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=side_px).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    state = {}
    for name, tensor in theirs.state_dict().items():
        # timm merges before a stage, Swin's code after the one before
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        state[name.replace("head.fc.", "head.")] = tensor
    return theirs, state


@pytest.mark.parametrize("side_px", slow_but(224, of=(224, 448)))
def test_swin_computes_what_timms_does(tmp_path, side_px):
    theirs, state = swin_of_timm(side_px)
    ours = create_model("swin_tiny", num_classes=5)
    masks_and_indices = to_official(ours, Official("models.SwinTransformer"))
    save_file({**masks_and_indices, **state}, tmp_path / "swin.safetensors")
    ours = create_model("swin_tiny", num_classes=5, checkpoint=tmp_path / "swin.safetensors").eval()
    x = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)


@needs_golden
@pytest.mark.parametrize("name", NARROW)
def test_a_model_for_any_size_is_the_official_one_at_its_own(name, monkeypatch):
    case = read_case(path_of(name), name)
    arguments = dict(case.config["ctor"])
    num_classes = arguments.pop("num_classes")
    monkeypatch.setitem(models.PUBLISHED, "narrow", Published(case.kind, arguments))
    model = create_model("narrow", num_classes=num_classes).eval()
    load_official(model, Official(case.kind), case.weights)
    with torch.no_grad():
        torch.testing.assert_close(model(case.tensors["input"]), case.tensors["output"], rtol=1e-4, atol=1e-5)


def test_dat_is_the_counterpart_that_parity_checks():
    ours = create_model("dat_tiny", num_classes=5).eval()
    official = Official("models.DAT_v1")
    parity, _ = counterpart_model(official.name, {"ctor": {**PUBLISHED["dat_tiny"].arguments, "num_classes": 5}})
    load_official(parity, official, to_official(ours, official))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(parity.eval()(x), ours(x))


@pytest.mark.parametrize("size_px", slow_but((64, 96), of=[(32, 32), (64, 96), (250, 300)]))
@pytest.mark.parametrize("name", ["swin_tiny", "cswin_tiny", "crossformer_tiny", "dat_tiny", "maxvit_stl"])
def test_images_of_any_size(name, size_px):
    with torch.device("meta"):
        model = create_model(name, num_classes=3).eval()
        assert model(torch.empty(2, 3, *size_px)).shape == (2, 3)
    assert model.describe(*size_px)["pad_ratio"] >= 0


def test_the_last_stage_of_cswin_reads_the_whole_map():
    with torch.device("meta"):
        model = create_model("cswin_tiny")
    last = model.mixers()[-1][0]
    assert isinstance(last, CSWin)
    assert {(branch.stripes.rows, branch.stripes.cols) for branch in last.branches(12, 10)} == {(12, 10)}


def test_swin_shifts_the_last_stage_where_it_has_several_windows():
    with torch.device("meta"):
        blocks = create_model("swin_tiny").mixers()[-1]
    assert [block.cut(14, 14).shift_y for block in blocks] == [0, 3]
    assert [block.cut(7, 7).shift_y for block in blocks] == [0, 0]
