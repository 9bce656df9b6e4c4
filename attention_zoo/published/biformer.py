"""BiFormer's code: full attention, bi-level routing attention of two kinds, its models, and its ablation's (STL)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import STL, Layout
from attention_zoo.mechanisms.bra import BRA, BRAConfig
from attention_zoo.mechanisms.vanilla import Vanilla, VanillaConfig
from attention_zoo.published.host import host_places, per_stage
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, projections, same, under
from attention_zoo.published.reader import Reader, Size

POOLINGS = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool")


def _lepe(kernel: int) -> dict[str, Any]:
    """LePE of this kernel; 0 is none."""
    return {"lepe": True, "lepe_kernel": kernel} if kernel else {"lepe": False}


def _build_full(read: Reader) -> tuple[Vanilla, Official]:
    lepe = {} if read.official == "vanilla.Attention" else _lepe(read("side_dwconv", 5))
    lepe_input: Any = "x" if read.official == "vanilla.AttentionLePE" else "v"
    fields = {"qkv_bias": read("qkv_bias", False), "qk_scale": read("qk_scale"), **lepe}
    config = VanillaConfig(lepe_input=lepe_input, **fields)
    return Vanilla(read["dim"], read("num_heads", 8), config), Official(read.official)


def _pooled(mode: str, per_side: int | None, ratio: int) -> dict[str, Any]:
    """How the keys and values of a region are pooled."""
    kind = "max" if "max" in mode else "avg"
    if mode.startswith("ada_"):
        return {"kv_pool": kind, "kv_per_side": per_side}
    return {"kv_pool": kind, "kv_ratio": ratio} if mode != "identity" and ratio > 1 else {}


def _routing(read: Reader) -> dict[str, Any]:
    return {name: read(name, False) for name in ("soft_routing", "diff_routing", "param_routing")}


def _as_published(read: Reader, variant: str) -> dict[str, Any]:
    """Padding and routes of the published code; the nchw one pads whatever it is told."""
    pads = read("auto_pad", False) or variant == "nchw"
    return {"variant": variant, "padding": "official" if pads else "error", "impl": "plain"}


def _build_bra(read: Reader) -> tuple[BRA, Official]:
    if read.official == "bra.nchwBRA":
        fields = _as_published(read, "nchw")
    else:
        mode = read.only("kv_downsample_mode", *POOLINGS)
        pooled = _pooled(mode, read("kv_per_win", 4), read("kv_downsample_ratio", 4))
        fields = {**_as_published(read, "legacy"), **_routing(read), **pooled}
    fields |= {"regions": read("n_win", 7), "topk": read("topk", 4), **_lepe(read("side_dwconv", 3))}
    config = BRAConfig(qk_dim=read("qk_dim"), qk_scale=read("qk_scale"), **fields)
    module = BRA(read["dim"], read("num_heads", 8), config)
    if read.only("param_attention", "qkvo", "qkv") == "qkv":
        module.proj = nn.Identity()
    return module, Official(read.official)


def _bra_places(m: BRA, about: Official) -> Iterator[Place]:
    yield from projections(m, about, "qkv.qkv", "wo")
    yield from same(m.router, "router.emb", "router")


_FULL = MixerClass(_build_full, partial(projections, qkv="qkv", proj="proj"))
MIXERS = {
    "vanilla.Attention": _FULL,
    "vanilla.AttentionLePE": _FULL,
    "vanilla.nchwAttentionLePE": MixerClass(_build_full, partial(projections, qkv="qkv", proj="proj", pointwise=True)),
    "bra.BiLevelRoutingAttention": MixerClass(_build_bra, _bra_places),
    "bra.nchwBRA": MixerClass(_build_bra, partial(projections, qkv="qkv_linear", proj="output_linear", pointwise=True)),
}


def _stages(read: Reader, layout: Layout, variant: str, fields: list[dict[str, Any]], heads: list[Any]) -> Stages:
    """Bi-level routing where top-k is positive; else full attention of 8 heads: LePE of v or x, or none."""
    lepe = _lepe(read("side_dwconv", 5))
    kinds: dict[int, Any] = {-1: "v"} if variant == "nchw" else {-2: "x", -1: None}
    published = _as_published(read, variant)
    stages: Stages = []
    for stage, topk in enumerate(read["topks"]):
        if topk > 0:
            config = BRAConfig(topk=topk, **lepe, **published, **fields[stage])
            mixer = Mixer(BRA, config, heads[stage])
        elif topk in kinds:
            mixer = Mixer(Vanilla, VanillaConfig(lepe_input=kinds[topk], **lepe) if kinds[topk] else VanillaConfig(), 8)
        else:
            raise ValueError(f"topks: {topk} has no counterpart; known: positive, {', '.join(map(str, sorted(kinds)))}")
        stages.append([mixer] * layout.depths[stage])
    return stages


def _build_biformer(read: Reader) -> tuple[Layout, Stages]:
    for name, only in (("in_chans", 3), ("param_attention", "qkvo"), ("mlp_dwconv", False), ("pre_norm", True)):
        read.only(name, only)
    read.only("pe", None)
    read.only("representation_size", None)
    read.ignore("pe_stages")  # says where `pe` goes
    dims, depths, scale = tuple(read["embed_dim"]), tuple(read["depth"]), read("layer_scale_init_value", -1)
    layout = replace(
        STL,
        name="biformer",
        depths=depths,
        dims=dims,
        head_dim=read("head_dim", 64),
        mlp_ratio=per_stage(read("mlp_ratios", [4, 4, 4, 4])),
        stem="conv3_twice",
        merging="conv3_norm",
        layer_scale=scale if scale > 0 else None,
        position="convolution" if read.only("before_attn_dwconv", 3, 0) else "none",
    )
    mode = read.only("kv_downsample_mode", *POOLINGS, default="ada_avgpool")
    per_sides, ratios = read("kv_per_wins", [2, 2, -1, -1]), read("kv_downsample_ratios") or [4, 2, 1, 1]
    shared = {"regions": read("n_win", 7), "qk_scale": read("qk_scale"), **_routing(read)}
    qk_dims = read("qk_dims") or dims
    fields = [
        {"qk_dim": qk_dims[stage], **_pooled(mode, per_sides[stage], ratios[stage]), **shared}
        for stage in range(len(depths))
    ]
    return layout, _stages(read, layout, "legacy", fields, [qk_dim // layout.head_dim for qk_dim in qk_dims])


def stl_layout(read: Reader, norm: Any, norm_layer: str, **fields: Any) -> Layout:
    """Host of the ablation's models, which differ in their norms."""
    read.only("in_chans", 3)
    read.only("norm_layer", norm_layer)
    read.only("pre_head_norm_layer", None)
    read.ignore("qk_scale")  # accepted by the published code and never used
    dims, depths = tuple(read["embed_dim"]), tuple(read["depth"])
    return replace(STL, depths=depths, dims=dims, rounding="floor", norm=norm, **fields)


