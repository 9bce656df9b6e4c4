"""Models by name: a layout of the shared pyramid around a mechanism, or a published one."""

from pathlib import Path
from typing import Any

from attention_zoo.config import FULL, field_names, parse_values
from attention_zoo.hosts.pyramid import Mixer, Pyramid, Stages, alternate
from attention_zoo.layouts import LAYOUTS, Layout
from attention_zoo.mechanisms.vanilla import Vanilla, VanillaConfig
from attention_zoo.published.models import PUBLISHED, create_published
from attention_zoo.registry import resolve, suggest


def create_model(
    name: str | Layout,
    *,
    attn: str | None = None,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    checkpoint: str | Path | None = None,
    **config: Any,
) -> Pyramid:
    """Build a layout around a mechanism (`attn`, bra by default), or a published model such as `biformer_tiny`.

    `config` are fields of the mechanism's `Config`. A field takes one value for all stages, or one per stage as a list
    or a string with dashes: `topk="1-4-16-full"`, where `full` is full attention. One value leaves the layout's full
    stages full; a schedule says all itself. A published model takes `padding` alone, and `checkpoint`, a file of
    official weights.

    Raises:
        ValueError: an unknown name, mechanism or field (the known ones are listed), values that do not fit, or a
            checkpoint of another model.
    """
    if isinstance(name, str) and name in PUBLISHED:
        refused = {**config, **({} if attn is None else {"attn": attn})}
        padding = refused.pop("padding", "mask")
        if refused:
            listed = ", ".join(f"{field}={value!r}" for field, value in refused.items())
            raise ValueError(f"{name} is what was published; it takes padding and checkpoint, not {listed}")
        return create_published(
            name, num_classes=num_classes, drop_path_rate=drop_path_rate, padding=padding, checkpoint=checkpoint
        )
    if checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint}: weights are known of {', '.join(sorted(PUBLISHED))}, not of {name}")
    if isinstance(name, str):
        if name not in LAYOUTS:
            raise ValueError(suggest("layout", name, sorted({*LAYOUTS, *PUBLISHED})))
        name = LAYOUTS[name]
    return Pyramid(name, stage_mixers(name, attn or "bra", config), num_classes, drop_path_rate)


def stage_mixers(layout: Layout, attn: str, config: dict[str, Any]) -> Stages:
    """Decide mechanism and configuration of each block."""
    cls = resolve(attn)
    known = field_names(cls.Config)
    schedules: dict[str, list[Any]] = {}
    for name, value in config.items():
        if name not in known:
            raise ValueError(suggest(f"field of {attn}", name, known))
        listed = value if isinstance(value, list) else [value]
        values = parse_values(cls.Config, name, value) if isinstance(value, str) else listed
        if len(values) not in (1, len(layout.depths)):
            raise ValueError(f"{name} takes one value or {len(layout.depths)}, one per stage; got {value!r}")
        schedules[name] = values
    per_stage = [values for values in schedules.values() if len(values) > 1]
    stages: Stages = []
    for stage in range(len(layout.depths)):
        here = {name: values[stage % len(values)] for name, values in schedules.items()}
        is_full = FULL in here.values() if per_stage else stage in layout.full_stages
        if is_full and cls is not Vanilla:
            lepe = here.get("lepe", cls.Config().lepe)
            kernel = here.get("lepe_kernel", cls.Config().lepe_kernel)
            if FULL in (lepe, kernel):
                raise ValueError("full belongs into the schedule of a field of the mechanism, not of LePE")
            # a mechanism's other ways to compute are not those of full attention
            impl: Any = "reference" if here.get("impl") == "reference" else "auto"
            mixer = Mixer(Vanilla, VanillaConfig(lepe=lepe, lepe_kernel=kernel, impl=impl))
        else:
            mixer = Mixer(cls, cls.Config(**{name: value for name, value in here.items() if value != FULL}))
        stages.append(alternate(mixer, layout, stage))
    return stages
