"""How image data are named: `imagefolder:PATH`, `timm:NAME,root=PATH`, `package.module:Class`, options behind commas.

A part `name=value` behind a comma belongs to the data before it; every other comma separates two values of an axis.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

FOLDER, TIMM, OWN = "imagefolder", "timm", "own"
KINDS = (FOLDER, TIMM)
READ = ("hfds", "tfds", "torch", "wds")
"""Of timm's data sets those that are read by index."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMS = ("imagenet", "data")

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Where images lie, and how their values are normalised.

    Attributes:
        kind: `imagefolder`, `timm`, or `own` for a class of the user's.
        root: folder with `train/` and `val/`, or `train.tar` and `val.tar`, or with `split` one folder of classes;
            of timm's data sets their root.
        name: of timm's data set, such as `hfds/cifar10`, `torch/cifar10` and `wds/cifar10`, or `package.module:Class`.
        train: folder or tar of the training images, where they lie apart.
        val: folder or tar of the test images.
        split: share of each class that is kept for the test, where there is one folder.
        train_split: what timm's data set calls its training images; of wds/ a pattern of their shards, too.
        val_split: what it calls its test images.
        input_key: column of the images, of hfds/ and tfds/; endings of image files with `;` between them, of wds/.
        target_key: column of the labels, of hfds/ and tfds/; field of KEY.json, of wds/.
        download: whether timm's data set may be downloaded.
        norm: `imagenet`, or `data` for the mean and standard deviation of the training images.
        mean: of the values of each channel, in [0, 1].
        std: their standard deviation.
    """

    kind: str = FOLDER
    root: str = ""
    name: str = ""
    train: str = ""
    val: str = ""
    split: float | None = None
    train_split: str = "train"
    val_split: str = "validation"
    input_key: str = ""
    target_key: str = ""
    download: bool = False
    norm: str = "imagenet"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD


_NORMALISED = ("norm", "mean", "std")
OPTIONS = {
    FOLDER: ("train", "val", "split", *_NORMALISED),
    TIMM: ("root", "train_split", "val_split", "input_key", "target_key", "download", *_NORMALISED),
    OWN: _NORMALISED,
}
"""Options of each kind of data."""
USAGE = {FOLDER: "imagefolder:PATH, or imagefolder:train=PATH,val=PATH", TIMM: "timm:NAME,root=PATH"}


def kind_of(spec: str) -> str | None:
    """Kind of images that a spec names, None for data that are no images of files."""
    head, colon, rest = spec.partition(":")
    if head in KINDS:
        return head
    # the names of probes have dashes, or no colon
    is_class = colon and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", head) and re.match(r"[^\W\d]\w*(,|$)", rest)
    return OWN if is_class else None


def is_image_spec(spec: str) -> bool:
    """Whether a spec names images of files, or a class of the user's."""
    return kind_of(spec) is not None


def is_shards(spec: ImageSpec) -> bool:
    """Whether images lie in shards of WebDataset."""
    return spec.kind == TIMM and spec.name.lower().startswith("wds/")


def is_tfds(spec: ImageSpec) -> bool:
    """Whether images are of a data set of TensorFlow Datasets."""
    return spec.kind == TIMM and spec.name.lower().startswith("tfds/")


def own_class(spec: str) -> str | None:
    """`package.module:Class` that a spec names; importing it can run any code."""
    return spec.partition(",")[0] if kind_of(spec) == OWN else None


def parse_image_spec(spec: str) -> ImageSpec:
    """Split a spec into where the images are and its options.

    Raises:
        ValueError: it names no place or two, or an option is unknown, repeated or out of its range.
    """
    kind = kind_of(spec)
    if kind is None:
        raise ValueError(f"data {spec!r} names no images; write {' or '.join(USAGE.values())}")
    allowed, (first, *rest) = OPTIONS[kind], (spec if kind == OWN else spec.partition(":")[2]).split(",")
    if first.partition("=")[0] in allowed:
        first, rest = "", [first, *rest]
    values: dict[str, Any] = {}
    for part in rest:
        name, equals, text = part.partition("=")
        if not equals or name not in allowed or name in values:
            raise ValueError(f"data {spec!r}: {part!r} is not one of {', '.join(f'{o}=' for o in allowed)}, each once")
        values[name] = _read(spec, name, text)
    if values.get("norm") == "data" and values.keys() & {"mean", "std"}:
        raise ValueError(f"data {spec!r}: norm=data takes mean and std from the images; leave out mean= and std=")
    found = ImageSpec(kind=kind, **values)
    return _check_folder(spec, replace(found, root=first)) if kind == FOLDER else _check_named(spec, found, first)


def _check_folder(spec: str, found: ImageSpec) -> ImageSpec:
    if bool(found.root) == bool(found.train or found.val):
        raise ValueError(f"data {spec!r} must name one place; write {USAGE[FOLDER]}")
    if not found.root and not (found.train and found.val):
        raise ValueError(f"data {spec!r} must name train and val; write {USAGE[FOLDER]}")
    if found.split is not None and not found.root:
        raise ValueError(f"data {spec!r}: split divides one folder, and train and val are two")
    return found


def _check_named(spec: str, found: ImageSpec, name: str) -> ImageSpec:
    if not name:
        raise ValueError(f"data {spec!r} must name a data set; write {USAGE[TIMM]}")
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if found.kind == TIMM and prefix not in READ:
        stream = f"{prefix}/ is a stream, which a training cannot go on from in its middle"
        why = {"hfids": f"{stream}; timm:hfds/{rest} reads the same data by index"}.get(
            prefix, f"it is none of {', '.join(f'{known}/' for known in READ)}; a folder or a tar is imagefolder:PATH"
        )
        raise ValueError(f"data {spec!r}: {why}; what works: {', '.join(f'timm:{known}/NAME' for known in READ)}")
    if found.input_key + found.target_key and prefix not in ("hfds", "tfds", "wds"):
        raise ValueError(f"data {spec!r}: input_key and target_key are of hfds/, tfds/ and wds/")
    if prefix == "wds" and not found.root:
        raise ValueError(f"data {spec!r}: wds/ needs root=PATH, the folder of the shards")
    if prefix == "wds" and found.download:
        raise ValueError(f"data {spec!r}: wds/ reads shards that are here; leave out download=on")
    return replace(found, name=name)


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
        if name == "download":
            return {"on": True, "off": False}[text]
        if not text or (name == "norm" and text not in NORMS):
            raise ValueError
    except (ValueError, KeyError) as error:
        raise ValueError(f"data {spec!r}: {name}={text} must be {_ALLOWED.get(name, 'a name or a path')}") from error
    return text


_ALLOWED = {
    "split": "a share between 0 and 1",
    **dict.fromkeys(("mean", "std"), "three numbers in [0, 1], such as 0.5/0.5/0.5"),
    "download": "on or off",
    "norm": " or ".join(NORMS),
}
