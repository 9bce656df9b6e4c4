"""The published models, as layouts of the shared pyramid: BiFormer by name, and whatever their constructors make.

`create_published` is for users; `counterpart_model` reads the arguments of an official constructor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import STL, Layout
from attention_zoo.mechanisms.bra import BRA, BRAConfig
from attention_zoo.mechanisms.crossformer import CrossFormer
from attention_zoo.mechanisms.cswin import CSWin, CSWinConfig
from attention_zoo.mechanisms.dat import DAT, KERNELS, DATConfig
from attention_zoo.mechanisms.maxvit import MaxViT
from attention_zoo.mechanisms.swin import Swin, SwinConfig
from attention_zoo.mechanisms.vanilla import Vanilla, VanillaConfig
from attention_zoo.published.counterparts import (
    Arguments,
    Built,
    Reader,
    Size,
    crossformer_groups,
    dat_options,
    lepe_fields,
    maxvit_partition,
    pooling,
)
from attention_zoo.published.name_maps import Official


@dataclass(frozen=True)
class Published:
    """A published model: its official class, and the arguments that its name stands for."""

    official: str
    arguments: dict[str, Any]


def _biformer_arguments(depth: list[int], embed_dim: list[int]) -> dict[str, Any]:
    return {
        "depth": depth,
        "embed_dim": embed_dim,
        "qk_dims": embed_dim,
        "mlp_ratios": [3, 3, 3, 3],
        "head_dim": 32,
        "n_win": 7,
        "topks": [1, 4, 16, -2],
        "kv_downsample_mode": "identity",
    }


_NARROW, _WIDE = [64, 128, 256, 512], [96, 192, 384, 768]
_STL = {"depth": [2, 2, 6, 2], "embed_dim": _WIDE, "head_dim": 32, "n_wins": [7] * 4}

PUBLISHED = {
    "biformer_tiny": Published("models.BiFormer", _biformer_arguments([2, 2, 8, 2], _NARROW)),
    "biformer_small": Published("models.BiFormer", _biformer_arguments([4, 4, 18, 4], _NARROW)),
    "biformer_base": Published("models.BiFormer", _biformer_arguments([4, 4, 18, 4], _WIDE)),
    "biformer_stl": Published("models.BiFormerSTL", {**_STL, "topks": [1, 4, 16, -2]}),
    "biformer_stl_nchw": Published("models.nchwBiFormerSTL", {**_STL, "topks": [1, 4, 16, -1]}),
}
"""BiFormer (arXiv:2303.08810, table 2 and the released constructors)."""


def create_published(
    name: str,
    *,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    padding: str = "mask",
    checkpoint: str | Path | None = None,
) -> Pyramid:
    """Build a published model; `checkpoint` is a file of official weights.

    Raises:
        ValueError: an unknown padding, or a checkpoint that cannot be read or is another model's.
    """
    from attention_zoo.published.official import load_checkpoint  # maps of all families, which most models do not need

    published = PUBLISHED[name]
    read = Reader(published.official, {**published.arguments, "num_classes": num_classes, "padding": padding})
    model, official = _HOSTS[published.official](read, None, drop_path_rate)
    if checkpoint is not None:
        load_checkpoint(model, official, checkpoint)
    return model


def counterpart_model(official: str, config: Arguments) -> Built:
    """Build our pyramid for an official model and its configuration: {"ctor": arguments, "H": ..., "W": ...}.

    Raises:
        ValueError: an unknown class, or arguments without a counterpart.
    """
    read = Reader(official, {"padding": "as_built", **config["ctor"]})
    return read.build(lambda: _HOSTS[official](read, (config["H"], config["W"]), 0.0))


Host = tuple[Pyramid, Official]


def _ratios(ratios: float | list[float]) -> float | tuple[float, ...]:
    return tuple(ratios) if isinstance(ratios, list) else ratios


def _finish(read: Reader, layout: Layout, stages: Stages, rate: float) -> Host:
    read("padding")  # only some hosts ever pad
    model = Pyramid(layout, stages, read("num_classes", 1000), rate)
    return model, Official(read.official)


def _biformer(read: Reader, size: Size | None, rate: float) -> Host:
    dims, depths = tuple(read("embed_dim")), tuple(read("depth"))
    scale = read("layer_scale_init_value", -1)
    read.only("before_attn_dwconv", 3, 0)
    layout = replace(
        STL,
        name="biformer",
        depths=depths,
        dims=dims,
        head_dim=read("head_dim", 64),
        mlp_ratio=_ratios(read("mlp_ratios", [4, 4, 4, 4])),
        stem="conv3_twice",
        merging="conv3_norm",
        layer_scale=scale if scale > 0 else None,
        position="convolution" if read("before_attn_dwconv", 3) else "none",
    )
    n_win, qk_dims, kernel = read("n_win", 7), read("qk_dims") or dims, read("side_dwconv", 5)
    options = {name: read(name, False) for name in ("soft_routing", "diff_routing", "param_routing")}
    per_window = read("kv_per_wins", [2, 2, -1, -1])
    read.only("param_attention", "qkvo")
    read.only("mlp_dwconv", False)
    read.only("pre_norm", True)
    read.only("pe", None)
    read.only("representation_size", None)
    read.only("in_chans", 3)
    read("pe_stages")
    pools = [pooling(read, per_window[stage], stage) for stage in range(len(depths))]
    qk_scale = read("qk_scale")
    padding = _bra_padding(read)
    stages: Stages = []
    for stage, topk in enumerate(read("topks")):
        if topk > 0:
            config: Any = BRAConfig(
                topk=topk,
                regions=n_win,
                qk_dim=qk_dims[stage],
                qk_scale=qk_scale,
                **lepe_fields(kernel),
                **options,
                **pools[stage],
                **padding,
            )
            mixer = Mixer(BRA, config, qk_dims[stage] // layout.head_dim)
        else:
            mixer = _full(topk, kernel, {-2: "x", -1: None})
        stages.append([mixer] * depths[stage])
    return _finish(read, layout, stages, rate)


def _bra_padding(read: Reader, variant: str = "legacy") -> dict[str, Any]:
    """The rule that a user names; `as_built` is what the constructor's own argument makes of it."""
    auto_pad, rule = read("auto_pad", False) or variant == "nchw", read("padding")
    if rule == "as_built":
        return {"padding": "official" if auto_pad else "error", "variant": variant, "impl": "gather"}
    # small images have fewer regions than top-k asks for: then all of them
    return {"padding": rule, "variant": variant, "clip_topk": rule == "mask"}


