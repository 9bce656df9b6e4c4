"""PVT's code, and Twins', whose global attention is PVT's: attention over a reduced map, and windows without a bias."""

from collections.abc import Iterator
from typing import Any

from attention_zoo.mechanisms.pvt import PVT, PVTConfig
from attention_zoo.mechanisms.sep import Sep, SepConfig
from attention_zoo.published.places import MixerClass, Official, Place, joined, projections, same
from attention_zoo.published.reader import Reader


def _shared(read: Reader) -> tuple[int, int, dict[str, Any]]:
    """Channels, heads, and fields of every class; a `qk_scale` of 0 counts as none."""
    fields = {"qkv_bias": read("qkv_bias", False), "qk_scale": read("qk_scale") or None}
    return read["dim"], read("num_heads", 8), fields


def _build_reduced(read: Reader) -> tuple[PVT, Official]:
    dim, heads, fields = _shared(read)
    reduction = read("sr_ratio", 1)
    # pools to 7 x 7 whatever the ratio
    is_linear = read("linear", False) if read.official == "pvt.v2" else False
    fields |= {"linear": True} if is_linear else {"reduction": reduction, "padding": "official"}
    return PVT(dim, heads, PVTConfig(**fields)), Official(read.official)


def _build_global(read: Reader) -> tuple[Sep, Official]:
    dim, heads, fields = _shared(read)
    config = SepConfig(kind="global", reduction=read("sr_ratio", 1), padding="official", **fields)
    return Sep(dim, heads, config), Official(read.official)


def _reduced_places(m: PVT | Sep, about: Official) -> Iterator[Place]:
    """Projections of q, and of k and v; the reduction and its norm."""
    yield from joined([same(m.qkv, name, "qkv") for name in ("q", "kv")], rows=(m.dim, 2 * m.dim))
    yield from same(m.proj, "proj", "proj")
    if m.pool is not None:
        yield from same(m.pool.sr, "sr", "pool.sr")
        yield from same(m.pool.norm, "norm", "pool.norm")


def _build_local(read: Reader) -> tuple[Sep, Official]:
    dim, heads, fields = _shared(read)
    window = read("ws", 1)
    if window == 1:
        raise ValueError(f"{read.official} refuses ws=1: its blocks have global attention then")
    # the code for classification refuses maps that do not divide
    fields |= {"padding": "error"} if read.official == "sep.lsa" else {"padding": "official"}
    variant: Any = "segmentation" if read.official == "sep.seg_lsa_mask" else "detection"
    config = SepConfig(kind="local", window=window, variant=variant, **fields)
    return Sep(dim, heads, config), Official(read.official)


def _local_places(m: Sep, about: Official) -> Iterator[Place]:
    yield from projections(m, about, "qkv", "proj")


_REDUCED, _LOCAL = MixerClass(_build_reduced, _reduced_places), MixerClass(_build_local, _local_places)
MIXERS = {
    "pvt.v1": _REDUCED,
    "pvt.v2": _REDUCED,
    "sep.gsa": MixerClass(_build_global, _reduced_places),
    "sep.lsa": _LOCAL,
    "sep.det_lsa": _LOCAL,
    "sep.seg_lsa_mask": _LOCAL,
}
