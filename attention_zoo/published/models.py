"""The published models that a user creates by name, for images of any size."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attention_zoo.hosts.pyramid import Mixer, Pyramid
from attention_zoo.mechanisms.bra import BRAConfig
from attention_zoo.published.biformer import MODELS
from attention_zoo.published.places import Official
from attention_zoo.published.reader import MODEL_MOOT, Reader
from attention_zoo.published.weights import load_checkpoint


@dataclass(frozen=True)
class Published:
    """A published model: its official class, and the arguments that its name stands for."""

    official: str
    arguments: dict[str, Any]


_NARROW, _WIDE = [64, 128, 256, 512], [96, 192, 384, 768]
_STL = {"depth": [2, 2, 6, 2], "embed_dim": _WIDE, "head_dim": 32, "n_wins": [7] * 4}


def _biformer(depth: list[int], embed_dim: list[int]) -> Published:
    widths = {"embed_dim": embed_dim, "qk_dims": embed_dim, "mlp_ratios": [3, 3, 3, 3], "head_dim": 32}
    routing = {"n_win": 7, "topks": [1, 4, 16, -2], "kv_downsample_mode": "identity"}
    return Published("models.BiFormer", {"depth": depth, **widths, **routing})


PUBLISHED = {
    "biformer_tiny": _biformer([2, 2, 8, 2], _NARROW),
    "biformer_small": _biformer([4, 4, 18, 4], _NARROW),
    "biformer_base": _biformer([4, 4, 18, 4], _WIDE),
    "biformer_stl": Published("models.BiFormerSTL", {**_STL, "topks": [1, 4, 16, -2]}),
    "biformer_stl_nchw": Published("models.nchwBiFormerSTL", {**_STL, "topks": [1, 4, 16, -1]}),
}
"""BiFormer (arXiv:2303.08810, table 2 and the released constructors)."""


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
    read = Reader(published.official, {"ctor": published.arguments}, MODEL_MOOT)
    layout, stages = read.build(MODELS[published.official].build)
    stages = [[_on_any_map(mixer, padding) for mixer in mixers] for mixers in stages]
    model = Pyramid(replace(layout, rounding="ceil"), stages, num_classes, drop_path_rate)
    if checkpoint is not None:
        load_checkpoint(model, Official(published.official), checkpoint)
    return model


def _on_any_map(mixer: Mixer, padding: str) -> Mixer:
    """Pad by the user's rule; small images have fewer regions than top-k asks for, and then all are attended to."""
    if not isinstance(mixer.config, BRAConfig):
        return mixer
    return mixer._replace(config=mixer.config.replace(padding=padding, clip_topk=padding == "mask", impl="auto"))
