"""Published models: names, shapes, counts and MACs of the official ones, and their checkpoints."""

import argparse
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import slow_but
from golden import FOLDER, needs_golden
from safetensors.torch import save_file
from timm.models.maxxvit import AttentionCl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo.timm_models  # noqa: F401 -- registers the names
from attention_zoo import create, create_model
from attention_zoo.published.models import PUBLISHED
from attention_zoo.published.places import Official
from attention_zoo.published.weights import read_weights, to_official
from runners.cells.weights import load_model

OTHER_NAMES = {"cswin_tiny_224": "cswin_tiny"}
LISTED = ("biformer_base", "biformer_small", "biformer_stl", "biformer_stl_nchw", "biformer_tiny", "crossformer_tiny")
LISTED += ("cswin_tiny_224", "dat_tiny_2022", "maxvit_stl", "swin_tiny")
ELSEWHERE = {"dat_tiny_2023", "maxvit_tiny_tf_224"}  # hosts of their own; see the last two tests
NOT_MACS = {"layer_norm", "batch_norm", "grid_sampler", "adaptive_avg_pool2d"}


def list_of(name):
    return json.loads((FOLDER / "models" / f"{name}.json").read_text())


def build(listed):
    name = OTHER_NAMES.get(listed["model"], listed["model"])
    return create_model(name), Official(PUBLISHED[name].official)


@needs_golden
def test_every_list_is_used():
    assert {path.stem for path in (FOLDER / "models").glob("*.json")} == {*LISTED, *ELSEWHERE}


@needs_golden
@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_parameters_and_macs_are_the_official_ones(name):
    listed = list_of(name)
    # on the meta device: a shape is a shape
    with torch.device("meta"):
        model, official = build(listed)
    found = {name: list(tensor.shape) for name, tensor in to_official(model, official).items()}
    assert found == {**listed["parameters"], **{name: shape[:-1] for name, shape in listed["buffers"].items()}}
    assert sum(parameter.numel() for parameter in model.parameters()) == listed["n_params"]
    flops = listed["flops"]
    macs = flops["total"] - sum(flops["by_operator"].get(name, 0) for name in NOT_MACS)
    assert model.macs(224, 224).total == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("biformer_tiny", 13_142_760, 2.2),
        ("biformer_small", 25_536_232, 4.5),
        ("biformer_base", 56_804_968, 9.8),
        ("biformer_stl", 28_372_552, 4.6),
        ("biformer_stl_nchw", 28_372_552, 4.6),
    ],
)
def test_the_models_are_those_of_the_paper(name, params, gmacs):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert model.macs(224, 224).total / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.fixture(scope="module")
def tiny():
    """biformer_tiny with 10 classes, its weights far from their start, and their official names."""
    model = create_model("biformer_tiny", num_classes=10).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.05 + 0.01)
    return model, to_official(model, Official("models.BiFormer"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_loads_and_comes_back(tiny, tmp_path, suffix):
    model, state = tiny
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    loaded = create_model("biformer_tiny", num_classes=10, checkpoint=path).eval()
    again = to_official(loaded, Official("models.BiFormer"))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images))


def read_by_all(path, classes):
    """Weights of biformer_tiny as each reader of files gives them: create_model, visualize.py and timm."""
    timm_settings = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    yield create_model("biformer_tiny", num_classes=classes, checkpoint=path).state_dict()
    yield load_model(str(path), arch="biformer_tiny").model.state_dict()
    yield timm.create_model("zoo_biformer_tiny", num_classes=classes, **timm_settings).state_dict()


LAYOUTS = {
    "official": lambda ours, theirs: {"model": theirs},
    "official alone": lambda ours, theirs: theirs,
    "official under state_dict": lambda ours, theirs: {"state_dict": theirs, "epoch": 3},
    "official of DDP": lambda ours, theirs: {"model": {f"module.{name}": tensor for name, tensor in theirs.items()}},
    "ours alone": lambda ours, theirs: ours,
    "ours of torch.compile and DDP": lambda ours, theirs: {f"module._orig_mod.{n}": t for n, t in ours.items()},
    "ours of a trainer": lambda ours, theirs: {"state_dict": {f"model.{name}": t for name, t in ours.items()}},
    "an average alone": lambda ours, theirs: {"model_ema": theirs},
    "a training of BiFormer's main.py": lambda ours, theirs: {
        "model": theirs,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 1,
        "args": argparse.Namespace(lr=1e-3, output=Path("runs"), seed=None),
    },
    "a training of timm's train.py": lambda ours, theirs: {
        "epoch": 1,
        "arch": "zoo_biformer_tiny",
        "state_dict": ours,
        "state_dict_ema": {name: torch.zeros_like(tensor) for name, tensor in ours.items()},
        "args": argparse.Namespace(lr=1e-3),
        "metric": np.float64(81.4),
    },
}


