"""CrossFormer's code: attention of its block, and the model."""

from collections.abc import Iterator
from typing import Any

from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.crossformer import CrossFormer, CrossFormerConfig
from attention_zoo.published.host import host_places, layer_norm_layout, per_stage, qkv_fields
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, projections, same, under
from attention_zoo.published.reader import Reader, Size


def _groups(group: int, interval: int, is_long: bool, size: Size, fields: dict[str, Any]) -> CrossFormerConfig:
    """Groups on a map of this size, and which of the two turns it is."""
    if min(size) <= group:
        # the code clamps both sides by the shorter one, and has no intervals then
        group, is_long = min(size), False
    kind: Any = "long" if is_long else "short"
    return CrossFormerConfig(group=group, interval=interval, kind=kind, padding="official", **fields)


def _fields(read: Reader) -> dict[str, Any]:
    return {**qkv_fields(read), "pad_side": "center" if read("pad_type", 0) else "end"}


def _build_block(read: Reader) -> tuple[CrossFormer, Official]:
    read.ignore("use_extra_conv")  # it follows the attention, which is all that a case of a block holds
    is_long = bool(read("lsda_flag", 0))
    config = _groups(read("group_size", 7), read("interval", 8), is_long, read.size, _fields(read))
    return CrossFormer(read["dim"], read["num_heads"], config), Official(read.official)


def _block_places(m: CrossFormer, about: Official) -> Iterator[Place]:
    """Projections, and the network of the biases."""
    yield from under(projections(m, about, "qkv", "proj"), "attn.", "")
    yield from same(m.pos, "attn.pos", "pos")


MIXERS = {"crossformer.CrossFormerBlock.attn": MixerClass(_build_block, _block_places)}


def _build_model(read: Reader) -> tuple[Layout, Stages]:
    depths, heads = read["depths"], read["num_heads"]
    patches, merges = read("patch_size", [4]), read("merge_size", [[2]])
    groups, intervals = read("group_size", [7] * 4), read("crs_interval", [8, 4, 2, 1])
    for name, only in (("ape", False), ("patch_norm", True), ("group_type", "constant")):
        read.only(name, only)
    for name in ("use_cpe", "no_mask", "adaptive_interval", "use_acl", "use_extra_conv"):
        read.only(name, False)
    layout = layer_norm_layout(
        read,
        depths,
        read("embed_dim", 96),
        heads,
        mlp_ratio=per_stage(read("mlp_ratio", [4.0] * len(depths))),
        stem="multiscale",
        stem_px=patches[0],
        stem_kernels=tuple(patches),
        merging="norm_multiscale",
        merging_kernels=tuple(tuple(merge) for merge in merges),
    )
    fields, maps = _fields(read), layout.maps(*read.size)
    stages: Stages = []
    for stage, depth in enumerate(depths):
        turns = [_groups(groups[stage], intervals[stage], is_long, maps[stage], fields) for is_long in (False, True)]
        stages.append([Mixer(CrossFormer, turns[block % 2], heads[stage]) for block in range(depth)])
    return layout, stages


def _model_places(model: Pyramid) -> Iterator[Place]:
    def downsample(stage: int) -> tuple[str, str]:
        theirs, scales = (f"layers.{stage - 1}.downsample", "reductions") if stage else ("patch_embed", "projs")
        return f"{theirs}.{scales}", f"{theirs}.norm"

    def mixer(m: CrossFormer, size: Size) -> Iterator[Place]:
        return _block_places(m, Official("crossformer.CrossFormerBlock.attn"))

    blocks = "layers.{}.blocks.{}.".format
    return host_places(model, downsample, blocks, mixer, reduce="reduce.scales")


MODELS = {"models.CrossFormer": ModelClass(_build_model, _model_places)}
