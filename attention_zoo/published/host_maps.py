"""Where the weights of the published models lie in the shared pyramid."""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from attention_zoo.hosts.blocks import Block
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.mechanisms.maxvit import MaxViT
from attention_zoo.mechanisms.swin import Swin
from attention_zoo.published.name_maps import (
    MIXERS,
    Official,
    Place,
    crossformer,
    cswin,
    dat,
    dat_windows,
    maxvit,
    same,
    swin_block,
)


def _block(block: Block, theirs: str, ours: str, mlp: tuple[str, str], *, pointwise: bool = False) -> Iterator[Place]:
    """Norms, MLP and what surrounds them; the mixer apart."""
    for name in ("norm1", "norm2"):
        yield from same(block.get_submodule(name), f"{theirs}{name}", f"{ours}{name}")
    for official, index in zip(mlp, (0, 2), strict=True):
        yield from same(block.mlp[index], f"{theirs}{official}", f"{ours}mlp.{index}", pointwise=pointwise)
    yield from same(block.pos_embed, f"{theirs}pos_embed", f"{ours}pos_embed")
    if block.is_scaled:
        yield from (Place((f"{theirs}{name}",), f"{ours}{name}") for name in ("gamma1", "gamma2"))


def _blocks(model: Pyramid) -> Iterator[tuple[int, int, Block, str, tuple[int, int]]]:
    """Stage and index of each block, the block, its prefix in our state dict, and its map."""
    maps = model.layout.own_maps
    for stage, blocks in enumerate(model.blocks()):
        for index, block in enumerate(blocks):
            yield stage, index, block, f"stages.{stage}.{index}.", maps[stage]


def _ends(model: Pyramid, norm: str = "norm", head: str = "head") -> Iterator[Place]:
    yield from same(model.norm, norm, "norm")
    yield from same(model.head, head, "head")


def _biformer(
    model: Pyramid, nested: str, mlp: tuple[str, str], steps: str, *, pointwise: bool = False
) -> Iterator[Place]:
    """BiFormer's hosts: `steps` says whether the norm of a merging comes first (n) or its convolution (c)."""
    for stage, downsample in enumerate(model.downsamples):
        theirs, ours = f"downsample_layers.{stage}", f"downsamples.{stage}"
        reduce = downsample.get_submodule("reduce")
        if isinstance(reduce, nn.Sequential):
            yield from same(reduce, theirs, f"{ours}.reduce")
            yield from same(downsample.get_submodule("norm"), f"{theirs}.{len(reduce)}", f"{ours}.norm")
        else:
            first, second = ("reduce", "norm") if stage == 0 or steps == "c" else ("norm", "reduce")
            yield from same(downsample.get_submodule(first), f"{theirs}.0", f"{ours}.{first}")
            yield from same(downsample.get_submodule(second), f"{theirs}.1", f"{ours}.{second}")
    for stage, index, block, ours, size in _blocks(model):
        theirs = f"stages.{stage}.{nested}{index}."
        yield from _block(block, theirs, ours, mlp, pointwise=pointwise)
        if isinstance(block.attn, MaxViT):
            about = Official("maxvit.PartitionAttention2d", size, tf_table=True)
            yield from maxvit(block.attn, theirs, f"{ours}attn.", about, pointwise=True)
            continue
        is_bra = isinstance(block.attn, BRA)
        if pointwise:
            name = "bra.nchwBRA" if is_bra else "vanilla.nchwAttentionLePE"
        else:
            name = "bra.BiLevelRoutingAttention" if is_bra else "vanilla.AttentionLePE"
        yield from MIXERS[name](block.attn, f"{theirs}attn.", f"{ours}attn.", Official(name, size))
    yield from _ends(model)


def _swin(model: Pyramid) -> Iterator[Place]:
    for stage, downsample in enumerate(model.downsamples):
        ours = f"downsamples.{stage}"
        if stage == 0:
            yield from same(downsample.get_submodule("reduce"), "patch_embed.proj", f"{ours}.reduce")
            yield from same(downsample.get_submodule("norm"), "patch_embed.norm", f"{ours}.norm")
            continue
        theirs = f"layers.{stage - 1}.downsample"
        # four neighbours side by side: columns first there, all of a channel together here
        for name in ("norm.weight", "norm.bias", "reduction.weight"):
            target = name.replace("reduction", "reduce")
            yield Place((f"{theirs}.{name}",), f"{ours}.{target}", _neighbours_last, _neighbours_first)
    for stage, index, block, ours, size in _blocks(model):
        theirs = f"layers.{stage}.blocks.{index}."
        yield from _block(block, theirs, ours, ("mlp.fc1", "mlp.fc2"))
        yield from swin_block(block.attn, theirs, f"{ours}attn.", Official("swin.SwinTransformerBlock.attn", size))
    yield from _ends(model)


