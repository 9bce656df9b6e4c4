"""How image data are named: `imagefolder:PATH`, `imagefolder:train=FILE,val=FILE`, with options behind commas.

A part `name=value` behind a comma belongs to the data before it; every other comma separates two values of an axis.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

FOLDER = "imagefolder"
KINDS = (FOLDER,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Where images lie, and how their values are normalised.

    Attributes:
        root: folder with `train/` and `val/`, or `train.tar` and `val.tar`, or with `split` one folder of classes.
        train: folder or tar of the training images, where they lie apart.
        val: folder or tar of the test images.
        split: share of each class that is kept for the test, where there is one folder.
        mean: of the values of each channel, in [0, 1].
        std: their standard deviation.
    """

    root: str = ""
    train: str = ""
    val: str = ""
    split: float | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD


OPTIONS = tuple(field.name for field in fields(ImageSpec) if field.name != "root")


def is_image_spec(spec: str) -> bool:
    """Whether a spec names images of files."""
    return spec.partition(":")[0] in KINDS


def parse_image_spec(spec: str) -> ImageSpec:
    """Split a spec into where the images are and its options.

    Raises:
        ValueError: it names no place or two, or an option is unknown, repeated or out of its range.
    """
    kind, _, rest = spec.partition(":")
    root, values = "", {}
    for position, part in enumerate(rest.split(",")):
        name, equals, text = part.partition("=")
        if position == 0 and name not in OPTIONS:
            root = part
        elif not equals or name not in OPTIONS or name in values:
            raise ValueError(f"data {spec!r}: {part!r} is not one of {', '.join(f'{o}=' for o in OPTIONS)}, each once")
        else:
            values[name] = _read(spec, name, text)
    found = ImageSpec(root=root, **values)
    usage = f"write {kind}:PATH, or {kind}:train=PATH,val=PATH"
    if bool(found.root) == bool(found.train or found.val):
        raise ValueError(f"data {spec!r} must name one place; {usage}")
    if not found.root and not (found.train and found.val):
        raise ValueError(f"data {spec!r} must name train and val; {usage}")
    if found.split is not None and not found.root:
        raise ValueError(f"data {spec!r}: split divides one folder, and train and val are two")
    return found


def _read(spec: str, name: str, text: str) -> Any:
    try:
        if name == "split":
            share = float(text)
            if not 0 < share < 1:
                raise ValueError
            return share
        if name in ("mean", "std"):
            channels = tuple(float(value) for value in text.split("/"))
            low = 0 if name == "mean" else 1e-6
            if len(channels) != 3 or not all(low <= value <= 1 and math.isfinite(value) for value in channels):
                raise ValueError
            return channels
    except ValueError as error:
        allowed = "a share between 0 and 1" if name == "split" else "three numbers in [0, 1], such as 0.5/0.5/0.5"
        raise ValueError(f"data {spec!r}: {name}={text} must be {allowed}") from error
    if not text:
        raise ValueError(f"data {spec!r}: {name}= needs a path")
    return text
