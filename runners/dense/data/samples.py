"""Single images of dense tasks, read in any process: the draws of each follow from its key alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from runners.data.samples import SAMPLE, Key, first_readable
from runners.data.seeding import drawn_from
from runners.dense.data.sources import Ints, Source
from runners.dense.targets import Targets, pack, unpack

Canvas = tuple[int, int]


class TrainKey(NamedTuple):
    """An image of a training, and the height and width of its batch's canvas; None where that is fixed."""

    key: Key
    canvas: Canvas | None


class Sample(NamedTuple):
    """An image and its target, what could not be read on the way to it, and why there is none."""

    image: Tensor | None
    target: Any
    broken: dict[str, str]
    failure: str = ""


class Group(NamedTuple):
    """Images of one size, with their labels or what their targets were packed to."""

    images: Tensor
    targets: Any

    @property
    def unpacked(self) -> tuple[Tensor, Any]:
        """Images, and labels (b, H, W) int64 or Targets."""
        if isinstance(self.targets, Tensor):
            return self.images, self.targets.long()
        return self.images, unpack(self.targets)


class Samples(NamedTuple):
    """Samples of a batch, by the sizes of their images and labels; those without an image are left out."""

    groups: list[Group]
    broken: dict[str, str]
    failure: str


class TrainSamples(Dataset[Sample]):
    """Changed training images by their keys; in the place of one that cannot be read, the next that can."""

    def __init__(self, source: Source, indices: Ints, transform: Any, seed: int) -> None:
        """Take the images `indices`, which ascend."""
        self.source, self.indices, self.transform, self.seed = source, indices, transform, seed

    def __getitem__(self, item: TrainKey) -> Sample:
        """Read and change an image."""
        key, canvas = item

        def read(index: int) -> Sample:
            with drawn_from(SAMPLE, self.seed, *key):
                return _read(self.source, index, self.transform, canvas)

        sample: Sample = first_readable(self.indices, key.image, read)
        return sample


class TestSamples(Dataset[Sample]):
    """Test images by their numbers."""

    def __init__(self, source: Source, transform: Any) -> None:
        """Take images of a source."""
        self.source, self.transform = source, transform

    def __getitem__(self, index: int) -> Sample:
        """Read an image, if it can be."""
        return _read(self.source, index, self.transform, None)


def _read(source: Source, index: int, transform: Any, canvas: Canvas | None) -> Sample:
    """Read and transform an image; an error is told in a sample, for one of a process that reads would be a page."""
    try:
        try:
            image, annotation = source.read(index)
        except ValueError as error:
            return Sample(None, None, {source.name(index): str(error)})
        found, target = transform(image, annotation, canvas)
        return Sample(found, target, {})
    except Exception as error:
        return Sample(None, None, {}, f"{source.name(index)}: {type(error).__name__}: {error}")


def collate(samples: Sequence[Sample]) -> Samples:
    """Join samples to one tensor for each size, in the order in which the sizes come."""
    broken: dict[str, str] = {}
    by_size: dict[Any, list[Sample]] = {}
    for sample in samples:
        broken |= sample.broken
        if sample.image is not None and not sample.failure:
            sizes = sample.image.shape, sample.target.shape if isinstance(sample.target, Tensor) else None
            by_size.setdefault(sizes, []).append(sample)
    failure = next((sample.failure for sample in samples if sample.failure), "")
    return Samples([_joined(group) for group in by_size.values()], broken, failure)


def _joined(samples: list[Sample]) -> Group:
    images = torch.stack([sample.image for sample in samples if sample.image is not None])
    targets = [sample.target for sample in samples]
    return Group(images, torch.stack(targets) if isinstance(targets[0], Tensor) else pack(targets))


Labels = Tensor | Targets
"""Targets of a batch: labels (b, H, W) int64, or objects."""
