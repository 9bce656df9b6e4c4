"""MaxViT's block and grid attention as timm has it, and the model of BiFormer's ablation around it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from attention_zoo.hosts.pyramid import Mixer, Stages
from attention_zoo.layouts import Layout
from attention_zoo.mechanisms.maxvit import MaxViT, MaxViTConfig
from attention_zoo.published.biformer import model_places, stl_layout
from attention_zoo.published.host import pair
from attention_zoo.published.places import MixerClass, ModelClass, Official, Place, same
from attention_zoo.published.reader import Reader, Size


def _build_partition(read: Reader) -> tuple[MaxViT, Official]:
    kind = read("partition_type", "block")
    window, grid = read("window_size"), read("grid_size")
    # without a grid of its own the window's size is taken
    sides = window if kind == "block" else grid or window
    config = MaxViTConfig(window=pair(sides), kind=kind, padding="official" if read("auto_pad", False) else "error")
    read.only("attn_bias", True)
    dim, head_dim = read["dim"], read("dim_head", 32)
    tf_table = read.only("rel_pos_type", "bias", "bias_tf") == "bias_tf"
    about = Official(read.official, heads_first=read("head_first", True), tf_table=tf_table)
    return MaxViT(dim, dim // head_dim, config), about


def _partition_places(m: MaxViT, about: Official, *, pointwise: bool) -> Iterator[Place]:
    """Projections and biases, in timm's two orders of heads and two kinds of tables."""
    rows, cols = m.config.sides
    for place in same(m.qkv, "attn.qkv", "qkv", pointwise=pointwise):
        yield _heads_last(place, m.num_heads) if about.heads_first else place
    yield from same(m.proj, "attn.proj", "proj", pointwise=pointwise)

    def to_ours(tensors: list[Tensor]) -> Tensor:
        return tensors[0].flip(1, 2).permute(1, 2, 0).flatten(0, 1)

    def to_official(table: Tensor) -> list[Tensor]:
        sides: Tensor = table.unflatten(0, (2 * rows - 1, 2 * cols - 1))
        return [sides.permute(2, 0, 1).flip(1, 2)]

    names = ("attn.rel_pos.relative_position_bias_table",), "bias_table"
    # TensorFlow's table has an axis each for rows and columns, and counts offsets from query to key
    yield Place(*names, to_ours, to_official) if about.tf_table else Place(*names)


def _heads_last(place: Place, heads: int) -> Place:
    """Reorder rows from (heads, 3, D) to (3, heads, D)."""

    def swap(t: Tensor, sizes: tuple[int, int]) -> Tensor:
        split: Tensor = t.unflatten(0, (*sizes, -1))
        return split.transpose(0, 1).flatten(0, 2)

    return replace(
        place,
        to_ours=lambda tensors: swap(place.to_ours(tensors), (heads, 3)),
        to_official=lambda t: place.to_official(swap(t, (3, heads))),
    )


MIXERS = {
    "maxvit.PartitionAttentionCl": MixerClass(_build_partition, partial(_partition_places, pointwise=False)),
    "maxvit.PartitionAttention2d": MixerClass(_build_partition, partial(_partition_places, pointwise=True)),
}


def _build_stl(read: Reader) -> tuple[Layout, Stages]:
    read.ignore("head_dim", "mlp_ratios")  # always 32 and 4, whatever they say
    layout = stl_layout(read, "layer", "LayerNorm2d", head_dim=32, mlp_ratio=4, norm_eps=1e-6, block_norm_eps=1e-5)
    fields: Any = {"window": read("grid_window_size", 7), "padding": "official" if read("auto_pad", False) else "error"}
    turns = [Mixer(MaxViT, MaxViTConfig(kind="block", **fields)), Mixer(MaxViT, MaxViTConfig(kind="grid", **fields))]
    return layout, [[turns[block % 2] for block in range(depth)] for depth in layout.depths]


def _mixer_places(m: MaxViT, size: Size) -> Iterator[Place]:
    return _partition_places(m, Official("maxvit.PartitionAttention2d", tf_table=True), pointwise=True)


MODELS = {
    "models.MaxViTSTL": ModelClass(
        _build_stl, partial(model_places, mixer=_mixer_places, mlp=("mlp.fc1", "mlp.fc2"), pointwise=True)
    )
}