def _neighbours_last(parts: list[Tensor]) -> Tensor:
    """Columns from (x, y, C), as Swin concatenates, to (C, y, x)."""
    split: Tensor = parts[0].unflatten(-1, (2, 2, -1))
    return split.transpose(-1, -3).flatten(-3)


def _neighbours_first(t: Tensor) -> list[Tensor]:
    split: Tensor = t.unflatten(-1, (-1, 2, 2))
    return [split.transpose(-1, -3).flatten(-3)]


def _cswin_model(model: Pyramid) -> Iterator[Place]:
    for stage, downsample in enumerate(model.downsamples):
        conv, norm = (
            (f"merge{stage}.conv", f"merge{stage}.norm") if stage else ("stage1_conv_embed.0", "stage1_conv_embed.2")
        )
        yield from same(downsample.get_submodule("reduce"), conv, f"downsamples.{stage}.reduce")
        yield from same(downsample.get_submodule("norm"), norm, f"downsamples.{stage}.norm")
    for stage, index, block, ours, size in _blocks(model):
        theirs = f"stage{stage + 1}.{index}."
        yield from _block(block, theirs, ours, ("mlp.fc1", "mlp.fc2"))
        is_one = stage == len(model.layout.depths) - 1 or model.layout.stripes[stage] == size[0]
        about = Official("cswin.CSWinBlock.attn", size, branches=1 if is_one else 2)
        yield from cswin(block.attn, theirs, f"{ours}attn.", about)
    yield from _ends(model)


def _crossformer_model(model: Pyramid) -> Iterator[Place]:
    for stage, downsample in enumerate(model.downsamples):
        theirs, scales = (f"layers.{stage - 1}.downsample", "reductions") if stage else ("patch_embed", "projs")
        ours = f"downsamples.{stage}"
        yield from same(downsample.get_submodule("reduce.scales"), f"{theirs}.{scales}", f"{ours}.reduce.scales")
        yield from same(downsample.get_submodule("norm"), f"{theirs}.norm", f"{ours}.norm")
    for stage, index, block, ours, size in _blocks(model):
        theirs = f"layers.{stage}.blocks.{index}."
        yield from _block(block, theirs, ours, ("mlp.fc1", "mlp.fc2"))
        about = Official("crossformer.CrossFormerBlock.attn", size)
        yield from crossformer(block.attn, theirs, f"{ours}attn.", about)
    yield from _ends(model)


def _dat_model(model: Pyramid) -> Iterator[Place]:
    for stage, downsample in enumerate(model.downsamples):
        theirs, ours = f"down_projs.{stage - 1}" if stage else "patch_proj", f"downsamples.{stage}"
        yield from same(downsample.get_submodule("reduce"), f"{theirs}.0", f"{ours}.reduce")
        yield from same(downsample.get_submodule("norm"), f"{theirs}.1.norm", f"{ours}.norm")
    for stage, index, block, ours, size in _blocks(model):
        theirs = f"stages.{stage}."
        for number, norm in enumerate((block.norm1, block.norm2)):
            yield from same(norm, f"{theirs}layer_norms.{2 * index + number}.norm", f"{ours}norm{number + 1}")
        for number, layer in ((1, 0), (2, 2)):
            official = f"{theirs}mlps.{index}.chunk.linear{number}"
            yield from same(block.mlp[layer], official, f"{ours}mlp.{layer}")
        mixer = dat_windows if isinstance(block.attn, Swin) else dat
        yield from mixer(block.attn, f"{theirs}attns.{index}.", f"{ours}attn.", Official("models.DAT_v1", size))
    yield from _ends(model, "cls_norm.norm", "cls_head")


HOSTS: dict[str, Callable[[Pyramid], Iterator[Place]]] = {
    "models.BiFormer": partial(_biformer, nested="", mlp=("mlp.0", "mlp.3"), steps="c"),
    "models.BiFormerSTL": partial(_biformer, nested="blocks.", mlp=("mlp.0", "mlp.2"), steps="n"),
    "models.nchwBiFormerSTL": partial(_biformer, nested="blocks.", mlp=("mlp.0", "mlp.2"), steps="n", pointwise=True),
    "models.MaxViTSTL": partial(_biformer, nested="blocks.", mlp=("mlp.fc1", "mlp.fc2"), steps="n", pointwise=True),
    "models.SwinTransformer": _swin,
    "models.CSWinTransformer": _cswin_model,
    "models.CrossFormer": _crossformer_model,
    "models.DAT_v1": _dat_model,
}