@pytest.mark.parametrize("layout", slow_but(*list(LAYOUTS)[:2], of=LAYOUTS))
def test_all_readers_read_the_same_files(tiny, tmp_path, layout):
    ours, path = tiny[0].state_dict(), tmp_path / "model.pth"
    torch.save(LAYOUTS[layout](ours, tiny[1]), path)
    for found in read_by_all(path, classes=10):
        assert found.keys() == ours.keys()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in found.items())


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
def test_the_moving_average_is_read_where_it_is_asked_for(tmp_path, key):
    path = tmp_path / "model.pth"
    args = argparse.Namespace(lr=1e-3)
    torch.save({"state_dict": {"head.bias": torch.zeros(2)}, key: {"head.bias": torch.ones(2)}, "args": args}, path)
    plain, average = read_weights(path), read_weights(path, ema=True)
    assert (plain.place, plain.state["head.bias"].tolist()) == ("state_dict", [0, 0])
    assert (average.place, average.state["head.bias"].tolist()) == (key, [1, 1])
    assert average.rest.keys() == {"state_dict", "args"} and average.rest["args"] == args
    torch.save({"model": {"head.bias": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="under model_ema or state_dict_ema"):
        read_weights(path, ema=True)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("spoil", ["another model", "no state", "no file", "code", "missing", "unknown", "shape"])
def test_a_checkpoint_of_something_else_is_refused(tiny, tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    path, state = tmp_path / "model.pth", dict(tiny[1])
    message = {
        "another model": "these are not the weights of this models.BiFormerSTL: unknown: .*pos_embed",
        "no state": "holds no weights, neither at the top nor under model, state_dict",
        "no file": "cannot be read: No such file",
        "code": "is refused",
        "missing": "missing: head.bias",
        "unknown": "unknown: head.scale",
        "shape": "mis-shaped: head.weight 7x512 instead of 10x512",
    }[spoil]
    if spoil == "missing":
        del state["head.bias"]
    elif spoil == "unknown":
        state["head.scale"] = torch.zeros(1)
    elif spoil == "shape":
        state["head.weight"] = torch.zeros(7, 512)
    if spoil == "code":
        path.write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    elif spoil != "no file":
        torch.save([1, 2] if spoil == "no state" else {"model": state}, path)
    name = "biformer_stl" if spoil == "another model" else "biformer_tiny"
    with pytest.raises(ValueError, match=f"(?s)checkpoint=.*model.pth.*{message}"):
        create_model(name, num_classes=10, checkpoint=path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("biformer_tiny", {"attn": "swin"}, "biformer_tiny is what was published; .* not attn='swin'"),
        ("biformer_tiny", {"topk": 4}, "takes padding and checkpoint, not topk=4"),
        ("biformer_tiny", {"padding": "zeros"}, "padding takes mask[|]official[|]error; got 'zeros'"),
        ("biformer_tiny", {"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ("stl", {"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1, got 1.0"),
        ("biformer_tny", {}, "unknown layout 'biformer_tny'; did you mean 'biformer_tiny'"),
        ("stl", {"checkpoint": "x.pth"}, "checkpoint=x.pth: weights are known of biformer_base, .*, not of stl"),
    ],
    ids=str,
)
def test_bad_arguments(name, config, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **config)


def test_padding_is_masked_unless_told_otherwise():
    images = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    masked, official = (
        create_model("biformer_tiny", num_classes=4, padding=rule).eval() for rule in ("mask", "official")
    )
    official.load_state_dict(masked.state_dict())
    with torch.no_grad():
        assert not torch.allclose(masked(images), official(images))
    with pytest.raises(ValueError, match="does not divide"):
        create_model("biformer_tiny", padding="error")(images)


@pytest.mark.parametrize("size_px", [(32, 32), (64, 48), (97, 130)], ids=str)
def test_images_of_any_size_are_classified(tiny, size_px):
    with torch.no_grad():
        assert tiny[0](torch.zeros(1, 3, *size_px)).isfinite().all()


def listed_macs(name):
    flops = list_of(name)["flops"]
    return flops["total"] - sum(flops["by_operator"].get(kind, 0) for kind in NOT_MACS)


@needs_golden
def test_deformable_and_neighbourhood_attention_cost_what_dat_tiny_2023_does():
    """Its host is not ours (positional convolutions in blocks and MLPs), so that is counted off its list of weights."""
    listed = list_of("dat_tiny_2023")
    config, total = listed["config"], 0
    sides = [56, 28, 14, 7]
    for stage, kinds in enumerate(config["stage_spec"]):
        dim, heads = config["dims"][stage], config["heads"][stage]
        fields = {"groups": config["groups"][stage], "stride": config["strides"][stage], "map_size": sides[stage]}
        deformable = create("dat", dim=dim, num_heads=heads, variant="2023", kernel=config["ksizes"][stage], **fields)
        sliding = create("sliding", dim=dim, num_heads=heads, kernel=config["nat_ksizes"][stage])
        for kind in kinds:
            total += (deformable if kind == "D" else sliding).macs(sides[stage], sides[stage]).total
    for name, shape in listed["parameters"].items():
        if not name.endswith("weight") or len(shape) < 2 or ".attns." in name:
            continue
        stage = int(name.split(".")[1]) + name.startswith("down_projs") if name[0] in "sd" else 0
        places = {"cls_head.weight": 1, "patch_proj.0.weight": 112**2}.get(name, sides[stage] ** 2)
        total += math.prod(shape) * places
    assert total == pytest.approx(listed_macs("dat_tiny_2023"), rel=0.005)


@needs_golden
def test_block_and_grid_attention_cost_what_timms_maxvit_tiny_does():
    with torch.device("meta"):
        model = timm.create_model("maxvit_tiny_tf_224").eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    by_module = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    theirs = ours = 0
    for name, module in model.named_modules():
        if isinstance(module, AttentionCl):
            dim, side = module.proj.in_features, 56 // 2 ** int(name.split(".")[1])
            theirs += by_module[f"MaxxVit.{name}"]
            ours += create("maxvit", dim=dim, num_heads=module.num_heads, window=7).macs(side, side).total
    # timm looks TensorFlow's bias up by products with one-hot matrices
    assert theirs * 0.99 < ours < theirs
    total = by_module["Global"] - theirs + ours
    assert total == pytest.approx(listed_macs("maxvit_tiny_tf_224"), rel=0.005)