def _build_stl(read: Reader) -> tuple[Layout, Stages]:
    ratios = per_stage(read("mlp_ratios", [4, 4, 4, 4]))
    layout = stl_layout(read, "batch", "BatchNorm2d", head_dim=read("head_dim", 32), mlp_ratio=ratios)
    fields = [{"regions": n_win} for n_win in read("n_wins", [7] * 4)]
    return layout, _stages(read, layout, "nchw" if "nchw" in read.official else "legacy", fields, [None] * len(fields))


def model_places(
    model: Pyramid, mixer: Callable[[Any, Size], Iterator[Place]], mlp: tuple[str, str], *, pointwise: bool = False
) -> Iterator[Place]:
    """Models of BiFormer's code, whose ablation nests blocks and puts norms first; `mixer` names what attention has."""
    is_stl = model.layout.stem != "conv3_twice"

    def downsample(stage: int) -> tuple[str, str]:
        theirs = f"downsample_layers.{stage}"
        if stage == 0 and not is_stl:
            return theirs, f"{theirs}.4"  # the norm follows two convolutions with a norm and an activation between
        return (f"{theirs}.1", f"{theirs}.0") if stage and is_stl else (f"{theirs}.0", f"{theirs}.1")

    def block(stage: int, index: int) -> str:
        return f"stages.{stage}.{'blocks.' if is_stl else ''}{index}."

    return host_places(model, downsample, block, mixer, mlp, pointwise=pointwise)


def _mixer_places(m: Attention, size: Size, *, bra: str, full: str) -> Iterator[Place]:
    """Weights of bi-level routing or of full attention, by those names of their classes."""
    name = bra if isinstance(m, BRA) else full
    return under(MIXERS[name].places(m, Official(name)), "attn.", "")


_LEGACY = partial(_mixer_places, bra="bra.BiLevelRoutingAttention", full="vanilla.AttentionLePE")
_NCHW = partial(_mixer_places, bra="bra.nchwBRA", full="vanilla.nchwAttentionLePE")
_stl_places = partial(model_places, mlp=("mlp.0", "mlp.2"))
MODELS = {
    "models.BiFormer": ModelClass(_build_biformer, partial(model_places, mixer=_LEGACY, mlp=("mlp.0", "mlp.3"))),
    "models.BiFormerSTL": ModelClass(_build_stl, partial(_stl_places, mixer=_LEGACY)),
    "models.nchwBiFormerSTL": ModelClass(_build_stl, partial(_stl_places, mixer=_NCHW, pointwise=True)),
}