def _full(topk: int, kernel: int, kinds: dict[int, Any]) -> Mixer:
    """Full attention where top-k is no number: LePE of v or x, or none; 8 heads whatever the head dim."""
    if topk not in kinds:
        raise ValueError(f"topks: {topk} has no counterpart; known: positive, {', '.join(map(str, sorted(kinds)))}")
    lepe = {"lepe_input": kinds[topk], **lepe_fields(kernel)} if kinds[topk] else {}
    return Mixer(Vanilla, VanillaConfig(**lepe), 8)


def _stl_layout(read: Reader, norm: Any, **fields: Any) -> Layout:
    read.only("in_chans", 3)
    read("qk_scale")  # accepted and never used
    return replace(
        STL,
        depths=tuple(read("depth")),
        dims=tuple(read("embed_dim")),
        rounding="floor" if read("padding") == "as_built" else "ceil",
        norm=norm,
        **fields,
    )


def _biformer_stl(read: Reader, size: Size | None, rate: float) -> Host:
    ratios = _ratios(read("mlp_ratios", [4, 4, 4, 4]))
    layout = _stl_layout(read, "batch", head_dim=read("head_dim", 32), mlp_ratio=ratios)
    variant = "nchw" if "nchw" in read.official else "legacy"
    kinds: dict[int, Any] = {-1: "v"} if variant == "nchw" else {-2: "x", -1: None}
    kernel, padding, n_wins = read("side_dwconv", 5), _bra_padding(read, variant), read("n_wins", [7] * 4)
    stages: Stages = []
    for stage, topk in enumerate(read("topks")):
        if topk > 0:
            config = BRAConfig(topk=topk, regions=n_wins[stage], **lepe_fields(kernel), **padding)
            mixer = Mixer(BRA, config)
        else:
            mixer = _full(topk, kernel, kinds)
        stages.append([mixer] * layout.depths[stage])
    return _finish(read, layout, stages, rate)


