"""Outputs, gradients and routes of the official implementations, stored in the folder that ZOO_GOLDEN names.

Its README gives the format and the conventions. What is run is decided by what a file's header says, never by its name.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from attention_zoo import Attention, bra, create

FOLDER = Path(os.environ.get("ZOO_GOLDEN") or Path(__file__).parents[1].parent / "shared" / "golden")
FAMILIES = ("vanilla", "swin", "bra")
FILES = sorted(path for family in FAMILIES for path in (FOLDER / family).glob("*.safetensors"))


class Case(NamedTuple):
    kind: str
    layout: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def ctor(self) -> dict[str, Any]:
        """Arguments of the official constructor; a function has none."""
        return self.config.get("ctor", {})


def read(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    return Case(header["kind"], header["layout"], json.loads(header["config"]), tensors)


def is_padded(case: Case) -> bool:
    n_win = case.ctor.get("n_win", 1)
    return bool(case.config.get("H", 0) % n_win or case.config.get("W", 0) % n_win)


def has_soft_routing(case: Case) -> bool:
    return any(case.ctor.get(option) for option in ("soft_routing", "diff_routing", "param_routing"))


LATER: dict[str, Callable[[Case], bool]] = {
    "region graph per head, keys on another map": lambda case: case.kind == "bra.regional_routing_attention_torch",
    "LePE of the layer's input instead of v": lambda case: case.kind == "vanilla.AttentionLePE",
    "official padding, which is not masked": is_padded,
    "soft or learned routing": has_soft_routing,
    "pooled keys and values": lambda case: case.ctor.get("kv_downsample_mode", "identity") != "identity",
}
"""What the zoo has no option for yet, and the cases that need it."""


def reasons(case: Case) -> list[str]:
    return [reason for reason, applies in LATER.items() if applies(case)]


def vanilla(case: Case) -> dict[str, Any]:
    lepe = {"lepe": True, "lepe_kernel": case.ctor.get("side_dwconv", 5)} if case.kind.endswith("LePE") else {}
    num_heads, qkv_bias = case.ctor.get("num_heads", 8), case.ctor.get("qkv_bias", False)
    return {"num_heads": num_heads, "qkv_bias": qkv_bias, "qk_scale": case.ctor.get("qk_scale"), **lepe}


def swin(case: Case) -> dict[str, Any]:
    window, shift = case.ctor["window_size"], case.ctor.get("shift_size", 0)
    if case.kind == "swin.WindowAttention":
        window = tuple(window)
    elif min(case.config["H"], case.config["W"]) <= window:
        window, shift = min(case.config["H"], case.config["W"]), 0
    qkv_bias = case.ctor.get("qkv_bias", True)
    return {"num_heads": case.ctor["num_heads"], "window": window, "shift": shift, "qkv_bias": qkv_bias}


def routed(case: Case) -> dict[str, Any]:
    kernel = case.ctor["side_dwconv"]
    lepe = {"lepe": True, "lepe_kernel": kernel} if kernel else {"lepe": False}
    same = {name: case.ctor[name] for name in ("num_heads", "topk", "qk_dim", "qk_scale") if name in case.ctor}
    return {"regions": case.ctor["n_win"], "impl": "gather", **same, **lepe}


BLOCK = {
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "attn.relative_position_bias_table": "bias_table",
    "attn.relative_position_index": None,
    "attn_mask": None,
}
KINDS = {  # official kind -> our name, our configuration, official names of weights -> ours (None: not a weight)
    "vanilla.Attention": ("vanilla", vanilla, {"qkv": "qkv", "proj": "proj"}),
    "vanilla.nchwAttentionLePE": ("vanilla", vanilla, {"qkv": "qkv", "proj": "proj", "lepe": "lepe"}),
    "swin.SwinTransformerBlock.attn": ("swin", swin, BLOCK),
    "swin.WindowAttention": ("swin", swin, {name.removeprefix("attn."): ours for name, ours in BLOCK.items()}),
    "bra.BiLevelRoutingAttention": ("bra", routed, {"qkv.qkv": "qkv", "wo": "proj", "lepe": "lepe"}),
    "bra.nchwBRA": ("bra", routed, {"qkv_linear": "qkv", "output_linear": "proj", "lepe": "lepe"}),
}


def build(case: Case) -> Attention:
    """Our mechanism with the official weights, every one of which must find its place."""
    name, configure, places = KINDS[case.kind]
    attention = create(name, dim=case.ctor["dim"], **configure(case))
    weights = {}
    for official, value in case.tensors.items():
        if official.startswith("weights/"):
            stem = official.removeprefix("weights/").removesuffix(".weight").removesuffix(".bias")
            if (place := places[stem]) is not None:
                ours = official.replace(f"weights/{stem}", place)
                is_pointwise = value.dim() == 4 and attention.get_parameter(ours).dim() == 2
                weights[ours] = value.flatten(1) if is_pointwise else value
    if case.ctor.get("param_attention") == "qkv":  # no output projection
        weights |= {"proj.weight": torch.eye(attention.dim), "proj.bias": torch.zeros(attention.dim)}
    attention.load_state_dict(weights)
    return attention.eval()


def as_map(case: Case, x: Tensor) -> Tensor:
    if case.layout == "BLC":
        # a window alone is a map of its own size
        size = case.ctor["window_size"] if "H" not in case.config else (case.config["H"], case.config["W"])
        return x.unflatten(1, tuple(size))
    return x.permute(0, 2, 3, 1) if case.layout == "NCHW" else x


def assert_close(found: Tensor, expected: Tensor, share: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max()


needs_golden = pytest.mark.skipif(not FILES, reason=f"no golden cases in {FOLDER}; set ZOO_GOLDEN to their folder")
RUN = [path for path in FILES if not reasons(read(path))]


@needs_golden
def test_every_case_is_run_or_waits_for_a_named_option():
    left = {path: reasons(read(path)) for path in FILES if path not in RUN}
    assert all(left.values())
    assert {path.parent.name for path in RUN} == set(FAMILIES)
    for path in RUN:
        build(read(path))


@needs_golden
@pytest.mark.parametrize("path", RUN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_official_output_gradient_and_routes(path, monkeypatch):
    case, routes = read(path), []
    attention = build(case)
    choose = bra.region_affinity

    def recording(*arguments):
        routes.append(choose(*arguments).topk(case.ctor["topk"]).indices)
        return choose(*arguments)

    monkeypatch.setattr(bra, "region_affinity", recording)
    x = case.tensors["input"].requires_grad_()
    y = attention(as_map(case, x))
    assert_close(y, as_map(case, case.tensors["output"]), share=1e-4)
    (gradient,) = torch.autograd.grad((y * as_map(case, case.tensors["probe"])).sum(), x)
    assert_close(gradient, case.tensors["grad_input"], share=5e-4)
    if "extra/r_idx" in case.tensors:
        (found,) = routes
        found = found[:, 0]
        assert torch.equal(found.sort(-1).values, case.tensors["extra/r_idx"].sort(-1).values)
