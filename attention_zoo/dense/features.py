"""Backbones of dense tasks: maps of four strides, each normalised, from a pyramid of this library or a model of timm.

The published dense codes drop the last norm and the classifier, and put a LayerNorm on each stage's map before the head
reads it; the next stage reads the map itself (Swin: norm0 to norm3 of
github.com/SwinTransformer/Swin-Transformer-Semantic-Segmentation; BiFormer: extra_norms of models_mm/biformer_mm.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.base import Macs
from attention_zoo.dense.layers import Size
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.layouts import Layout
from attention_zoo.models import create_model

STAGES = 4
TIMM = "timm:"
"""What the names of timm's models begin with."""


class Features(nn.Module):
    """Images (B, 3, H, W) to four maps (B, C, h, w), the finest first; `channels` and `strides` (pixels) of each.

    With `norm_eval`, BatchNorm of the backbone keeps its statistics in training, as published for detection, where a
    process has few images: only sensible with weights that were trained before.
    """

    def __init__(
        self, model: nn.Module, channels: tuple[int, ...], strides: tuple[int, ...], eps: float, norm_eval: bool
    ) -> None:
        """Put a norm on each map of a model."""
        super().__init__()
        self.model, self.channels, self.strides, self.norm_eval = model, channels, strides, norm_eval
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for dim in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Four maps in NCHW, their channels last in memory."""
        maps = self.maps(images)
        return [norm(map_).permute(0, 3, 1, 2) for norm, map_ in zip(self.norms, maps, strict=True)]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps before their norms, (B, h, w, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no maps")

    def sizes(self, height_px: int, width_px: int) -> list[Size]:
        """Height and width of each map for images of a size."""
        raise NotImplementedError(f"{type(self).__name__} has no sizes")

    def in_own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a classifier by the names that its backbone gives them; what it has no use for keeps its name."""
        return dict(state)

    def train(self, mode: bool = True) -> "Features":
        """Set the mode, but for norms whose statistics stay."""
        super().train(mode)
        if self.norm_eval:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Recompute each block of the stages (from 0; None: all) in the backward pass; timm's models have all or none.

        Raises:
            ValueError: no such stage, or the model does not know how to.
        """
        switch: Any = getattr(self.model, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(f"{type(self.model).__name__} has no set_grad_checkpointing")
        if stages is None:
            switch(enable)
        else:
            switch(enable, stages)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they have more than one dimension."""
        names: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in names}


class PyramidFeatures(Features):
    """Maps of the four stages of a pyramid."""

    model: Pyramid

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps after each stage."""
        return self.model.run_stages(images, list(range(STAGES)), STAGES)[1]

    def sizes(self, height_px: int, width_px: int) -> list[Size]:
        """As the layout rounds them."""
        return self.model.layout.maps(height_px, width_px)

    def macs(self, height_px: int, width_px: int) -> Macs:
        """Multiply-adds of one image in closed form; the norms of the maps have none."""
        return self.model.macs(height_px, width_px)


class RivalFeatures(Features):
    """Maps of a model of timm; it has no closed form of its multiply-adds."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """What timm extracts, its channels last."""
        return self._channels_last(self.model(images))

    def _channels_last(self, maps: Sequence[Tensor]) -> list[Tensor]:
        is_nhwc = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return [map_ if is_nhwc else map_.permute(0, 2, 3, 1) for map_ in maps]

    def sizes(self, height_px: int, width_px: int) -> list[Size]:
        """As the model rounds them, up or down: told by a forward without memory."""
        states = {name: torch.empty_like(value, device="meta") for name, value in self.model.state_dict().items()}
        images = torch.empty(1, 3, height_px, width_px, device="meta")
        maps = self._channels_last(torch.func.functional_call(self.model, states, (images,)))
        return [(map_.shape[1], map_.shape[2]) for map_ in maps]

    def in_own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of timm's classifier: its extractors call `stages.0` `stages_0`, or `model.stages.0`."""
        own = self.model.state_dict().keys()
        names = {name: (name, name.replace(".", "_", 1), f"model.{name}") for name in state}
        return {next((new for new in news if new in own), name): state[name] for name, news in names.items()}

    def no_weight_decay(self) -> set[str]:
        """Tables of biases and positions, by the names that timm's models give them; extractors do not tell them."""
        told = ("relative_position_bias_table", "pos_embed", "absolute_pos_embed")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in told}


def features_of(model: Pyramid, *, norm_eval: bool = False) -> PyramidFeatures:
    """Make a pyramid the backbone of a dense task; its classifier and last norm are dropped from it.

    Raises:
        ValueError: it has not four stages.
    """
    if len(model.stages) != STAGES:
        raise ValueError(f"dense tasks read the maps of {STAGES} stages, {model.layout.name} has {len(model.stages)}")
    model.prune_intermediate_layers(range(STAGES), prune_norm=True, prune_head=True)
    strides = tuple(model.layout.stem_px * 2**stage for stage in range(STAGES))
    return PyramidFeatures(model, model.layout.dims, strides, model.layout.block_norm_eps, norm_eval)


def rival_features(
    name: str, *, drop_path_rate: float = 0.0, norm_eval: bool = False, **settings: Any
) -> RivalFeatures:
    """Make a model of timm, with random weights, the backbone of a dense task; `settings` go to its constructor.

    Models that fix the size of their images are asked for any size (`dynamic_img_size`), where they can.

    Raises:
        ValueError: timm has no such model, or it has no maps of strides 4, 8, 16 and 32.
    """
    import timm  # seconds, and most backbones are pyramids

    wanted = tuple(4 * 2**stage for stage in range(STAGES))
    options = {"pretrained": False, "features_only": True, **settings}
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        with torch.device("meta"):
            told: Any = timm.create_model(name, **options).feature_info
            strides = told.reduction()
        taken = tuple(strides.index(stride) for stride in wanted)
    except TypeError as error:
        raise ValueError(f"{TIMM}{name} does not take what it is given, such as a drop path rate: {error}") from error
    except (RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(f"{TIMM}{name} has no maps of strides {wanted} px to read: {error}") from error
    options["out_indices"] = taken
    try:
        model: Any = timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # takes any size, or one alone
        model = timm.create_model(name, **options)
    return RivalFeatures(model, tuple(model.feature_info.channels()), wanted, 1e-6, norm_eval)


def create_features(
    name: str | Layout,
    *,
    drop_path_rate: float = 0.0,
    norm_eval: bool = False,
    regions: int | None = None,
    **settings: Any,
) -> Features:
    """Build a backbone by name: a layout (with `attn` and its fields), a published model, or timm's as `timm:NAME`.

    `regions` per side replaces that of bi-level routing, in published models too: it changes no weights.

    Raises:
        ValueError: an unknown name or setting, or regions of a model that has none.
    """
    if isinstance(name, str) and name.startswith(TIMM):
        if regions is not None:
            raise ValueError(f"regions={regions}: {name} has none")
        return rival_features(name.removeprefix(TIMM), drop_path_rate=drop_path_rate, norm_eval=norm_eval, **settings)
    model = create_model(name, num_classes=0, drop_path_rate=drop_path_rate, **settings)
    if regions is not None:
        routed = [mixer for mixers in model.mixers() for mixer in mixers if hasattr(mixer.config, "regions")]
        if not routed:
            raise ValueError(f"regions={regions}: {model.layout.name} has no mechanism of regions")
        for mixer in routed:
            mixer.config = mixer.config.replace(regions=regions)
    return features_of(model, norm_eval=norm_eval)
