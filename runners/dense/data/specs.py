"""How data of dense tasks are named, without torch: `scenes`, `segfolder:PATH`, `ade20k:PATH`, `coco:PATH`, `voc:PATH`.

PATH is a folder or a tar. Options of files follow behind commas, as those of image folders do (`coco:PATH,images=4`);
those of scenes behind colons, as those of probes do (`scenes:objects=3:noise=0.1`).
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runners.data.datasets import Option

TASKS = ("segment", "detect", "instance")
"""Dense tasks: a class for each pixel; boxes; boxes with masks."""
SCENES = "scenes"
TASKS_OF = {
    SCENES: TASKS,
    "segfolder": ("segment",),
    "ade20k": ("segment",),
    "coco": ("detect", "instance"),
    "voc": ("detect",),
}
"""Tasks for which each kind of data has annotations."""
SPLITS = {
    "segfolder": ("train", "val"),
    "ade20k": ("training", "validation"),
    "coco": ("train2017", "val2017"),
    "voc": ("train", "val"),
}
"""What each layout calls its training and its test images."""
MIN_SIDE_PX = 32
"""Of an image: the last map of a backbone has a 32nd of it."""
USAGE = (SCENES, *(f"{kind}:PATH" for kind in SPLITS))

SCENE_OPTIONS = {
    "objects": Option(int, 16, "digits in a scene at most, at least 1"),
    "noise": Option(float, 1.0, "standard deviation of the pixel noise, on images in [0, 1]"),
}
FILE_OPTIONS = ("train_split", "val_split", "images")


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """What a spec says.

    Attributes:
        kind: a key of TASKS_OF.
        root: folder or tar of the files; empty for scenes.
        train_split: name of the training images in the layout.
        val_split: name of the test images.
        images: take so many of each split, its first; 0 for all.
        objects: digits in a scene at most.
        noise: of a scene.
    """

    kind: str
    root: str = ""
    train_split: str = ""
    val_split: str = ""
    images: int = 0
    objects: int = 4
    noise: float = 0.05


def is_dense_spec(spec: str) -> bool:
    """Whether a spec names data of a dense task; ask before `is_image_spec`, to which `coco:x` looks like a class."""
    head, colon, _ = spec.partition(":")
    return (head in SPLITS and bool(colon)) or head == SCENES


def parse_dense_spec(spec: str) -> DenseSpec:
    """Split a spec into the kind of data, where they are, and options.

    Raises:
        ValueError: an unknown kind or option, no path, or a value that is repeated or out of its range.
    """
    kind, _, rest = spec.partition(":")
    if kind not in TASKS_OF:
        raise ValueError(f"unknown data {kind!r} of a dense task; {nearest(kind, TASKS_OF)}known: {', '.join(USAGE)}")
    if kind == SCENES:
        return _scenes(spec, rest.split(":") if rest else [])
    root, *parts = rest.split(",")
    if not root or root.partition("=")[0] in FILE_OPTIONS:
        raise ValueError(f"data {spec!r} must name a folder or a tar; write {kind}:PATH")
    values: dict[str, Any] = dict(zip(("train_split", "val_split"), SPLITS[kind], strict=True))
    for name, text in _options(spec, parts, FILE_OPTIONS):
        if name == "images":
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise ValueError(f"data {spec!r}: images={text} must be an integer from 1 up")
            values[name] = int(text)
        else:
            check_name(text, f"data {spec!r}: {name}")
            values[name] = text
    return DenseSpec(kind=kind, root=root, **values)


def _scenes(spec: str, parts: list[str]) -> DenseSpec:
    values: dict[str, Any] = {
        name: SCENE_OPTIONS[name].read(name, text) for name, text in _options(spec, parts, SCENE_OPTIONS)
    }
    if values.get("objects") == 0:
        raise ValueError(f"data {spec!r}: objects must be at least 1, got 0")
    return DenseSpec(kind=SCENES, **values)


def _options(spec: str, parts: list[str], allowed: Iterable[str]) -> list[tuple[str, str]]:
    seen: dict[str, str] = {}
    for part in parts:
        name, equals, text = part.partition("=")
        known = f"options: {', '.join(allowed)}"
        if name not in allowed:
            raise ValueError(f"unknown option {name!r} in data {spec!r}; {nearest(name, allowed)}{known}")
        if not equals or not text or name in seen:
            raise ValueError(f"option {name!r} in data {spec!r} must be given once, as {name}=VALUE; {known}")
        seen[name] = text
    return list(seen.items())


def check_dense_spec(task: str, spec: str, height_px: int | None = None, width_px: int | None = None) -> DenseSpec:
    """Check at plan time, before any file is opened, that a spec has annotations for a task; return what it says.

    With a size, of the crops of segmentation and the canvas of detection, that is checked too.

    Raises:
        ValueError: what `parse_dense_spec` raises, an unknown task, one that the data have no annotations for, or
            a side below 32 px.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r} of data {spec!r}; {nearest(task, TASKS)}known: {', '.join(TASKS)}")
    parsed = parse_dense_spec(spec)
    if task not in TASKS_OF[parsed.kind]:
        kinds = [kind for kind, tasks in TASKS_OF.items() if task in tasks]
        raise ValueError(
            f"data {spec!r} has no annotations for task {task!r}; {parsed.kind} is for "
            f"{' and '.join(TASKS_OF[parsed.kind])}, {task} takes {', '.join(kinds)}"
        )
    sides = [side for side in (height_px, width_px) if side is not None]
    if sides and min(sides) < MIN_SIDE_PX:
        raise ValueError(
            f"task {task!r} needs sides of at least {MIN_SIDE_PX} px, the coarsest stride of a backbone, "
            f"got {height_px}x{width_px} px"
        )
    return parsed


def check_name(name: object, what: str) -> str:
    """Return a name of a file below a folder, as a stranger's file gives it.

    Raises:
        ValueError: it is none, or it leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{what} must be the name of a file, got {str(name)[:80]!r}")
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or parts[0].endswith(":"):
        raise ValueError(f"{what} {name[:80]!r} leads out of the folder; a name below it is wanted")
    return name


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name is meant, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
