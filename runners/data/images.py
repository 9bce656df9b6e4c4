"""Images of files as training data: seeded sample by sample, read by worker processes, the same whatever their number.

The order of an epoch follows from (seed, epoch), the draws of a sample from (seed, epoch, index, repeat), those of
Mixup and CutMix from (seed, step). So a training can begin at any step, and several processes share out a batch: each
takes pairs that Mixup joins, and all together see what one process would see. A test image is resized and its centre
taken. An image that cannot be read is left out of the test; in training the next one that can stands in for it. Both
are counted and named.
"""

import itertools
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runners.data.augment import Augmentation, Pixels, eval_transform, make_mixup, train_transform
from runners.data.datasets import HELD_OUT_SHARE
from runners.data.folders import Folders
from runners.data.listing import Ints
from runners.data.order import epoch_order, images_per_epoch
from runners.data.samples import MIXUP, Key, Samples, TestSamples, TrainSamples, collate
from runners.data.seeding import drawn_from
from runners.data.token_labels import LabelMaps, mix_labels


class Batch(NamedTuple):
    """Images (b, 3, H, W), labels (b,) or shares of classes (b, C), and the factor by which their mean loss counts.

    `tokens` (b, h, w, C) are shares of classes of the places of the model's last map, where files say them.
    """

    images: Tensor
    targets: Tensor
    share: float
    tokens: Tensor | None = None


class BrokenImage(ValueError):
    """An image cannot be read, and none may be left out."""


class DataError(RuntimeError):
    """No image of many in a row can be read, or a data set of the user's fails."""


@dataclass
class ImageData:
    """Images of files at one resolution; `broken` names those that could not be read, with the reason.

    Attributes:
        folders: which images there are.
        pixels: their size and normalisation.
        batch_size: images of a step, over all processes.
        augmentation: how training images are changed.
        smoothing: of labels that Mixup and CutMix join.
        workers: processes that read ahead; 0 reads in this one.
        strict: an image that cannot be read ends the run.
        label_maps: labels of the places of training images, where files say them.
    """

    folders: Folders
    pixels: Pixels
    batch_size: int
    augmentation: Augmentation
    smoothing: float = 0.0
    workers: int = 1
    strict: bool = False
    broken: dict[str, str] = field(default_factory=dict)
    label_maps: LabelMaps | None = None

    def __post_init__(self) -> None:
        """Check the batch.

        Raises:
            ValueError: it is larger than an epoch, or odd where images are mixed in pairs.
        """
        if not 1 <= self.batch_size <= self.images_per_epoch:
            raise ValueError(f"batch size must be 1 to {self.images_per_epoch} for this data, got {self.batch_size}")
        if self.augmentation.mixes and self.batch_size % 2:
            raise ValueError(f"batch size must be even for Mixup and CutMix, got {self.batch_size}")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.folders.classes)

    @property
    def ceiling_percent(self) -> float | None:
        """There is no such figure for photographs."""
        return None

    @property
    def chance_percent(self) -> float:
        """What guessing gets where classes are equally frequent."""
        return 100 / self.num_classes

    @property
    def images_per_epoch(self) -> int:
        """Images of an epoch; with repeats each third comes three times."""
        return images_per_epoch(len(self.folders.train_indices), self.augmentation.repeats)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; images that do not fill a batch are left out."""
        return self.images_per_epoch // self.batch_size

    def train_batches(self, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yield this process's part of the batches of the steps start .. stop - 1.

        Raises:
            BrokenImage: an image cannot be read, and `strict` is set.
            DataError: none of many in a row can be, or a data set of the user's fails.
        """
        transform = train_transform(self.augmentation, self.pixels)
        mixup = make_mixup(self.augmentation, self.num_classes, self.smoothing)
        samples = TrainSamples(self.folders.train, self.folders.train_indices, transform, seed, self.label_maps)
        mine = part_of_batch(self.batch_size, rank, world_size)
        share = len(mine) * world_size / self.batch_size
        keys = ([key[i] for i in mine] for key in self._keys(seed, start, stop))
        for step, found in zip(range(start, stop), self._load(samples, keys), strict=True):
            images, labels, tokens = found.images, found.labels, found.tokens
            targets = labels
            if mixup is not None:
                with drawn_from(MIXUP, seed, step):
                    images, targets = mixup(images, labels)
                if tokens is not None:
                    with drawn_from(MIXUP, seed, step):
                        tokens = mix_labels(tokens, mixup, labels, self.pixels.height_px, self.pixels.width_px)
            yield Batch(images, targets, share, tokens)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the whole batch of one step."""
        batch = next(self.train_batches(seed, step, step + 1))
        return batch.images, batch.targets

    def eval_batches(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images that can be read, of several processes every n-th.

        Raises:
            BrokenImage: an image cannot be read, and `strict` is set.
            DataError: none can be, or a data set of the user's fails.
        """
        indices = self.folders.val_indices[rank::world_size].tolist()
        parts = (indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size))
        samples = TestSamples(self.folders.val, eval_transform(self.augmentation, self.pixels))
        count = 0
        for found in self._load(samples, parts):
            images, labels = found.images, found.labels
            count += len(labels)
            if len(labels):
                yield images, labels
        if not count and world_size == 1:
            raise DataError(f"none of the {len(indices)} test images can be read")

    def for_tuning(self) -> "ImageData":
        """Test on a tenth of the training images of each class, as a test image is read, and train on the others."""
        return replace(self, folders=self.folders.divided(HELD_OUT_SHARE), broken={})

    def _load(self, samples: Any, batches: Any) -> Iterator[Samples]:
        for found in read_ahead(samples, batches, self.workers, collate):
            note_broken(self.broken, found.broken, found.failure, strict=self.strict)
            yield found

    def _keys(self, seed: int, start: int, stop: int) -> Iterator[list[Key]]:
        return keys_of_steps(self.folders.train_indices, self.augmentation.repeats, self.batch_size, seed, start, stop)


