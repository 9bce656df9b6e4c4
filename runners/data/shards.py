"""Images of WebDataset's shards by number, of which timm's own reader is a stream.

A sample is the files of one key, which follow one another in a tar: `0001.jpg`, and `0001.cls` with the number of its
class. Where `target_key`, or `alt_label` of `_info.json`, names a field, the number is that field of `0001.json`, and a
sample with a number below 0 is left out, as in timm. Here headers and labels are read, and images by their places.
Nothing else of a sample is opened.
"""

import itertools
import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from runners.data.image_specs import ImageSpec
from runners.data.listing import FileImages, Ints, is_image, shown, told_if_slow
from runners.data.shard_names import INFO, Split, find_shards, read_info
from runners.data.tars import check_whole, open_part, tar_files, told_if_damaged

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Endings of images; of several in a sample the first in this order is taken."""
MAX_LABEL_BYTES = 1 << 20
SHOWN = 20
"""Characters of a label that a message shows."""

_ORDER = "; the files of a key must follow one another"

Files = dict[str, tarfile.TarInfo]
"""Files of a sample by their endings."""


class Keys(NamedTuple):
    """Endings of images, and the field of labels, if they are in JSON."""

    images: tuple[str, ...]
    field: str

    @property
    def label(self) -> str:
        """Ending of labels."""
        return "json" if self.field else "cls"


class Shards(FileImages):
    """Images of some shards, named `SHARD/KEY.jpg`."""

    def __init__(
        self,
        where: str,
        classes: tuple[str, ...],
        names: Sequence[bytes],
        labels: Ints,
        shards: Sequence[Path],
        places: Ints,
    ) -> None:
        """Take images by the number of their shard, and offset and size in it: (N, 3)."""
        super().__init__(where, classes, names, labels)
        self._shards, self._places = tuple(shards), places

    def open(self, index: int) -> IO[bytes]:
        """Open the file of an image.

        Raises:
            OSError: its shard cannot be read.
        """
        shard, offset, size = self._places[index].tolist()
        return open_part(self._shards[shard], offset, size)


class _Index(NamedTuple):
    """What is found in the shards of a split; `places` (N, 3)."""

    where: str
    shards: list[Path]
    names: list[bytes]
    labels: Ints
    places: Ints

    def images(self, classes: tuple[str, ...]) -> Shards:
        """Images of some classes.

        Raises:
            ValueError: one is of another class.
        """
        if self.labels.max() >= len(classes):
            odd = shown(self.names[int(self.labels.argmax())])
            raise ValueError(f"{odd} is of class {self.labels.max()}, classes are 0 to {len(classes) - 1}")
        return Shards(self.where, classes, self.names, self.labels, self.shards, self.places)


def open_shards(spec: ImageSpec) -> tuple[Shards, Shards]:
    """Index the shards of the training and of the test images.

    Raises:
        ValueError: there are none, one is damaged, or a sample has no image, no label, or one of no class.
    """
    root = Path(spec.root)
    if not root.is_dir():
        raise ValueError(f"{root} {'is no folder of shards' if root.exists() else 'does not exist'}")
    with told_if_slow(root), told_if_damaged(root):
        info = read_info(root)
        train, val = (
            _index(spec, root, name, find_shards(root, spec.name, name, info))
            for name in (spec.train_split, spec.val_split)
        )
    classes = info.classes or _numbers(train)
    return train.images(classes), val.images(classes)


def _numbers(train: _Index) -> tuple[str, ...]:
    """Numbers for the names of classes, each of which has a training image."""
    found = np.unique(train.labels)
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if len(gaps):
        raise ValueError(
            f"{train.where} has labels up to {found[-1]} and none of class {gaps[0]}; they must be 0 to C - 1, unless "
            f'"classes" of {INFO[0]} is a list of all names'
        )
    return tuple(map(str, found.tolist()))


def _index(spec: ImageSpec, root: Path, name: str, split: Split) -> _Index:
    where = f"split {name!r} of {spec.name}"
    images = tuple(spec.input_key.lower().split(";")) if spec.input_key else IMAGES
    keys = Keys(images, spec.target_key or split.label_key)
    names: list[bytes] = []
    # label, shard, offset and size of each sample
    numbers = array("q")
    left_out = 0
    for number, shard in enumerate(split.shards):
        for member, label in _samples(root / shard, keys):
            if label < 0:
                left_out += 1
                continue
            names.append(os.fsencode(f"{shard}/{member.name.removeprefix('./')}"))
            numbers.extend((label, number, member.offset_data, member.size))
    if not names:
        raise ValueError(f"{where} holds no samples, a KEY.{images[0]} beside a KEY.{keys.label}")
    if split.samples not in (None, len(names), len(names) + left_out):
        raise ValueError(f"{where} holds {len(names) + left_out} samples, not the {split.samples} that it should")
    found = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 4)
    return _Index(where, [root / shard for shard in split.shards], names, found[:, 0].copy(), found[:, 1:].copy())


def _samples(path: Path, keys: Keys) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Images of a shard with their labels, -1 for those that are left out.

    Raises:
        ValueError: the shard is damaged, or a sample is strange.
    """
    seen: Counter[bytes] = Counter()
    with told_if_damaged(path), open(path, "rb") as file:
        for key, group in itertools.groupby(_files(file), lambda found: found[0]):
            try:
                files: Files = {}
                for _, ending, member in group:
                    if ending in files:
                        raise ValueError(f"two files end in .{ending}")
                    files[ending] = member
                found = _sample(file, files, keys)
                seen[key] += found is not None
                if seen[key] > 1:
                    raise ValueError("two samples have this key")
            except ValueError as error:
                raise ValueError(f"{shown(str(path))}: {shown(key)}: {error}") from error
            if found is not None:
                yield found


