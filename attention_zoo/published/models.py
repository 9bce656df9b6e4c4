"""The published models that a user creates by name, for images of any size.

Each name stands for the arguments of the official constructor as released: BiFormer (rayleizhu/BiFormer, models/ and
the released checkpoints), Swin (microsoft/Swin-Transformer, configs/swin/swin_*_patch4_window7_224.yaml), CSWin
(microsoft/CSWin-Transformer, models/cswin.py: CSWin_64_12211_tiny_224, CSWin_64_24322_small_224 and
CSWin_96_24322_base_224), CrossFormer (cheerss/CrossFormer, configs/crossformer/*_patch4_group7_224.yaml), DAT
(LeapLabTHU/DAT, configs/dat_{tiny,small,base}.yaml at commits up to 81c67ea, the code of 2022), and MaxViT's attention
in the host of BiFormer's ablation (rayleizhu/BiFormer, models/maxvit_stl.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from attention_zoo.hosts.pyramid import Mixer, Pyramid
from attention_zoo.mechanisms.bra import BRAConfig
from attention_zoo.mechanisms.cswin import CSWinConfig
from attention_zoo.mechanisms.swin import SwinConfig
from attention_zoo.padding import PartitionConfig
from attention_zoo.published.classes import MODELS
from attention_zoo.published.places import Official
from attention_zoo.published.reader import MODEL_MOOT, Reader
from attention_zoo.published.weights import classes_in, is_ours, load_checkpoint, load_official

RESOLUTION_PX = 224
"""Side of the images that all of them were published for."""
WHOLE_MAP = 2**16
"""A stripe as wide as any map."""


@dataclass(frozen=True)
class Published:
    """A published model: its official class, and the arguments that its name stands for."""

    official: str
    arguments: dict[str, Any]


_NARROW, _WIDE, _WIDER = [64, 128, 256, 512], [96, 192, 384, 768], [128, 256, 512, 1024]
_STL = {"depth": [2, 2, 6, 2], "embed_dim": _WIDE, "head_dim": 32, "n_wins": [7] * 4}


def _biformer(depth: list[int], embed_dim: list[int]) -> Published:
    widths = {"embed_dim": embed_dim, "qk_dims": embed_dim, "mlp_ratios": [3, 3, 3, 3], "head_dim": 32}
    routing = {"n_win": 7, "topks": [1, 4, 16, -2], "kv_downsample_mode": "identity"}
    return Published("models.BiFormer", {"depth": depth, **widths, **routing})


def _swin(width: int, depths: list[int], heads: list[int]) -> Published:
    sides = {"img_size": 224, "patch_size": 4, "window_size": 7}
    return Published("models.SwinTransformer", {"embed_dim": width, "depths": depths, "num_heads": heads, **sides})


def _cswin(width: int, depth: list[int], heads: list[int]) -> Published:
    stripes = {"img_size": 224, "patch_size": 4, "split_size": [1, 2, 7, 7]}
    return Published(
        "models.CSWinTransformer", {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4.0, **stripes}
    )


def _crossformer(width: int, depths: list[int], heads: list[int]) -> Published:
    scales = {"img_size": 224, "patch_size": [4, 8, 16, 32], "merge_size": [[2, 4]] * 3}
    groups = {"group_size": [7] * 4, "crs_interval": [8, 4, 2, 1], "mlp_ratio": [4.0] * 4, "group_type": "constant"}
    return Published(
        "models.CrossFormer", {"embed_dim": width, "depths": depths, "num_heads": heads, **scales, **groups}
    )


def _dat(dims: list[int], blocks: int, heads: list[int]) -> Published:
    spec = [["L", "S"], ["L", "S"], ["L", "D"] * (blocks // 2), ["L", "D"]]
    sizes = {"img_size": 224, "patch_size": 4, "expansion": 4, "dim_stem": dims[0], "dims": dims}
    stages = {"depths": [2, 2, blocks, 2], "stage_spec": spec, "heads": heads, "window_sizes": [7] * 4}
    points = {"groups": [-1, -1, heads[0], heads[1]], "strides": [-1, -1, 1, 1], "offset_range_factor": [-1, -1, 2, 2]}
    return Published("models.DAT_v1", {**sizes, **stages, **points, "use_pes": [False, False, True, True]})


_DAT = {
    "tiny": _dat(_WIDE, 6, [3, 6, 12, 24]),
    "small": _dat(_WIDE, 18, [3, 6, 12, 24]),
    "base": _dat(_WIDER, 18, [4, 8, 16, 32]),
}

PUBLISHED = {
    # arXiv:2303.08810, table 2 and the released constructors
    "biformer_tiny": _biformer([2, 2, 8, 2], _NARROW),
    "biformer_small": _biformer([4, 4, 18, 4], _NARROW),
    "biformer_base": _biformer([4, 4, 18, 4], _WIDE),
    "biformer_stl": Published("models.BiFormerSTL", {**_STL, "topks": [1, 4, 16, -2]}),
    "biformer_stl_nchw": Published("models.nchwBiFormerSTL", {**_STL, "topks": [1, 4, 16, -1]}),
    # arXiv:2103.14030
    "swin_tiny": _swin(96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "swin_small": _swin(96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "swin_base": _swin(128, [2, 2, 18, 2], [4, 8, 16, 32]),
    # arXiv:2107.00652, table 1
    "cswin_tiny": _cswin(64, [1, 2, 21, 1], [2, 4, 8, 16]),
    "cswin_small": _cswin(64, [2, 4, 32, 2], [2, 4, 8, 16]),
    "cswin_base": _cswin(96, [2, 4, 32, 2], [4, 8, 16, 32]),
    # arXiv:2108.00154, table 1
    "crossformer_tiny": _crossformer(64, [1, 1, 8, 6], [2, 4, 8, 16]),
    "crossformer_small": _crossformer(96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "crossformer_base": _crossformer(96, [2, 2, 18, 2], [3, 6, 12, 24]),
    # arXiv:2201.00520, table 1; the repository's names are those of DAT++ (2023) today
    **{f"dat_{size}": model for size, model in _DAT.items()},
    **{f"dat_{size}_2022": model for size, model in _DAT.items()},
    "maxvit_stl": Published("models.MaxViTSTL", {"depth": [2, 2, 6, 2], "embed_dim": _WIDE}),
}
"""By name; `dat_tiny` and `dat_tiny_2022` are one model, and so on."""


def create_published(
    name: str,
    *,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    padding: str = "mask",
    checkpoint: str | Path | None = None,
) -> Pyramid:
    """Build a published model; `checkpoint` is a file of official weights.

    Raises:
        ValueError: an unknown padding, or a checkpoint that cannot be read or is another model's.
    """
    published = PUBLISHED[name]
    side = published.arguments.get("img_size", RESOLUTION_PX)
    read = Reader(published.official, {"ctor": published.arguments, "H": side, "W": side}, MODEL_MOOT)
    layout, stages = read.build(MODELS[published.official].build)
    last = len(stages) - 1
    stages = [
        [_on_any_map(mixer, block, stage == last, padding) for block, mixer in enumerate(mixers)]
        for stage, mixers in enumerate(stages)
    ]
    model = Pyramid(replace(layout, name=name, rounding="ceil"), stages, num_classes, drop_path_rate)
    if checkpoint is not None:
        load_checkpoint(model, Official(published.official), checkpoint)
    return model


def _on_any_map(mixer: Mixer, block: int, is_last: bool, padding: str) -> Mixer:
    """Undo what the constructor fixes for images of its own size, and which changes nothing there; pad as asked."""
    config = mixer.config
    if isinstance(config, BRAConfig):
        # small images have fewer regions than top-k asks for, and then all are attended to
        return mixer._replace(config=config.replace(padding=padding, clip_topk=padding == "mask", impl="auto"))
    if not isinstance(config, PartitionConfig):
        return mixer
    config = config.replace(padding=padding)
    if isinstance(config, SwinConfig) and not config.shift_whole:
        # the last map of 224 px is one window, which is not shifted in any case; that of a larger image has several
        config = config.replace(shift=min(config.sides) // 2 if block % 2 else 0)
    if isinstance(config, CSWinConfig):
        config = config.replace(stripe=WHOLE_MAP if is_last else config.stripe, clip_stripe=True)
    return mixer._replace(config=config)


def in_our_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the official weights of a published model under our names; what was saved here stays as it is.

    Raises:
        ValueError: they are another model's.
    """
    if is_ours(state):
        return state
    # with its own classes, whatever those of the model at hand
    whole = create_published(name, num_classes=classes_in(state))
    load_official(whole, Official(PUBLISHED[name].official), state)
    return whole.state_dict()
