"""Images of data sets in Python: those of timm (hfds/, torch/), and a class of the user's.

A class `package.module:Class` is called as `Class(split="train")` and `Class(split="val")`. What it returns is a torch
Dataset of known length: item i is a pair of an image (a PIL image, a path, or a tensor or array that torchvision's
`to_pil_image` takes) and the number of its class. The data set has `classes`, the names of the classes, or
`num_classes`. An item that raises OSError or ValueError is an image that cannot be read; any other error ends the run.
"""

import contextlib
import importlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from runners.data.decode import decode, finish
from runners.data.image_specs import OWN, ImageSpec
from runners.data.listing import Ints


class DatasetImages:
    """Images of a torch Dataset."""

    def __init__(self, where: str, dataset: Any, classes: tuple[str, ...], labels: Ints | None) -> None:
        """Take a data set that is open.

        Raises:
            ValueError: it is empty, or has labels outside of its classes.
        """
        self.where, self.dataset, self.classes, self.labels = where, dataset, classes, labels
        if not len(self):
            raise ValueError(f"{where} holds no images")
        if labels is not None and (len(labels) != len(self) or labels.min() < 0 or labels.max() >= len(classes)):
            raise ValueError(
                f"{where} has {len(labels)} labels from {labels.min()} to {labels.max()}, of {len(self)} images and "
                f"{len(classes)} classes"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Read an image, upright and in RGB, and the number of its class.

        Raises:
            ValueError: it cannot be read.
            TypeError: the item is no pair of an image and the number of a class.
        """
        try:
            image, label = self._item(index)
            found = _to_image(image)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ValueError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
        number = int(label)
        if not 0 <= number < len(self.classes):
            raise TypeError(f"{self.name(index)} is of class {label}, classes are 0 to {len(self.classes) - 1}")
        return found, number

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self.dataset[index]
        if not isinstance(item, Sequence) or len(item) != 2:
            raise TypeError(f"{self.name(index)} is no pair of an image and the number of its class")
        return item[0], item[1]

    def name(self, index: int) -> str:
        """Name of an image: its number."""
        return f"image {index} of {self.where}"

    def identity(self) -> Iterable[bytes]:
        """Names of the classes, the number of images, and labels if they are known."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return "\0".join(self.classes).encode(errors="replace"), str(len(self)).encode(), labels


class ReaderImages(DatasetImages):
    """Images of one of timm's readers, decoded here."""

    def _item(self, index: int) -> tuple[Any, Any]:
        file, label = self.dataset[index]
        with file:
            return decode(file), label


def open_dataset(spec: ImageSpec, split: str) -> DatasetImages:
    """Open the images `train` or `val` of a spec.

    Raises:
        ValueError: they cannot be opened, as a line that says why.
    """
    if spec.kind == OWN:
        return _open_own(spec.name, split)
    return _open_timm(spec, spec.train_split if split == "train" else spec.val_split)


def _open_own(name: str, split: str) -> DatasetImages:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"it cannot be imported: {_line(error)}") from error
    try:
        dataset = factory(split=split)
        classes, targets = _classes(dataset), getattr(dataset, "targets", None)
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise TypeError("it has no length or no items by number; a torch Dataset is needed")
        labels = None if targets is None else np.asarray(targets, dtype=np.int64).reshape(-1)
    except Exception as error:
        raise ValueError(f"{attribute}(split={split!r}) fails: {_line(error)}") from error
    return DatasetImages(f"{attribute}(split={split!r})", dataset, classes, labels)


def _classes(dataset: Any) -> tuple[str, ...]:
    names, count = getattr(dataset, "classes", None), getattr(dataset, "num_classes", None)
    if names is None and isinstance(count, int):
        names = range(count)
    if names is None:
        raise TypeError("it has neither classes, a list of names, nor num_classes")
    return tuple(map(str, names))


def _open_timm(spec: ImageSpec, split: str) -> DatasetImages:
    from timm.data import create_dataset

    prefix = spec.name.partition("/")[0].lower()
    keys = {name: text for name in ("input_key", "target_key") if (text := getattr(spec, name))}
    where = f"split {split!r} of {spec.name}"
    if prefix == "torch" and not spec.root:
        raise ValueError("torch/ needs root=PATH, the folder in which torchvision keeps the data set")
    try:
        with _offline(spec.download), contextlib.redirect_stdout(io.StringIO()):
            dataset: Any = create_dataset(
                spec.name, root=spec.root or None, split=split, download=spec.download, search_split=True, **keys
            )
    except ImportError as error:
        raise ValueError(f"it needs a package that is not here: {_line(error)}; pip install datasets") from error
    except Exception as error:
        more = "" if spec.download else "; nothing is downloaded without download=on"
        raise ValueError(f"{where} cannot be opened: {_line(error)}{more}") from error
    if prefix == "torch":
        targets = getattr(dataset, "targets", None)
        if targets is None or np.ndim(targets) != 1:
            raise ValueError(f"{where} does not list its labels as numbers; write a class of your own that returns it")
        labels = np.asarray(targets, dtype=np.int64)
        return DatasetImages(where, dataset, _names(getattr(dataset, "classes", None), labels), labels)
    labels = np.fromiter(dataset.reader.iter_targets(), dtype=np.int64)
    by_number = {number: name for name, number in dataset.reader.class_to_idx.items()}
    names = [by_number[number] for number in sorted(by_number)]
    return ReaderImages(where, dataset.reader, _names(names, labels), labels)


def _names(names: Sequence[Any] | None, labels: Ints) -> tuple[str, ...]:
    """Names of the classes, numbers where there are none."""
    return tuple(map(str, names)) if names else tuple(map(str, range(int(labels.max(initial=-1)) + 1)))


@contextlib.contextmanager
def _offline(download: bool) -> Iterator[None]:
    """Context in which the hub's libraries take only what is on disk, unless something may be downloaded."""
    if download:
        yield
        return
    before: list[tuple[Any, Any]] = []
    for name in ("huggingface_hub.constants", "datasets.config"):
        with contextlib.suppress(ImportError):
            module: Any = importlib.import_module(name)
            before.append((module, getattr(module, "HF_HUB_OFFLINE", False)))
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in before:
            module.HF_HUB_OFFLINE = value


def _to_image(value: Any) -> Image.Image:
    """Turn what a data set gives into an RGB image.

    Raises:
        TypeError: it is none of the kinds that are read.
    """
    if isinstance(value, (str, Path)):
        return decode(value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        from torchvision.transforms.functional import to_pil_image

        return finish(to_pil_image(value))
    if not isinstance(value, Image.Image):
        raise TypeError(f"{type(value).__name__} is no image, path or tensor")
    return finish(value)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
