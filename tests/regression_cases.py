"""Small stored results of every mechanism, written by its own oracle; `python tests/regression_cases.py` writes them.

A case is tests/data/cases/<name>.safetensors: `input` of two images or one, (B, H, W, C), and `weights/<name>` in
float32; `output` and `grad_input`, the gradient of sum(output * probe), in float64 as `reference` computes them from
the same numbers. The probe is cos(0), cos(1), ... in the order of memory. The header `case` (JSON) has `mechanism` and
`config`. Nothing here comes from another code: the cases tell whether the zoo still computes what it did.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attention_zoo import Attention, create

FOLDER = Path(__file__).parent / "data" / "cases"
DIM, HEADS, SIZE = 8, 2, (4, 5)
CONTENT_DECIDES = ("bra", "dat")  # what is read differs between images, so these have two

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "axial": ("axial", {}),
    "axial_deeplab": ("axial_deeplab", {"map_size": SIZE}),
    "axial_deeplab_width": ("axial_deeplab", {"axes": "width", "map_size": 4, "qkv_bias": True}),
    "axial_sequence": ("axial", {"layers": "sequence", "head_dim": 3}),
    "axial_sum": ("axial", {"layers": "sum", "qkv_bias": False}),
    "bra": ("bra", {"regions": 2, "topk": 2}),
    "bra_head_routing": ("bra", {"region_size": 2, "topk": 3, "head_routing": True}),
    "bra_max_pooled_keys": ("bra", {"regions": 2, "topk": 3, "kv_pool": "max", "kv_ratio": 2}),
    "bra_narrow_queries": ("bra", {"regions": 2, "topk": 1, "qk_dim": 4, "lepe": False}),
    "bra_pooled_keys": ("bra", {"regions": 2, "topk": 2, "kv_pool": "avg", "kv_per_side": 1}),
    "bra_published_legacy": ("bra", {"regions": 3, "topk": 3, "padding": "official"}),
    "bra_published_nchw": ("bra", {"regions": 3, "topk": 3, "padding": "official", "variant": "nchw"}),
    "bra_soft_routing": (
        "bra",
        {"regions": 2, "topk": 2, "soft_routing": True, "diff_routing": True, "param_routing": True},
    ),
    "crisscross": ("crisscross", {}),
    "crisscross_published": ("crisscross", {"recurrence": 2, "qk_reduction": 2, "qk_scale": 1.0, "residual": True}),
    "crossformer_long": ("crossformer", {"group": 2, "interval": 2, "kind": "long"}),
    "crossformer_short": ("crossformer", {"group": 3, "kind": "short"}),
    "cswin": ("cswin", {"stripe": 2}),
    "cswin_published": ("cswin", {"stripe": 3, "padding": "official"}),
    "dat_2022": ("dat", {"groups": 2, "stride": 2, "kernel": 3, "map_size": SIZE}),
    "dat_2022_convolved_queries": ("dat", {"stride": 2, "kernel": 3, "position": "dwc", "offset_range": "unbounded"}),
    "dat_2023": ("dat", {"variant": "2023", "groups": 2, "stride": 2, "kernel": 3, "map_size": (3, 5)}),
    "dat_2023_fixed_biases": (
        "dat",
        {"variant": "2023", "stride": 2, "kernel": 3, "position": "fixed", "map_size": SIZE},
    ),
    "dat_2023_log_biases": ("dat", {"variant": "2023", "stride": 2, "kernel": 3, "position": "log"}),
    "dat_2023_pooled_keys": ("dat", {"variant": "2023", "stride": 2, "offsets": False, "position": "none"}),
    "maxvit_block": ("maxvit", {"window": 3, "kind": "block"}),
    "maxvit_grid": ("maxvit", {"window": (2, 3), "kind": "grid"}),
    "maxvit_grid_published": ("maxvit", {"window": 3, "kind": "grid", "padding": "official"}),
    "pvt": ("pvt", {"reduction": 2}),
    "pvt_linear": ("pvt", {"linear": True}),
    "sep_global": ("sep", {"reduction": 2, "kind": "global"}),
    "sep_local": ("sep", {"window": 3, "kind": "local"}),
    "sep_local_segmentation": (
        "sep",
        {"window": 3, "kind": "local", "padding": "official", "variant": "segmentation"},
    ),
    "sliding": ("sliding", {"kernel": 3}),
    "sliding_causal": ("sliding", {"kernel": (2, 3), "stride": (1, 2), "causal": "width", "bias": False}),
    "sliding_dilated": ("sliding", {"kernel": 3, "dilation": 2, "bias": False}),
    "sliding_even": ("sliding", {"kernel": (4, 2)}),
    "sliding_filled": ("sliding", {"kernel": 3, "dilation": 2, "padding": "official"}),
    "sliding_strided": ("sliding", {"kernel": (3, 2), "stride": 2, "dilation": (1, 2)}),
    "swin": ("swin", {"window": 3}),
    "swin_shifted": ("swin", {"window": (2, 3), "shift": 1}),
    "vanilla": ("vanilla", {}),
    "vanilla_lepe": ("vanilla", {"lepe": True, "qkv_bias": True, "qk_scale": 0.3}),
    "vanilla_lepe_of_input": ("vanilla", {"lepe": True, "lepe_input": "x"}),
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def header_of(name: str) -> dict[str, Any]:
    mechanism, config = CASES[name]
    header: dict[str, Any] = json.loads(json.dumps({"mechanism": mechanism, "config": config}))
    return header


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a case."""
    with safe_open(path_of(name), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no mapping
        return json.loads(file.metadata()["case"]), tensors


def build(name: str, **changes: Any) -> Attention:
    """The mechanism of a case, in evaluation and float64, with the weights of its start."""
    mechanism, config = CASES[name]
    return create(mechanism, dim=DIM, num_heads=HEADS, **{**config, **changes}).eval().double()


def evaluate(attention: Attention, x: Tensor) -> dict[str, Tensor]:
    """What a case stores of a mechanism on this input."""
    x = x.double().requires_grad_()
    y = attention(x)
    probe = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    (gradient,) = torch.autograd.grad((y * probe).sum(), x)
    return {"output": y.detach(), "grad_input": gradient}


def draw(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight, or a statistic of a batch norm: a variance is positive."""
    drawn = torch.randn(shape, generator=generator) * 0.4
    if key.endswith("num_batches_tracked"):
        return torch.ones(shape, dtype=torch.long)
    return drawn.abs() + 0.5 if key.endswith("running_var") else drawn


def write(name: str) -> None:
    attention = build(name, impl="reference")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    # far from the initial weights, whose softmax is flat and whose tables of biases are all but 0
    weights = {key: draw(key, t.shape, generator) for key, t in attention.state_dict().items()}
    attention.load_state_dict(weights)
    images = 2 if CASES[name][0] in CONTENT_DECIDES else 1
    x = torch.randn(images, *SIZE, DIM, generator=generator)
    tensors = {"input": x, **evaluate(attention, x), **{f"weights/{key}": t for key, t in weights.items()}}
    save_file({key: t.contiguous() for key, t in tensors.items()}, path_of(name), {"case": json.dumps(header_of(name))})


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stale in FOLDER.glob("*.safetensors"):
        stale.unlink()
    for case in CASES:
        write(case)
    print(f"{len(CASES)} cases in {FOLDER}")
