"""CCNet's code: criss-cross attention, applied once or several times."""

from collections.abc import Iterator

from attention_zoo.mechanisms.crisscross import CrissCross, CrissCrossConfig
from attention_zoo.published.places import MixerClass, Official, Place, joined, same
from attention_zoo.published.reader import Reader


def _build(read: Reader) -> tuple[CrissCross, Official]:
    config = CrissCrossConfig(qk_reduction=8, qk_scale=1.0, residual=True, recurrence=read("recurrence", 1))
    return CrissCross(read["in_dim"], 1, config), Official(read.official)


def _places(m: CrissCross, about: Official) -> Iterator[Place]:
    parts = [same(m.qkv, f"{name}_conv", "qkv", pointwise=True) for name in ("query", "key", "value")]
    yield from joined(parts, rows=(m.qk_dim, m.qk_dim, m.dim))
    yield Place(("gamma",), "gamma")


MIXERS = {"crisscross.CrissCrossAttention": MixerClass(_build, _places)}
