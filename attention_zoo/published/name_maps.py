"""Names and shapes of the published codes' weights, and how those of a token mixer become ours and back.

Each official class has a list of places: an official tensor, ours, and how one becomes the other. Tensors that follow
from the configuration (index tables, masks of the shift) are made anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.mechanisms.cswin import CSWin
from attention_zoo.mechanisms.dat import DAT
from attention_zoo.mechanisms.maxvit import MaxViT
from attention_zoo.mechanisms.swin import Swin
from attention_zoo.partitioned import region_offsets
from attention_zoo.regions import Partition


@dataclass(frozen=True)
class Official:
    """An official class by its name, `family.Class`, and what decides how it stores its weights.

    Height and width of the map, where it stores what follows from them; of MaxViT's, the order of q, k, v and heads,
    and the kind of its bias table; of CSWin's, the number of branches.
    """

    name: str
    size: tuple[int, int] | None = None
    heads_first: bool = False
    tf_table: bool = False
    branches: int = 2


@dataclass(frozen=True)
class Place:
    """Official tensors and the one of ours that holds them; without ours, `derived` makes them, or they are unused."""

    official: tuple[str, ...]
    ours: str | None
    to_ours: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]
    to_official: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    derived: Callable[[], Tensor] | None = None


Mixers = Callable[[Attention, str, str, Official], Iterator[Place]]
"""Places of a mixer: of the module under their prefix and ours, and what is known of the official one."""


def same(module: nn.Module | None, official: str, ours: str, *, pointwise: bool = False) -> Iterator[Place]:
    """All tensors of a module under another prefix; `pointwise`: matrices of ours are 1 x 1 convolutions of theirs."""
    for name, tensor in () if module is None else module.state_dict().items():
        names = (f"{official}.{name}",), f"{ours}.{name}"
        if pointwise and tensor.dim() == 2:
            yield Place(*names, lambda parts: parts[0].flatten(1), lambda t: [t[:, :, None, None]])
        else:
            yield Place(*names)


def _joined(module: nn.Module, official: tuple[str, ...], ours: str, *, pointwise: bool = False) -> Iterator[Place]:
    """Several official modules, the rows of which are stacked in one of ours."""
    for name, tensor in module.state_dict().items():
        as_image = pointwise and tensor.dim() == 2

        def to_ours(parts: list[Tensor], as_image: bool = as_image) -> Tensor:
            return torch.cat([part.flatten(1) for part in parts] if as_image else parts)

        def to_official(t: Tensor, as_image: bool = as_image) -> list[Tensor]:
            return [part[:, :, None, None] if as_image else part for part in t.chunk(len(official))]

        yield Place(tuple(f"{part}.{name}" for part in official), f"{ours}.{name}", to_ours, to_official)


def _plain(
    m: Attention, theirs: str, ours: str, about: Official, qkv: str, proj: str, *, pointwise: bool = False
) -> Iterator[Place]:
    """Projections and LePE, as most have them."""
    yield from same(m.qkv, f"{theirs}{qkv}", f"{ours}qkv", pointwise=pointwise)
    yield from same(m.proj, f"{theirs}{proj}", f"{ours}proj", pointwise=pointwise)
    yield from same(m.lepe, f"{theirs}lepe", f"{ours}lepe")


def _bra(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    yield from _plain(m, theirs, ours, about, "qkv.qkv", "wo")
    yield from same(dict(m.named_children()).get("router"), f"{theirs}router.emb", f"{ours}router")


def _windows(m: Attention, theirs: str, ours: str, about: Official, qkv: str, proj: str) -> Iterator[Place]:
    assert isinstance(m, Swin)
    yield from _plain(m, theirs, ours, about, qkv, proj)
    yield Place((f"{theirs}relative_position_bias_table",), f"{ours}bias_table")
    yield Place((f"{theirs}relative_position_index",), None, derived=lambda: _position_index(*m.window))


def swin_block(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    """Attention of Swin's block, with the mask of its shift."""
    yield from _windows(m, f"{theirs}attn.", ours, about, "qkv", "proj")
    yield from _shift_mask(m, f"{theirs}attn_mask", about)