def _maxvit_stl(read: Reader, size: Size | None, rate: float) -> Host:
    # two arguments are unused: always 32 and 4
    for name in ("head_dim", "mlp_ratios"):
        read(name)
    layout = _stl_layout(read, "layer", head_dim=32, mlp_ratio=4, norm_eps=1e-6, block_norm_eps=1e-5)
    window = read("grid_window_size", 7)
    turns = [maxvit_partition((window, window), kind, read("auto_pad", False)) for kind in ("block", "grid")]
    stages = [[Mixer(MaxViT, turns[block % 2]) for block in range(depth)] for depth in layout.depths]
    return _finish(read, layout, stages, rate)


def _layer_norm_layout(read: Reader, depths: list[int], dims: list[int], heads: list[int], **fields: Any) -> Layout:
    """Host with LayerNorm throughout, for images of one size; what does not fit a stride is dropped."""
    read.only("in_chans", 3)
    side = read("img_size", 224)
    height, width = (side, side) if isinstance(side, int) else side
    return replace(
        STL,
        name=read.official,
        depths=tuple(depths),
        dims=tuple(dims),
        head_dim=dims[0] // heads[0],
        rounding="floor",
        norm="layer",
        block_norm_eps=1e-5,
        resolution_px=height,
        width_px=width,
        **fields,
    )


def _doubled(width: int, depths: list[int]) -> list[int]:
    """Channels of the stages, twice as many after each merging."""
    return [width * 2**stage for stage in range(len(depths))]


def _qkv(read: Reader) -> dict[str, Any]:
    return {"qkv_bias": read("qkv_bias", True), "qk_scale": read("qk_scale")}


