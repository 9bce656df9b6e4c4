"""Which shards of WebDataset are the training and the test images, by timm's convention.

`_info.json` (or `info.json`) beside the shards has `splits`, each with its `filenames`. A split may be a pattern
instead, `NAME-train-{0000..0099}.tar`, with the number of samples behind `|` if you like. Without either, the shards
are those whose names say so: `NAME-train-0000.tar`, `train-0000.tar`, `train.tar`.
"""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from runners.data.listing import shown

INFO = ("_info.json", "info.json")
SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
"""Names that timm takes for the same split."""
MAX_SHARDS = 1_000_000
"""Of a pattern."""


class Split(NamedTuple):
    """Shards of a split, below the root; how many samples they should hold, and the field of labels, if it is said."""

    shards: tuple[str, ...]
    samples: int | None = None
    label_key: str = ""


class Info(NamedTuple):
    """What `_info.json` says: its name, the names of the classes and the splits, if it has them."""

    name: str = INFO[0]
    classes: tuple[str, ...] = ()
    splits: dict[str, Split] | None = None


def read_info(root: Path) -> Info:
    """Read what is said of the shards, nothing if there is no such file.

    Raises:
        ValueError: it is damaged, or says something else.
        OSError: it cannot be read.
    """
    path = next((root / name for name in INFO if (root / name).exists()), None)
    if path is None:
        return Info()
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        splits = said.get("splits")
        classes = tuple(_texts(said.get("classes", [])))
        return Info(path.name, classes, splits and {name: _split(value) for name, value in splits.items()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not as timm writes it, splits with lists of filenames, and at most a list of classes"
        ) from error


def find_shards(root: Path, name: str, split: str, info: Info) -> Split:
    """Find the shards of a split.

    Raises:
        ValueError: there are none, one is missing or named twice, or the pattern is none.
        OSError: the root cannot be read.
    """
    if ".tar" in split or ".." in split:
        found = _of_pattern(split)
    elif info.splits is not None:
        found = _of_info(split, info, info.splits)
    else:
        found = Split(_by_name(root, name, split))
    seen: set[str] = set()
    for shard in found.shards:
        if shard in seen:
            raise ValueError(f"{shown(shard)} is named twice in split {split!r}")
        if not (root / shard).is_file():
            raise ValueError(f"{shown(str(root / shard))} does not exist")
        seen.add(shard)
    return found


def _split(value: Any) -> Split:
    samples = value.get("num_samples")
    if not (samples is None or type(samples) is int):
        raise TypeError
    return Split(tuple(_texts(value["filenames"])), samples, *_texts([value.get("alt_label") or ""]))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError
    return values


def _of_info(split: str, info: Info, splits: dict[str, Split]) -> Split:
    for word in _words(split):
        if word in splits:
            if not splits[word].shards:
                raise ValueError(f"{info.name} names no file of split {word!r}")
            return splits[word]
    raise ValueError(f"{info.name} has no split {split!r}; it has {', '.join(map(shown, splits)) or 'none'}")


def _words(split: str) -> tuple[str, ...]:
    """A split, and what else it may be called."""
    same = next((words for words in SYNONYMS if split in words), ())
    return tuple(dict.fromkeys((split, *same)))


def _by_name(root: Path, name: str, split: str) -> tuple[str, ...]:
    names, first = sorted(os.listdir(root)), name.rpartition("/")[2]
    for word in _words(split):
        shard = re.compile(rf"({re.escape(first)}[-_.])?{re.escape(word)}([-_.]?\d+(-of-\d+)?)?\.tar")
        if found := tuple(filter(shard.fullmatch, names)):
            return found
    raise ValueError(
        f"{root} has no shards {first}-{split}-*.tar or {split}-*.tar, nor {INFO[0]}; name them by "
        "train_split= and val_split=, as in train_split=train-{0000..0099}.tar"
    )


def _of_pattern(split: str) -> Split:
    pattern, bar, count = split.partition("|")
    if bar and not re.fullmatch(r"\d{1,18}", count, re.ASCII):
        raise ValueError(f"{count!r} behind | is no number of samples")
    shards = [shard for part in pattern.split("::") for shard in _expanded(part)]
    return Split(tuple(shards), int(count) if bar else None)


def _expanded(pattern: str) -> list[str]:
    """Names that a pattern with ranges as `{0000..0099}` stands for."""
    texts = re.split(r"\{(\d{1,18}\.\.\d{1,18})\}", pattern, flags=re.ASCII)
    if any(sign in text for text in texts[::2] for sign in "{}"):
        raise ValueError(f"{pattern!r} is no pattern; ranges are written {{0000..0099}}")
    ranges, count = [], 1
    for text in texts[1::2]:
        first, last = text.split("..")
        width = max(len(first), len(last)) if any(len(end) > 1 and end[0] == "0" for end in (first, last)) else 0
        numbers = range(int(first), int(last) + 1)
        count *= len(numbers)
        if not 0 < count <= MAX_SHARDS:
            raise ValueError(f"{{{text}}} of {pattern!r} stands for {count} shards; 1 to {MAX_SHARDS} can be read")
        ranges.append((numbers, width))
    spelled = ([f"{number:0{width}d}" for number in numbers] for numbers, width in ranges)
    return [
        "".join(itertools.chain(*itertools.zip_longest(texts[::2], chosen, fillvalue="")))
        for chosen in itertools.product(*spelled)
    ]