def _files(file: IO[bytes]) -> Iterator[tuple[bytes, str, tarfile.TarInfo]]:
    """Files of a shard with their keys and endings: all behind the first dot of a name, as in WebDataset."""
    for _, member, parts in tar_files(file):
        key, dot, ending = parts[-1].partition(b".")
        if dot:
            yield b"/".join((*parts[:-1], key)), os.fsdecode(ending).lower(), member


def _sample(file: IO[bytes], files: Files, keys: Keys) -> tuple[tarfile.TarInfo, int] | None:
    """Image and label of some files of one key, None if they are no sample.

    Raises:
        ValueError: one of both is missing, or the label is no number.
    """
    image = next((files[ending] for ending in keys.images if ending in files), None)
    label = files.get(keys.label)
    if image is None:
        if label is None or keys.label == "json":
            odd = next((ending for ending in files if ending == "cls" or is_image(b"KEY." + os.fsencode(ending))), None)
            if odd is None:
                return None
        raise ValueError(f"no image, KEY.{' or KEY.'.join(keys.images)}; input_key= names other endings{_ORDER}")
    if label is None:
        other = "; target_key= names a field of KEY.json" if "json" in files and not keys.field else ""
        raise ValueError(f"no label, KEY.{keys.label}{other or _ORDER}")
    check_whole(image)
    check_whole(label)
    if label.size > MAX_LABEL_BYTES:
        raise ValueError(f"a label of {label.size} bytes")
    file.seek(label.offset_data)
    content = file.read(label.size)
    return image, _field(content, keys.field) if keys.field else _number(content.decode(errors="replace"), low=0)


def _number(text: str, low: int | None = None) -> int:
    found = re.fullmatch(r"\s*(-?\d{1,18})\s*", text, re.ASCII)
    if not found or (low is not None and int(found[1]) < low):
        raise ValueError(f"its label {text[:SHOWN]!r} is no number of a class")
    return int(found[1])


def _field(content: bytes, field: str) -> int:
    """Number in a field of some JSON; `a/b` is b in a, and what is below 0 becomes -1."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("its label is no JSON") from error
    whole = isinstance(value, dict) and field in value
    for part in (field,) if whole else field.split("/"):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"its JSON has no field {field!r}")
        value = value[part]
    return max(-1, _number(str(value) if type(value) in (int, str) else repr(value)))