def _swin(read: Reader, size: Size | None, rate: float) -> Host:
    depths, heads = read("depths"), read("num_heads")
    for name, only in (("ape", False), ("patch_norm", True)):
        read.only(name, only)
    layout = _layer_norm_layout(
        read,
        depths,
        _doubled(read("embed_dim", 96), depths),
        heads,
        mlp_ratio=read("mlp_ratio", 4.0),
        stem_px=read("patch_size", 4),
        merging="concat_norm_linear",
        merging_bias=False,
        window=read("window_size", 7),
    )
    fields = {**_qkv(read), "padding": "official"}
    stages: Stages = []
    for stage, (height, width) in enumerate(layout.own_maps):
        # the code clamps both sides by the shorter one, and does not shift then
        window = min(layout.window, height, width)
        is_whole = min(height, width) <= layout.window
        shifts = [0 if is_whole or block % 2 == 0 else window // 2 for block in range(depths[stage])]
        stages.append([Mixer(Swin, SwinConfig(window=window, shift=shift, **fields), heads[stage]) for shift in shifts])
    return _finish(read, layout, stages, rate)


def _cswin(read: Reader, size: Size | None, rate: float) -> Host:
    depths, heads, splits = read("depth"), read("num_heads"), read("split_size")
    layout = _layer_norm_layout(
        read,
        depths,
        _doubled(read("embed_dim", 64), depths),
        heads,
        mlp_ratio=read("mlp_ratio", 4.0),
        stem="conv7",
        merging="conv3_norm",
        stripes=tuple(splits),
    )
    read("patch_size")  # the stem's stride is 4 whatever it says
    fields = {**_qkv(read), "padding": "error"}
    stages: Stages = []
    maps = layout.own_maps
    for stage, depth in enumerate(depths):
        # the last stage has one branch over the whole map
        is_last = stage == len(depths) - 1
        config = CSWinConfig(stripe=max(maps[stage]) if is_last else splits[stage], clip_stripe=is_last, **fields)
        # two branches leave an odd head out
        is_one = is_last or splits[stage] == maps[stage][0]
        stages.append([Mixer(CSWin, config, heads[stage] if is_one else heads[stage] // 2 * 2)] * depth)
    return _finish(read, layout, stages, rate)


def _crossformer(read: Reader, size: Size | None, rate: float) -> Host:
    depths, heads = read("depths"), read("num_heads")
    patches, merges = read("patch_size", [4]), read("merge_size", [[2]])
    groups, intervals = read("group_size", [7] * 4), read("crs_interval", [8, 4, 2, 1])
    for name, only in (("ape", False), ("patch_norm", True), ("group_type", "constant")):
        read.only(name, only)
    for name in ("use_cpe", "no_mask", "adaptive_interval", "use_acl", "use_extra_conv"):
        read.only(name, False)
    pad_type, fields = read("pad_type", 0), _qkv(read)
    layout = _layer_norm_layout(
        read,
        depths,
        _doubled(read("embed_dim", 96), depths),
        heads,
        mlp_ratio=_ratios(read("mlp_ratio", [4.0] * len(depths))),
        stem="multiscale",
        stem_px=patches[0],
        stem_kernels=tuple(patches),
        merging="norm_multiscale",
        merging_kernels=tuple(tuple(merge) for merge in merges),
    )
    stages: Stages = []
    maps = layout.maps(*size) if size else layout.own_maps
    for stage, depth in enumerate(depths):
        turns = [
            crossformer_groups(groups[stage], intervals[stage], is_long, maps[stage], pad_type).replace(**fields)
            for is_long in (False, True)
        ]
        stages.append([Mixer(CrossFormer, turns[block % 2], heads[stage]) for block in range(depth)])
    return _finish(read, layout, stages, rate)


def _dat(read: Reader, size: Size | None, rate: float) -> Host:
    depths, dims, heads = read("depths"), read("dims"), read("heads")
    count = len(depths)
    read.only("dim_stem", dims[0])
    for name in ("use_conv_patches", "use_dwc_mlps", "use_conv_mlps"):
        read.only(name, False, [False] * count)
    layout = _layer_norm_layout(
        read,
        depths,
        dims,
        heads,
        mlp_ratio=read("expansion", 4),
        stem_px=read("patch_size", 4),
        merging="conv2_norm",
        merging_bias=False,
    )
    for name in ("sr_ratios", "ns_per_pts"):
        read(name)
    windows, groups, strides = read("window_sizes"), read("groups"), read("strides")
    factors, has_position = read("offset_range_factor"), read("use_pes")
    dwc, none = read("dwc_pes", [False] * count), read("no_offs", [False] * count)
    read.only("fixed_pes", [False] * count)
    maps = layout.own_maps
    stages: Stages = []
    for stage, kinds in enumerate(read("stage_spec")):
        blocks = []
        for kind in kinds:
            if kind == "D":
                options = dat_options(
                    True, factors[stage], none[stage], has_position[stage], "dwc" if dwc[stage] else "rpb"
                )
                fields = {"groups": groups[stage], "stride": strides[stage], "map_size": maps[stage]}
                deformable = DATConfig(variant="2022", kernel=KERNELS[stage], **fields, **options)
                blocks.append(Mixer(DAT, deformable, heads[stage]))
            elif kind in ("L", "S"):
                shift = -(-windows[stage] // 2) if kind == "S" else 0
                # the code shifts a side that is one window too
                config = SwinConfig(window=windows[stage], shift=shift, shift_whole=True, padding="official")
                blocks.append(Mixer(Swin, config, heads[stage]))
            else:
                raise ValueError(f"stage_spec: {kind!r} has no counterpart; known: L, S, D")
        stages.append(blocks)
    return _finish(read, layout, stages, rate)


_HOSTS: dict[str, Callable[[Reader, Size | None, float], Host]] = {
    "models.BiFormer": _biformer,
    "models.BiFormerSTL": _biformer_stl,
    "models.nchwBiFormerSTL": _biformer_stl,
    "models.MaxViTSTL": _maxvit_stl,
    "models.SwinTransformer": _swin,
    "models.CSWinTransformer": _cswin,
    "models.CrossFormer": _crossformer,
    "models.DAT_v1": _dat,
}
MODELS = tuple(_HOSTS)
