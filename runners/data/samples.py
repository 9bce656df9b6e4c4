"""Single images as a model sees them, read in any process: the draws of each follow from its key alone."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from runners.data.listing import Images, Ints
from runners.data.seeding import drawn_from
from runners.data.token_labels import LabelMaps, drawn_box

SAMPLE, MIXUP, TEST = 1, 2, 3
"""First word of every seed, so that no two kinds of draws are the same; 0 is for the order of an epoch."""
MAX_BROKEN = 100
"""Images in a row that may be broken; more are no accident but a disk that is gone."""


class Key(NamedTuple):
    """A sample of a training: its epoch, the image, and which of its repeats in that epoch it is."""

    epoch: int
    image: int
    repeat: int


class Sample(NamedTuple):
    """An image as a model sees it, its label, what could not be read on the way to it, and why there is no image.

    `tokens` (h, w, C) are shares of classes of the places of the last map, where files say them.
    """

    image: Tensor | None
    label: int
    broken: dict[str, str]
    failure: str = ""
    tokens: Tensor | None = None


class Samples(NamedTuple):
    """Samples of one batch, those without an image left out."""

    images: Tensor
    labels: Tensor
    broken: dict[str, str]
    failure: str
    tokens: Tensor | None = None


class TrainSamples(Dataset[Sample]):
    """Changed training images by their keys."""

    def __init__(
        self, source: Images, indices: Ints, transform: Any, seed: int, label_maps: LabelMaps | None = None
    ) -> None:
        """Take the images `indices`, which ascend, with labels of their places where there are some."""
        self.source, self.indices, self.transform, self.seed = source, indices, transform, seed
        self.label_maps = label_maps

    def __getitem__(self, key: Key) -> Sample:
        """Read and change an image; of one that cannot be read, the next that can."""
        words = (SAMPLE, self.seed, *key)

        def read(index: int) -> Sample:
            with drawn_from(*words):
                return _read(self.source, index, self.transform, self.label_maps, words)

        sample: Sample = first_readable(self.indices, key.image, read)
        return sample


def first_readable(indices: Ints, image: int, read: Any) -> Any:
    """Read an image, or the next of `indices` that can be read, with all that could not on the way to it."""
    broken: dict[str, str] = {}
    first = int(np.searchsorted(indices, image))
    for index in itertools.islice(itertools.chain(indices[first:], indices[:first]), MAX_BROKEN):
        sample = read(int(index))
        broken |= sample.broken
        if sample.image is not None or sample.failure:
            return sample._replace(broken=broken)
    name, reason = next(iter(broken.items()))
    failure = f"{name} cannot be read, nor any of the {len(broken) - 1} behind it: {reason}"
    return sample._replace(broken=broken, failure=failure)


class TestSamples(Dataset[Sample]):
    """Test images by their numbers."""

    def __init__(self, source: Images, transform: Any) -> None:
        """Take images of a source."""
        self.source, self.transform = source, transform

    def __getitem__(self, index: int) -> Sample:
        """Read an image, if it can be."""
        # a data set of the user's may draw
        with drawn_from(TEST, index):
            return _read(self.source, index, self.transform)


def _read(
    source: Images, index: int, transform: Any, label_maps: LabelMaps | None = None, words: tuple[int, ...] = ()
) -> Sample:
    """Read and transform an image; an error is told in a sample, for one of a process that reads would be a page."""
    try:
        try:
            image, label = source.read(index)
        except ValueError as error:
            return Sample(None, 0, {source.name(index): str(error)})
        return Sample(transform(image), label, {}, tokens=_tokens(source, index, transform, image, label_maps, words))
    except Exception as error:
        return Sample(None, 0, {}, f"{source.name(index)}: {type(error).__name__}: {error}")


def _tokens(
    source: Images, index: int, transform: Any, image: Any, label_maps: LabelMaps | None, words: tuple[int, ...]
) -> Tensor | None:
    """Labels of the places of an image, cut and mirrored as the image was: drawn again from the same `words`."""
    if label_maps is None:
        return None
    with drawn_from(*words):
        box = drawn_box(transform, image)
    return label_maps.labels(source.name(index), box)


def collate(samples: list[Sample]) -> Samples:
    """Join samples to a batch."""
    broken: dict[str, str] = {}
    for sample in samples:
        broken |= sample.broken
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    failure = next((sample.failure for sample in samples if sample.failure), "")
    tokens = [sample.tokens for sample in samples if sample.tokens is not None]
    return Samples(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor(labels),
        broken,
        failure,
        torch.stack(tokens) if tokens else None,
    )
