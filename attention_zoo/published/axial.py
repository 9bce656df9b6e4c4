"""Axial attention of lucidrains, a layer for each axis, and of Axial-DeepLab, one axis in a class."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attention_zoo.mechanisms.axial import Axial, AxialConfig
from attention_zoo.mechanisms.axial_deeplab import AxialDeepLab, AxialDeepLabConfig
from attention_zoo.published.places import MixerClass, Official, Place, joined, same
from attention_zoo.published.reader import NotAMixer, Reader


def _build(read: Reader) -> tuple[Axial, Official]:
    read.only("num_dimensions", 2)
    read.ignore("dim_index")  # where the channels are, which the layout of a case says
    layers: Any = "sum" if read("sum_axial_out", True) else "sequence"
    config = AxialConfig(layers=layers, head_dim=read("dim_heads"), qkv_bias=False)
    return Axial(read["dim"], read("heads", 8), config), Official(read.official)


def _places(m: Axial, about: Official) -> Iterator[Place]:
    layers = (m.qkv, m.proj, ""), (m.qkv_rows, m.proj_rows, "_rows")
    for index, (qkv, proj, end) in enumerate(layers):
        theirs = f"axial_attentions.{index}.fn."
        parts = [same(qkv, f"{theirs}{name}", f"qkv{end}") for name in ("to_q", "to_kv")]
        yield from joined(parts, rows=(m.qk_dim, 2 * m.qk_dim))
        yield from same(proj, f"{theirs}to_out", f"proj{end}")


def _build_deeplab(read: Reader) -> tuple[AxialDeepLab, Official]:
    dim, width_out, stride = read["in_planes"], read["out_planes"], read("stride", 1)
    if width_out != dim or stride != 1:
        raise NotAMixer(
            f"{read.official} with in_planes={dim}, out_planes={width_out}, stride={stride} changes the channels or "
            f"the map, and a token mixer keeps both"
        )
    read.ignore("bias", "kernel_size")  # never used, and the length of the axis
    axis: Any = "width" if read("width", False) else "height"
    config = AxialDeepLabConfig(axes=axis, map_size=read.size)
    return AxialDeepLab(dim, read("groups", 8), config), Official(read.official, read.size)


def _deeplab_places(m: AxialDeepLab, about: Official) -> Iterator[Place]:
    """The projection and its norm have q, k and v of a head side by side, and so here, head after head."""
    order = _order(m)
    back = order.argsort()

    def to_ours(tensors: list[Tensor]) -> Tensor:
        return tensors[0][order]

    def to_official(tensor: Tensor) -> list[Tensor]:
        return [tensor[back]]

    yield Place(("qkv_transform.weight",), "qkv.weight", lambda t: t[0][order, :, 0], lambda t: [t[back, :, None]])
    for place in same(m.first.bn_qkv, "bn_qkv", "first.bn_qkv"):
        counts_batches = place.official[0].endswith("num_batches_tracked")
        yield place if counts_batches else replace(place, to_ours=to_ours, to_official=to_official)
    yield from same(m.first.bn_similarity, "bn_similarity", "first.bn_similarity")
    yield from same(m.first.bn_output, "bn_output", "first.bn_output")
    yield Place(("relative",), "first.relative")
    yield Place(("flatten_index",), None, derived=lambda: _index(m.first.length))


def _order(m: AxialDeepLab) -> Tensor:
    """Official channel of each of ours: q, k and v of all heads from q, k, v head by head."""
    half = m.dim // m.num_heads // 2
    by_head = torch.arange(2 * m.dim).unflatten(0, (m.num_heads, -1))
    return torch.cat([part.flatten() for part in by_head.split((half, half, 2 * half), dim=1)])


def _index(length: int) -> Tensor:
    """Column of the table of offsets for each pair of a line, as the code stores it: (L L,)."""
    place = torch.arange(length)
    return (place[:, None] - place + length - 1).flatten()


MIXERS = {
    "axial.AxialAttention": MixerClass(_build, _places),
    "axial.deeplab.AxialAttention": MixerClass(_build_deeplab, _deeplab_places),
}
