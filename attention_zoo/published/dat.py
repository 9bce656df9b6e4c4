"""DAT's code: deformable attention of 2022 and 2023, the windows of 2022, and the model of 2022."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.dat import DAT, KERNELS, DATConfig
from attention_zoo.mechanisms.swin import Swin, SwinConfig
from attention_zoo.published.host import blocks, downsample_places, end_places, layer_norm_layout, pair
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, joined, same, under
from attention_zoo.published.reader import Reader
from attention_zoo.published.swin import shift_mask, window_places


def _windows(window: int | list[int], shift: int) -> SwinConfig:
    # the code shifts a side that is one window too
    return SwinConfig(window=pair(window), shift=shift, shift_whole=True, padding="official")


def _build_windows(read: Reader) -> tuple[Swin, Official]:
    config = _windows(read["window_size"], read("shift_size", 0))
    return Swin(read["dim"], read["heads"], config), Official(read.official, read.size)


def _window_places(m: Swin, about: Official) -> Iterator[Place]:
    yield from window_places(m, about, "proj_qkv", "proj_out")
    yield from shift_mask(m, about)


def _deformable(is_2022: bool, factor: float, no_offsets: bool, position: Any, **fields: Any) -> DATConfig:
    """Bound the offsets as the code does; pooled keys have no position term."""
    unbounded: Any = "unbounded" if factor < 0 else "free" if factor == 0 and is_2022 else None
    return DATConfig(
        variant="2022" if is_2022 else "2023",
        offset_range=unbounded or float(factor),
        offsets=not no_offsets,
        position="none" if no_offsets else position,
        **fields,
    )


def _build_deformable(read: Reader) -> tuple[DAT, Official]:
    is_2022 = read.official.startswith("dat_v1.")
    read.ignore("q_size", "kv_size", "sr_ratio")  # the size of the map, and a number that the code never uses
    # in the order in which the code asks
    kinds = {"dwc_pe": "dwc", "fixed_pe": "fixed", "log_cpb": "log"}
    chosen = [ours for official, ours in kinds.items() if read(official, False)]
    position = (chosen or ["rpb"])[0] if read("use_pe", False) else "none"
    fields = {"groups": read["n_groups"], "stride": read["stride"], "map_size": read.size}
    kernel = KERNELS[read["stage_idx"]] if is_2022 else read["ksize"]
    factor, no_offsets = read["offset_range_factor"], read("no_off", False)
    config = _deformable(is_2022, factor, no_offsets, position, kernel=kernel, **fields)
    heads = read["n_heads"]
    return DAT(heads * read["n_head_channels"], heads, config), Official(read.official)


def _deformable_places(m: DAT, about: Official) -> Iterator[Place]:
    """Projections of q, k and v apart, offset network, position term."""
    yield from joined([same(m.qkv, f"proj_{name}", "qkv", pointwise=True) for name in "qkv"])
    yield from same(m.proj, "proj_out", "proj", pointwise=True)
    for official, ours in {"conv_offset.0": "conv", "conv_offset.1.norm": "norm", "conv_offset.3": "point"}.items():
        if m.offset is not None:
            yield from same(m.offset.get_submodule(ours), official, f"offset.{ours}")
        else:
            # pooled keys have no offsets; the official code makes the network and never reads its output
            yield from (Place((f"{official}.{kind}",), None) for kind in ("weight", "bias"))
    if isinstance(m.position, nn.Parameter):
        yield Place(("rpe_table",), "position")
    else:
        yield from same(m.position, "rpe_table", "position")


_DEFORMABLE, _WINDOWS = MixerClass(_build_deformable, _deformable_places), MixerClass(_build_windows, _window_places)
MIXERS = {
    "dat.DAttentionBaseline": _DEFORMABLE,
    "dat_v1.DAttentionBaseline": _DEFORMABLE,
    "dat_v1.LocalAttention": _WINDOWS,
    "dat_v1.ShiftWindowAttention": _WINDOWS,
}


def _build_model(read: Reader) -> tuple[Layout, Stages]:
    depths, dims, heads = read["depths"], read["dims"], read["heads"]
    per_stage = [False] * len(depths)
    read.only("dim_stem", dims[0])
    for name in ("use_conv_patches", "use_dwc_mlps", "use_conv_mlps"):
        read.only(name, False, per_stage)
    read.only("fixed_pes", per_stage)
    read.ignore("sr_ratios", "ns_per_pts")  # accepted by the published code and never used
    layout = layer_norm_layout(
        read,
        depths,
        dims,
        heads,
        mlp_ratio=read("expansion", 4),
        stem_px=read("patch_size", 4),
        merging="conv2_norm",
        merging_bias=False,
    )
    windows, groups, strides, maps = read["window_sizes"], read["groups"], read["strides"], layout.own_maps
    factors, has_position = read["offset_range_factor"], read["use_pes"]
    dwc, no_offsets = read("dwc_pes", per_stage), read("no_offs", per_stage)

    def mixer(stage: int, kind: str) -> Mixer:
        if kind == "D":
            position = "none" if not has_position[stage] else "dwc" if dwc[stage] else "rpb"
            fields = {"groups": groups[stage], "stride": strides[stage], "map_size": maps[stage]}
            config = _deformable(True, factors[stage], no_offsets[stage], position, kernel=KERNELS[stage], **fields)
            return Mixer(DAT, config, heads[stage])
        if kind not in ("L", "S"):
            raise ValueError(f"stage_spec: {kind!r} has no counterpart; known: L, S, D")
        shift = -(-windows[stage] // 2) if kind == "S" else 0
        return Mixer(Swin, _windows(windows[stage], shift), heads[stage])

    return layout, [[mixer(stage, kind) for kind in kinds] for stage, kinds in enumerate(read["stage_spec"])]


def _model_places(model: Pyramid) -> Iterator[Place]:
    def downsample(stage: int) -> tuple[str, str]:
        theirs = f"down_projs.{stage - 1}" if stage else "patch_proj"
        return f"{theirs}.0", f"{theirs}.1.norm"

    yield from downsample_places(model, downsample)
    for stage, index, block, ours, size in blocks(model):
        theirs = f"stages.{stage}."
        for number, norm in enumerate((block.norm1, block.norm2)):
            yield from same(norm, f"{theirs}layer_norms.{2 * index + number}.norm", f"{ours}norm{number + 1}")
        for number, layer in ((1, 0), (2, 2)):
            yield from same(block.mlp[layer], f"{theirs}mlps.{index}.chunk.linear{number}", f"{ours}mlp.{layer}")
        mixer = _WINDOWS if isinstance(block.attn, Swin) else _DEFORMABLE
        places = mixer.places(block.attn, Official("models.DAT_v1", size))
        yield from under(places, f"{theirs}attns.{index}.", f"{ours}attn.")
    yield from end_places(model, "cls_norm.norm", "cls_head")


MODELS = {"models.DAT_v1": ModelClass(_build_model, _model_places)}
