"""NATTEN's code: neighbourhood attention of 0.21, and of 0.14 with a table of biases."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from attention_zoo.mechanisms.sliding import Sliding, SlidingConfig
from attention_zoo.published.host import qkv_fields
from attention_zoo.published.places import MixerClass, Official, Place, projections
from attention_zoo.published.reader import Reader


def _sides(value: int | list[int]) -> int | tuple[int, int]:
    return value if isinstance(value, int) else (value[0], value[1])


def _fields(read: Reader) -> dict[str, Any]:
    fields = qkv_fields(read)
    # a scale of 0 counts as none
    fields["qk_scale"] = fields["qk_scale"] or None
    return fields | {"kernel": _sides(read["kernel_size"]), "dilation": _sides(read("dilation") or 1)}


def _build(read: Reader) -> tuple[Sliding, Official]:
    is_causal = read("is_causal", False)
    down, across = (is_causal, is_causal) if isinstance(is_causal, bool) else is_causal
    causal: Any = ("both" if across else "height") if down else "width" if across else "none"
    stride = _sides(read("stride", 1))
    config = SlidingConfig(stride=stride, causal=causal, bias=False, padding="error", **_fields(read))
    return Sliding(read["embed_dim"], read["num_heads"], config), Official(read.official)


def _build_with_biases(read: Reader) -> tuple[Sliding, Official]:
    config = SlidingConfig(bias=read("bias", True), padding="official", **_fields(read))
    return Sliding(read["dim"], read["num_heads"], config), Official(read.official)


def _places(m: Sliding, about: Official) -> Iterator[Place]:
    """Projections, and the table of biases, which NATTEN reads at key - query and we at query - key."""
    yield from projections(m, about, "qkv", "proj")
    if m.bias_table is not None:
        rows, cols = (2 * side - 1 for side in m.kernel)

        def to_official(table: Tensor) -> list[Tensor]:
            return [table.mT.unflatten(1, (rows, cols)).flip(1, 2)]

        yield Place(("rpb",), "bias_table", lambda tensors: tensors[0].flip(1, 2).flatten(1).mT, to_official)


MIXERS = {
    "sliding.NeighborhoodAttention2D": MixerClass(_build, _places),
    "sliding.rpb.NeighborhoodAttention2D": MixerClass(_build_with_biases, _places),
}
