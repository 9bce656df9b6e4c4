"""Which output of a model is which class folder, and further labels of ImageNet's validation images."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo
from timm.data.readers.class_map import load_class_map

IMAGENET_CLASSES = 1000
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?=[._])")

RealLabels = list[frozenset[int]]
"""Of each image the labels that are right, none for an image that is not counted."""


def class_count(classes: Sequence[str]) -> int:
    """How many classes a model for these folders has by itself: ImageNet's for its WNIDs, else one for each folder."""
    return IMAGENET_CLASSES if set(classes) <= set(_wnids()) else len(classes)


def class_indices(spec: str, classes: Sequence[str], num_classes: int, label_map: Path | None = None) -> list[int]:
    """Index among a model's classes of each class folder of some data.

    By `label_map`, if there is one. Else as many folders as the model has classes have their place in the given order,
    which is that of training; of a model of ImageNet's 1,000 classes, folders 0 to 999 have their number, as those of
    ImageNet-V2, and WNIDs their place among the 1,000.

    Raises:
        ValueError: none of these fits.
    """
    if label_map is not None:
        return _mapped(classes, num_classes, label_map)
    if len(classes) == num_classes:
        numbers = [int(name) if re.fullmatch(r"[0-9]{1,9}", name) else -1 for name in classes]
        is_v2 = num_classes == IMAGENET_CLASSES and sorted(numbers) == list(range(num_classes))
        return numbers if is_v2 else list(range(num_classes))
    if num_classes == IMAGENET_CLASSES and class_count(classes) == IMAGENET_CLASSES:
        index = {wnid: number for number, wnid in enumerate(_wnids())}
        return [index[name] for name in classes]
    raise ValueError(
        f"--data {spec} has {len(classes)} classes ({_some(classes)}) and the model {num_classes}; say by --label-map "
        "which is which, or evaluate a model of these classes: --reset-classes is for training"
    )


def read_label_map(path: Path) -> dict[str, int]:
    """Read a text file with the name of a class folder on each line, that of the model's first class first.

    Raises:
        ValueError: it cannot be read as such.
    """
    if path.suffix != ".txt":
        raise ValueError(f"--label-map {path}: give a .txt with the name of a class folder on each line")
    try:
        found: dict[str, int] = load_class_map(str(path))
    except (AssertionError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--label-map {path} cannot be read as text") from error
    found.pop("", None)
    return found


def read_real_labels(path: Path, names: Sequence[str]) -> RealLabels:
    """Read a JSON list with the labels of each image of ImageNet's validation set, as those of ImageNet-ReaL.

    Its entries belong to ILSVRC2012_val_00000001 and so on, or, where it has as many as there are images that are
    called otherwise, to the images in order of their names.

    Raises:
        ValueError: it cannot be read as such, or the images have other names and another number.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"--real-labels {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"--real-labels {path} is no JSON") from error
    if not isinstance(content, list) or not all(map(_is_labels, content)):
        raise ValueError(f"--real-labels {path} is no list of lists of class numbers")
    places = [_VALIDATION_IMAGE.match(Path(name).name) for name in names]
    if all(places):
        numbers = [int(place[1]) - 1 for place in places if place]
        if max(numbers) >= len(content) or min(numbers) < 0:
            raise ValueError(f"--real-labels {path} has labels of {len(content)} images, not of all of these")
    elif len(content) == len(names):
        order = sorted(range(len(names)), key=lambda at: Path(names[at]).name)
        numbers = [0] * len(names)
        for number, at in enumerate(order):
            numbers[at] = number
    else:
        raise ValueError(
            f"--real-labels {path} has labels of {len(content)} images; these are {len(names)}, and "
            f"{names[places.index(None)]} is not called ILSVRC2012_val_ and a number"
        )
    return [frozenset(content[number]) for number in numbers]


def _is_labels(entry: object) -> bool:
    return isinstance(entry, list) and all(type(label) is int and label >= 0 for label in entry)


def _mapped(classes: Sequence[str], num_classes: int, label_map: Path) -> list[int]:
    index = read_label_map(label_map)
    if len(index) > num_classes:
        raise ValueError(f"--label-map {label_map} names {len(index)} classes, the model has {num_classes}")
    if lacking := [name for name in classes if name not in index]:
        raise ValueError(f"--label-map {label_map} does not name {_some(lacking)}, of which there are images")
    return [index[name] for name in classes]


def _wnids() -> list[str]:
    wnids: list[str] = ImageNetInfo().label_names()
    return wnids


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
