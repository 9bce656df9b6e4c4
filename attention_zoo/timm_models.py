"""The zoo's models in timm's registry: import this module, then `timm.create_model("zoo_biformer_tiny")`.

`zoo_biformer_tiny`, `zoo_swin_tiny` and so on are the published models, `zoo_stl_<mechanism>` is the shared layout
around each mechanism. Fields of the mechanism pass through: `timm.create_model("zoo_stl_bra", topk="1-4-16-full")`. We
host no weights. Official ones are read from a file: `checkpoint=PATH`, or, into another number of classes,
`pretrained=True, pretrained_cfg_overlay={"file": PATH}`. The models' `load_state_dict` takes official names too, so
timm's own `checkpoint_path=PATH` and `load_checkpoint` read official files as well as those that were saved here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import Tensor, nn

from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.layouts import STL
from attention_zoo.models import create_model
from attention_zoo.published.models import PUBLISHED, create_published, in_our_names
from attention_zoo.published.places import Official
from attention_zoo.published.weights import classes_in, read_weights, to_official
from attention_zoo.registry import names

__all__: list[str] = []

_MODELS: dict[str, tuple[str, str | None]] = {
    **{f"zoo_{name}": (name, None) for name in PUBLISHED},
    **{f"zoo_{STL.name}_{name}": (STL.name, name) for name in names()},
}
"""Layout or published model, and mechanism, of each name."""


FIRST_CONVOLUTIONS = {"models.BiFormer": ".0", "models.CrossFormer": ".scales.0"}
"""By official class, where the first convolution of a stem lies that has several."""


def _cfg(layout: str) -> dict[str, Any]:
    inner = FIRST_CONVOLUTIONS.get(PUBLISHED[layout].official, "") if layout in PUBLISHED else ""
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "first_conv": f"downsamples.0.reduce{inner}",
        "classifier": "head",
    }


# register_model finds it under this name, and without it features_only would not know the models
default_cfgs = generate_default_cfgs({variant: _cfg(layout) for variant, (layout, _) in _MODELS.items()})


def _pyramid(
    variant: str,
    /,
    *,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    **settings: Any,
) -> Pyramid:
    if in_chans != 3:
        raise ValueError(f"{variant} reads images of 3 channels, got in_chans={in_chans}")
    layout, attn = _MODELS[variant]
    model = create_model(layout, attn=attn, **settings)
    model.drop_rate = drop_rate
    model.set_global_pool(global_pool)
    if layout in PUBLISHED:
        model.register_load_state_dict_pre_hook(partial(_rename_official, layout))  # type: ignore[no-untyped-call]
    return model


def _ours(published: str, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Put official weights under our names, as timm asks for it: it drops a classifier that does not fit."""
    return in_our_names(published, state)


def _rename_official(
    published: str, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, /, *_about_loading: Any
) -> None:
    """Before `load_state_dict` of a published model: put official weights under our names, in place.

    Weights with none of the official names are left to torch, which says what is missing and what is unknown.

    Raises:
        ValueError: official names, but not those of this model.
    """
    state = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    foreign = state.keys() - module.state_dict().keys()
    if not foreign:
        return
    with torch.device("meta"):
        official = to_official(create_published(published), Official(PUBLISHED[published].official))
    if foreign & official.keys():
        ours = in_our_names(published, state)
        for name in state:
            del state_dict[prefix + name]
        state_dict.update({prefix + name: tensor for name, tensor in ours.items()})


def _create(variant: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build what an entry point of timm's returns.

    Raises:
        ValueError: weights were asked for without a file, or settings that the model does not have.
    """
    layout, _ = _MODELS[variant]
    if pretrained:
        given = (settings.get("pretrained_cfg"), settings.get("pretrained_cfg_overlay"))
        source = resolve_pretrained_cfg(variant, *given)
        if not (source.has_weights or source.state_dict):
            raise ValueError(
                f"{variant} has no pretrained weights to download; use pretrained=False, or read a file of them with "
                "pretrained_cfg_overlay={'file': PATH}"
            )
        if source.file and not source.state_dict:
            # read as everywhere here: timm does not know all of our layouts
            state = read_weights(source.file).state
            read = {"file": None, "state_dict": state, "num_classes": classes_in(state)}
            settings["pretrained_cfg_overlay"] = {**(settings.get("pretrained_cfg_overlay") or {}), **read}
    model: nn.Module = build_model_with_cfg(
        partial(_pyramid, variant),
        variant,
        pretrained,
        pretrained_filter_fn=partial(_ours, layout) if layout in PUBLISHED else None,
        feature_cfg={"out_indices": tuple(range(4)), "feature_cls": "getter"},
        **settings,
    )
    return model


def _entry_point(variant: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **settings: Any) -> nn.Module:
        return _create(variant, pretrained, **settings)

    # timm takes name and module from the function
    create.__name__ = create.__qualname__ = variant
    layout, attn = _MODELS[variant]
    create.__doc__ = f"Build {layout}{f' around {attn}' if attn else ''}, for images of any size."
    return register_model(create)


for _variant in _MODELS:
    globals()[_variant] = _entry_point(_variant)