def keys_of_steps(
    indices: Ints, repeats: int, batch_size: int, seed: int, start: int, stop: int
) -> Iterator[list[Key]]:
    """Yield keys of the whole batch of each of the steps start .. stop - 1, in epochs of the images `indices`."""
    per_epoch = images_per_epoch(len(indices), repeats) // batch_size
    for epoch, steps in itertools.groupby(range(start, stop), lambda step: step // per_epoch):
        order = epoch_order(len(indices), repeats, seed, epoch)
        for step in steps:
            first = step % per_epoch * batch_size
            places, numbers = order[:, first : first + batch_size]
            pairs = zip(indices[places].tolist(), numbers.tolist(), strict=True)
            yield [Key(epoch, *pair) for pair in pairs]


def note_broken(known: dict[str, str], broken: dict[str, str], failure: str, *, strict: bool) -> None:
    """Add images that could not be read to those `known`, and name the new ones.

    Raises:
        BrokenImage: there is one, and `strict` is set.
        DataError: the samples tell a failure.
    """
    if broken and strict:
        name, reason = next(iter(broken.items()))
        raise BrokenImage(f"{name} cannot be read: {reason}")
    for name, reason in broken.items():
        if name not in known:
            print(f"warning: {name} cannot be read: {reason}; it is left out", flush=True)
    known.update(broken)
    if failure:
        raise DataError(failure)


def read_ahead(
    samples: Any, batches: Iterator[Any], workers: int, collate: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    """Yield batches of samples by lists of their keys, read by `workers` processes; 0 reads in this one."""
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=_Once(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_forget_signals,
        # without one of its own it would draw from the global one, which a mechanism may draw from
        generator=torch.Generator(),
    )
    return iter(loader)


class _Once:
    """An iterator as DataLoader wants its batches: something that can be iterated over."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def part_of_batch(batch_size: int, rank: int, world_size: int) -> list[int]:
    """Places of a batch that a process takes: i always together with B - 1 - i, with which Mixup joins it.

    Raises:
        ValueError: fewer pairs than processes.
    """
    half = batch_size // 2
    if world_size == 1:
        return list(range(batch_size))
    if half < world_size:
        raise ValueError(
            f"a global batch of {batch_size} images cannot be shared out in pairs to {world_size} processes; give "
            f"--batch-size {2 * world_size} or more, or fewer processes"
        )
    first = np.array_split(np.arange(half), world_size)[rank].tolist()
    middle = [half] if batch_size % 2 and rank == world_size - 1 else []
    return [*first, *middle, *(batch_size - 1 - place for place in reversed(first))]


def _forget_signals(worker: int) -> None:
    """Let a reading process end when it is told to: its parent may hold signals back, see runners/train/notices.py."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
