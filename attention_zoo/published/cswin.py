"""CSWin's code: attention of its block, of its block for segmentation, and the model."""

from collections.abc import Iterator

from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.cswin import CSWin, CSWinConfig
from attention_zoo.published.host import host_places, layer_norm_layout, qkv_fields
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, joined, same
from attention_zoo.published.reader import Reader, Size


def _build_block(read: Reader) -> tuple[CSWin, Official]:
    segmentation = read.official == "cswin.seg.CSWinBlock.attn"
    split, is_last, heads = read("split_size", 7), read("last_stage", False), read["num_heads"]
    is_one = is_last or (not segmentation and split == read.size[0])
    config = CSWinConfig(
        stripe=max(read.size) if is_last else split,
        clip_stripe=is_last,
        # the segmentation code ignores the argument
        qkv_bias=read("qkv_bias", segmentation) or segmentation,
        qk_scale=read("qk_scale"),
        padding="official" if segmentation else "error",
    )
    # two branches leave an odd head out
    module = CSWin(read["dim"], heads if is_one else heads // 2 * 2, config)
    return module, Official(read.official, branches=1 if is_one else 2)


def _block_places(m: CSWin, about: Official) -> Iterator[Place]:
    """Projections; LePE is split between the branches."""
    yield from same(m.qkv, "qkv", "qkv")
    yield from same(m.proj, "proj", "proj")
    yield from joined([same(m.lepe, f"attns.{branch}.get_v", "lepe") for branch in range(about.branches)])


_AS_BLOCK = MixerClass(_build_block, _block_places)
MIXERS = {"cswin.CSWinBlock.attn": _AS_BLOCK, "cswin.seg.CSWinBlock.attn": _AS_BLOCK}


def _build_model(read: Reader) -> tuple[Layout, Stages]:
    depths, heads, splits = read["depth"], read["num_heads"], read["split_size"]
    read.ignore("patch_size")  # the stem's stride is 4 whatever it says
    layout = layer_norm_layout(
        read,
        depths,
        read("embed_dim", 64),
        heads,
        mlp_ratio=read("mlp_ratio", 4.0),
        stem="conv7",
        merging="conv3_norm",
        stripes=tuple(splits),
    )
    fields, maps = {**qkv_fields(read), "padding": "error"}, layout.own_maps
    stages: Stages = []
    for stage, depth in enumerate(depths):
        # the last stage has one branch over the whole map
        is_last = stage == len(depths) - 1
        config = CSWinConfig(stripe=max(maps[stage]) if is_last else splits[stage], clip_stripe=is_last, **fields)
        # two branches leave an odd head out
        is_one = is_last or splits[stage] == maps[stage][0]
        stages.append([Mixer(CSWin, config, heads[stage] if is_one else heads[stage] // 2 * 2)] * depth)
    return layout, stages


def _model_places(model: Pyramid) -> Iterator[Place]:
    def downsample(stage: int) -> tuple[str, str]:
        return (f"merge{stage}.conv", f"merge{stage}.norm") if stage else ("stage1_conv_embed.0", "stage1_conv_embed.2")

    def mixer(m: CSWin, size: Size) -> Iterator[Place]:
        is_one = m.config.stripe is not None and m.config.stripe >= size[0]
        return _block_places(m, Official("cswin.CSWinBlock.attn", branches=1 if is_one else 2))

    return host_places(model, downsample, lambda stage, index: f"stage{stage + 1}.{index}.", mixer)


MODELS = {"models.CSWinTransformer": ModelClass(_build_model, _model_places)}
