"""What the published models share around their token mixers: a layout with LayerNorm, and the names of weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attention_zoo.hosts.blocks import Block
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.layouts import STL, Layout
from attention_zoo.published.places import Place, same, under
from attention_zoo.published.reader import Reader, Size


def per_stage(ratios: float | list[float]) -> float | tuple[float, ...]:
    """One value for all stages, or one of each."""
    return tuple(ratios) if isinstance(ratios, list) else ratios


def layer_norm_layout(
    read: Reader, depths: list[int], width: int | list[int], heads: list[int], **fields: Any
) -> Layout:
    """Host with LayerNorm throughout, for images of one size; what does not fit a stride is dropped.

    `width` is the channels of each stage, or of the first if each merging doubles them.
    """
    read.only("in_chans", 3)
    read.only("norm_layer", "LayerNorm")
    dims = width if isinstance(width, list) else [width * 2**stage for stage in range(len(depths))]
    height_px, width_px = pair(read("img_size", 224))
    fields |= {"depths": tuple(depths), "dims": tuple(dims), "head_dim": dims[0] // heads[0]}
    fields |= {"rounding": "floor", "norm": "layer", "block_norm_eps": 1e-5}
    return replace(STL, name=read.official, resolution_px=height_px, width_px=width_px, **fields)


def pair(sides: int | list[int]) -> Size:
    """Height and width, which may be given as one number."""
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return height, width


def qkv_fields(read: Reader) -> dict[str, Any]:
    """Read the bias of q, k and v and the factor on the logits."""
    return {"qkv_bias": read("qkv_bias", True), "qk_scale": read("qk_scale")}


def host_places(
    model: Pyramid,
    downsample: Callable[[int], tuple[str, str]],
    block: Callable[[int, int], str],
    mixer: Callable[[Any, Size], Iterator[Place]],
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2"),
    *,
    reduce: str = "reduce",
    pointwise: bool = False,
) -> Iterator[Place]:
    """All weights of a model, by its official names.

    `downsample(stage)` names the layer that makes the map smaller and its norm, `block(stage, index)` is the prefix of
    a block and `mlp` its two layers; `mixer(attention, map size)` names what its attention holds, within the block.
    """
    yield from downsample_places(model, downsample, reduce)
    for stage, index, of_stage, ours, size in blocks(model):
        theirs = block(stage, index)
        yield from under(_block_places(of_stage, mlp, pointwise), theirs, ours)
        yield from under(mixer(of_stage.attn, size), theirs, f"{ours}attn.")
    yield from end_places(model)


def downsample_places(
    model: Pyramid, names: Callable[[int], tuple[str, str]], reduce: str = "reduce"
) -> Iterator[Place]:
    """The step before each stage: `reduce`, the zoo's name of what makes the map smaller, and its norm."""
    for stage, downsample in enumerate(model.downsamples):
        for step, official in zip((reduce, "norm"), names(stage), strict=True):
            yield from same(downsample.get_submodule(step), official, f"downsamples.{stage}.{step}")


def blocks(model: Pyramid) -> Iterator[tuple[int, int, Block, str, Size]]:
    """Stage and index of each block, the block, its prefix in the zoo's state dict, and the size of its map."""
    maps = model.layout.own_maps
    for stage, of_stage in enumerate(model.blocks()):
        for index, block in enumerate(of_stage):
            yield stage, index, block, f"stages.{stage}.{index}.", maps[stage]


def _block_places(block: Block, mlp: tuple[str, str], pointwise: bool) -> Iterator[Place]:
    for name in ("norm1", "norm2", "pos_embed"):
        yield from same(getattr(block, name), name, name)
    for official, index in zip(mlp, (0, 2), strict=True):
        yield from same(block.mlp[index], official, f"mlp.{index}", pointwise=pointwise)
    if block.is_scaled:
        yield from (Place((name,), name) for name in ("gamma1", "gamma2"))


def end_places(model: Pyramid, norm: str = "norm", head: str = "head") -> Iterator[Place]:
    """The last norm and the classifier."""
    yield from same(model.norm, norm, "norm")
    yield from same(model.head, head, "head")
