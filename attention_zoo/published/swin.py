"""Swin's code: window attention alone, as a block has it, and the model."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.swin import Swin, SwinConfig
from attention_zoo.partitioned import region_offsets
from attention_zoo.published.host import host_places, layer_norm_layout, pair, qkv_fields
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, projections, under
from attention_zoo.published.reader import Reader, Size
from attention_zoo.regions import Partition


def _build_window(read: Reader) -> tuple[Swin, Official]:
    config = SwinConfig(window=pair(read("window_size", 7)), padding="official", **qkv_fields(read))
    return Swin(read["dim"], read["num_heads"], config), Official(read.official)


def _build_block(read: Reader) -> tuple[Swin, Official]:
    window, shift = read("window_size", 7), read("shift_size", 0)
    if min(read.size) <= window:
        # the code clamps both sides by the shorter one, and does not shift then
        window, shift = min(read.size), 0
    config = SwinConfig(window=window, shift=shift, padding="official", **qkv_fields(read))
    return Swin(read["dim"], read["num_heads"], config), Official(read.official, read.size)


def window_places(m: Swin, about: Official, qkv: str = "qkv", proj: str = "proj") -> Iterator[Place]:
    """Projections, table of biases and its index."""
    yield from projections(m, about, qkv, proj)
    yield Place(("relative_position_bias_table",), "bias_table")
    yield Place(("relative_position_index",), None, derived=lambda: _position_index(*m.window))


def _position_index(rows: int, cols: int) -> Tensor:
    """Row of the table of biases for each pair of a window, as Swin's code stores it: (T, T)."""
    dy, dx = region_offsets(Partition.of_size(rows, cols, rows, cols), torch.device("cpu"))
    return (dy + rows - 1) * (2 * cols - 1) + dx + cols - 1


def shift_mask(m: Swin, about: Official) -> Iterator[Place]:
    """-100 between tokens that the roll brought together, for each window: (R, T, T)."""
    if not m.shift:
        return
    if about.size is None:
        raise ValueError(f"the mask of shifted windows of {about.name} depends on the map: give its size")
    sides = m.partition(*about.size).sides(torch.device("cpu"))
    if sides is None:
        return  # clamped to one window, which is not shifted

    def make() -> Tensor:
        apart = sides[:, :, None] != sides[:, None, :]
        return torch.zeros(apart.shape).masked_fill(apart, -100.0)

    yield Place(("attn_mask",), None, derived=make)


def _block_places(m: Swin, about: Official) -> Iterator[Place]:
    yield from under(window_places(m, about), "attn.", "")
    yield from shift_mask(m, about)


MIXERS = {
    "swin.WindowAttention": MixerClass(_build_window, window_places),
    "swin.SwinTransformerBlock.attn": MixerClass(_build_block, _block_places),
}


def _build_model(read: Reader) -> tuple[Layout, Stages]:
    depths, heads = read["depths"], read["num_heads"]
    read.only("ape", False)
    read.only("patch_norm", True)
    layout = layer_norm_layout(
        read,
        depths,
        read("embed_dim", 96),
        heads,
        mlp_ratio=read("mlp_ratio", 4.0),
        stem_px=read("patch_size", 4),
        merging="concat_norm_linear",
        merging_bias=False,
        window=read("window_size", 7),
    )
    fields = {**qkv_fields(read), "padding": "official"}
    stages: Stages = []
    for stage, (height, width) in enumerate(layout.own_maps):
        # the code clamps both sides by the shorter one, and does not shift then
        window = min(layout.window, height, width)
        is_whole = min(height, width) <= layout.window
        shifts = [0 if is_whole or block % 2 == 0 else window // 2 for block in range(depths[stage])]
        stages.append([Mixer(Swin, SwinConfig(window=window, shift=shift, **fields), heads[stage]) for shift in shifts])
    return layout, stages


def _model_places(model: Pyramid) -> Iterator[Place]:
    def downsample(stage: int) -> tuple[str, str]:
        theirs = f"layers.{stage - 1}.downsample"
        return (f"{theirs}.reduction", f"{theirs}.norm") if stage else ("patch_embed.proj", "patch_embed.norm")

    def mixer(m: Swin, size: Size) -> Iterator[Place]:
        return _block_places(m, Official("swin.SwinTransformerBlock.attn", size))

    for place in host_places(model, downsample, lambda stage, index: f"layers.{stage}.blocks.{index}.", mixer):
        # four neighbours side by side: columns first there, all of a channel together here
        is_merging = ".downsample." in place.official[0]
        yield replace(place, to_ours=_neighbours_last, to_official=_neighbours_first) if is_merging else place


def _neighbours_last(tensors: list[Tensor]) -> Tensor:
    """Columns from (x, y, C), as Swin concatenates, to (C, y, x)."""
    split: Tensor = tensors[0].unflatten(-1, (2, 2, -1))
    return split.transpose(-1, -3).flatten(-3)


def _neighbours_first(t: Tensor) -> list[Tensor]:
    split: Tensor = t.unflatten(-1, (-1, 2, 2))
    return [split.transpose(-1, -3).flatten(-3)]


MODELS = {"models.SwinTransformer": ModelClass(_build_model, _model_places)}