def dat_windows(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    """Local and shifted windows of DAT's 2022 code."""
    yield from _windows(m, theirs, ours, about, "proj_qkv", "proj_out")
    yield from _shift_mask(m, f"{theirs}attn_mask", about)


def _position_index(rows: int, cols: int) -> Tensor:
    """Row of the bias table for each pair of a window, as Swin's code stores it: (T, T)."""
    dy, dx = region_offsets(Partition.of_size(rows, cols, rows, cols), torch.device("cpu"))
    return (dy + rows - 1) * (2 * cols - 1) + dx + cols - 1


def _shift_mask(m: Attention, name: str, about: Official) -> Iterator[Place]:
    """-100 between tokens that the roll brought together, for each window: (R, T, T)."""
    assert isinstance(m, Swin)
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

    yield Place((name,), None, derived=make)


def cswin(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    """Attention of CSWin's block; LePE is split between the branches."""
    yield from same(m.qkv, f"{theirs}qkv", f"{ours}qkv")
    yield from same(m.proj, f"{theirs}proj", f"{ours}proj")
    if m.lepe is not None:
        assert isinstance(m, CSWin)
        branches = tuple(f"{theirs}attns.{branch}.get_v" for branch in range(about.branches))
        yield from _joined(m.lepe, branches, f"{ours}lepe")


def crossformer(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    """Attention of CrossFormer's block, with the network of its bias."""
    yield from _plain(m, f"{theirs}attn.", ours, about, "qkv", "proj")
    yield from same(m.get_submodule("pos"), f"{theirs}attn.pos", f"{ours}pos")


def maxvit(m: Attention, theirs: str, ours: str, about: Official, *, pointwise: bool) -> Iterator[Place]:
    """Attention of MaxViT's partitions, in timm's two orders of heads and two kinds of bias table."""
    assert isinstance(m, MaxViT)
    rows, cols = m.config.sides
    for place in same(m.qkv, f"{theirs}attn.qkv", f"{ours}qkv", pointwise=pointwise):
        yield _heads_last(place, m.num_heads) if about.heads_first else place
    yield from same(m.proj, f"{theirs}attn.proj", f"{ours}proj", pointwise=pointwise)

    def to_ours(parts: list[Tensor]) -> Tensor:
        return parts[0].flip(1, 2).permute(1, 2, 0).flatten(0, 1)

    def to_official(table: Tensor) -> list[Tensor]:
        sides: Tensor = table.unflatten(0, (2 * rows - 1, 2 * cols - 1))
        return [sides.permute(2, 0, 1).flip(1, 2)]

    names = (f"{theirs}attn.rel_pos.relative_position_bias_table",), f"{ours}bias_table"
    # TensorFlow's table has an axis each for rows and columns, and counts offsets from query to key
    yield Place(*names, to_ours, to_official) if about.tf_table else Place(*names)


def _heads_last(place: Place, heads: int) -> Place:
    """Reorder rows from (heads, 3, D) to (3, heads, D)."""

    def swap(t: Tensor, sizes: tuple[int, int]) -> Tensor:
        blocks: Tensor = t.unflatten(0, (*sizes, -1))
        return blocks.transpose(0, 1).flatten(0, 2)

    return replace(
        place,
        to_ours=lambda parts: swap(place.to_ours(parts), (heads, 3)),
        to_official=lambda t: place.to_official(swap(t, (3, heads))),
    )


def dat(m: Attention, theirs: str, ours: str, about: Official) -> Iterator[Place]:
    """Deformable attention of either year; q, k and v have a projection each."""
    assert isinstance(m, DAT)
    yield from _joined(m.qkv, tuple(f"{theirs}proj_{part}" for part in "qkv"), f"{ours}qkv", pointwise=True)
    yield from same(m.proj, f"{theirs}proj_out", f"{ours}proj", pointwise=True)
    parts = {"conv_offset.0": "conv", "conv_offset.1.norm": "norm", "conv_offset.3": "point"}
    for official, part in parts.items():
        if m.offset is not None:
            yield from same(m.offset.get_submodule(part), f"{theirs}{official}", f"{ours}offset.{part}")
        else:
            # pooled keys have no offsets; the official code makes the network and never reads its output
            yield from (Place((f"{theirs}{official}.{kind}",), None) for kind in ("weight", "bias"))
    if isinstance(m.position, nn.Parameter):
        yield Place((f"{theirs}rpe_table",), f"{ours}position")
    else:
        yield from same(m.position, f"{theirs}rpe_table", f"{ours}position")


def _plainly(qkv: str, proj: str, *, pointwise: bool = False) -> Mixers:
    return partial(_plain, qkv=qkv, proj=proj, pointwise=pointwise)


MIXERS: dict[str, Mixers] = {
    "vanilla.Attention": _plainly("qkv", "proj"),
    "vanilla.AttentionLePE": _plainly("qkv", "proj"),
    "vanilla.nchwAttentionLePE": _plainly("qkv", "proj", pointwise=True),
    "swin.WindowAttention": partial(_windows, qkv="qkv", proj="proj"),
    "swin.SwinTransformerBlock.attn": swin_block,
    "cswin.CSWinBlock.attn": cswin,
    "cswin.seg.CSWinBlock.attn": cswin,
    "crossformer.CrossFormerBlock.attn": crossformer,
    "maxvit.PartitionAttentionCl": partial(maxvit, pointwise=False),
    "maxvit.PartitionAttention2d": partial(maxvit, pointwise=True),
    "dat.DAttentionBaseline": dat,
    "dat_v1.DAttentionBaseline": dat,
    "dat_v1.LocalAttention": dat_windows,
    "dat_v1.ShiftWindowAttention": dat_windows,
    "bra.BiLevelRoutingAttention": _bra,
    "bra.nchwBRA": _plainly("qkv_linear", "output_linear", pointwise=True),
}
