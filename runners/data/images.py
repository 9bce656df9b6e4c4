"""Images of files as training data: seeded sample by sample, read by worker processes, the same whatever their number.

The order of an epoch follows from (seed, epoch), the draws of a sample from (seed, epoch, index, repeat), those of
Mixup and CutMix from (seed, step). So a training can begin at any step, and several processes share out a batch: each
takes pairs that Mixup joins, and all together see what one process would see. A test image is resized and its centre
taken. An image that cannot be read is left out of the test; in training the next one that can stands in for it. Both
are counted and named.
"""

import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runners.data.augment import Augmentation, Pixels, eval_transform, make_mixup, train_transform
from runners.data.decode import decode
from runners.data.folders import Folders, Listing
from runners.data.seeding import drawn_from

ORDER, SAMPLE, MIXUP = 0, 1, 2
"""First word of every seed, so that no two kinds of draws are the same."""
SELECTED_ROUND = 256
"""Repeated augmentation drops images until their number is a multiple of this, as its official code does."""


class Key(NamedTuple):
    """A sample of a training: its epoch, the image, and which of its repeats in that epoch it is."""

    epoch: int
    index: int
    repeat: int


class Sample(NamedTuple):
    """An image as a model sees it, its label, and what could not be read on the way to it."""

    image: Tensor | None
    label: int
    broken: dict[str, str]


class Batch(NamedTuple):
    """Images (b, 3, H, W), labels (b,) or shares of classes (b, C), and the factor by which their mean loss counts."""

    images: Tensor
    targets: Tensor
    share: float


class BrokenImage(ValueError):
    """An image cannot be read, and none may be left out."""


class TrainSamples(Dataset[Sample]):
    """Changed training images by their keys."""

    def __init__(self, listing: Listing, indices: Any, transform: Any, seed: int) -> None:
        """Take the images `indices`, which ascend, of a listing."""
        self.listing, self.indices, self.transform, self.seed = listing, indices, transform, seed

    def __getitem__(self, key: Key) -> Sample:
        """Read and change an image; of one that cannot be read, the next that can.

        Raises:
            BrokenImage: none of them can be read.
        """
        broken: dict[str, str] = {}
        first = int(np.searchsorted(self.indices, key.index))
        for index in (int(i) for i in itertools.chain(self.indices[first:], self.indices[:first])):
            try:
                image = _read(self.listing, index)
            except ValueError as error:
                broken[self.listing.name(index)] = str(error)
                continue
            with drawn_from(SAMPLE, self.seed, *key):
                return Sample(self.transform(image), int(self.listing.labels[index]), broken)
        raise BrokenImage(f"no image of {self.listing.path} can be read")


class TestSamples(Dataset[Sample]):
    """Test images by their numbers; `image` is None where one cannot be read."""

    def __init__(self, listing: Listing, transform: Any) -> None:
        """Take images of a listing."""
        self.listing, self.transform = listing, transform

    def __getitem__(self, index: int) -> Sample:
        """Read an image."""
        label = int(self.listing.labels[index])
        try:
            return Sample(self.transform(_read(self.listing, index)), label, {})
        except ValueError as error:
            return Sample(None, label, {self.listing.name(index): str(error)})


def _read(listing: Listing, index: int) -> Any:
    with listing.open(index) as file:
        return decode(file)


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
    """

    folders: Folders
    pixels: Pixels
    batch_size: int
    augmentation: Augmentation
    smoothing: float = 0.0
    workers: int = 1
    strict: bool = False
    broken: dict[str, str] = field(default_factory=dict)

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
        """
        transform = train_transform(self.augmentation, self.pixels)
        mixup = make_mixup(self.augmentation, self.num_classes, self.smoothing)
        samples = TrainSamples(self.folders.train, self.folders.train_indices, transform, seed)
        mine = part_of_batch(self.batch_size, rank, world_size)
        share = len(mine) * world_size / self.batch_size
        keys = ([key[i] for i in mine] for key in self._keys(seed, start, stop))
        for step, (images, labels, broken) in zip(range(start, stop), self._load(samples, keys), strict=True):
            self._note(broken)
            targets = labels
            if mixup is not None:
                with drawn_from(MIXUP, seed, step):
                    images, targets = mixup(images, labels)
            yield Batch(images, targets, share)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the whole batch of one step."""
        images, targets, _ = next(self.train_batches(seed, step, step + 1))
        return images, targets

    def eval_batches(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images that can be read, of several processes every n-th."""
        indices = self.folders.val_indices[rank::world_size].tolist()
        parts = (indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size))
        samples = TestSamples(self.folders.val, eval_transform(self.augmentation, self.pixels))
        for images, labels, broken in self._load(samples, parts):
            self._note(broken)
            if len(labels):
                yield images, labels

    def _load(self, samples: Any, batches: Any) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=_Once(batches),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_forget_signals,
        )
        yield from loader

    def _keys(self, seed: int, start: int, stop: int) -> Iterator[list[Key]]:
        """Keys of the whole batch of each step."""
        order: list[Key] = []
        for step in range(start, stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if not order or order[0].epoch != epoch:
                order = epoch_keys(self.folders.train_indices, self.augmentation.repeats, seed, epoch)
            yield order[position * self.batch_size : (position + 1) * self.batch_size]

    def _note(self, broken: dict[str, str]) -> None:
        if broken and self.strict:
            name, reason = next(iter(broken.items()))
            raise BrokenImage(f"{name} cannot be read: {reason}")
        for name, reason in broken.items():
            if name not in self.broken:
                print(f"warning: {name} cannot be read: {reason}; it is left out", flush=True)
        self.broken.update(broken)


class _Once:
    """An iterator as DataLoader wants its batches: something that can be iterated over."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def images_per_epoch(count: int, repeats: int) -> int:
    """Images that an epoch of `count` training images has."""
    return len(_sampler(count, repeats))


def _sampler(count: int, repeats: int) -> RepeatAugSampler:
    # timm's for one process: the processes of a training share out each batch, not the images
    rounding = SELECTED_ROUND if repeats > 1 else 0
    return RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=rounding)


def epoch_keys(indices: Sequence[int] | Any, repeats: int, seed: int, epoch: int) -> list[Key]:
    """Return the samples of an epoch in their order."""
    sampler = _sampler(len(indices), repeats)
    sampler.set_epoch(int(np.random.SeedSequence((ORDER, seed, epoch)).generate_state(1, np.uint64)[0] >> 1))
    keys = []
    for position, same in itertools.groupby(sampler):
        keys += [Key(epoch, int(indices[position]), repeat) for repeat, _ in enumerate(same)]
    return keys


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


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, dict[str, str]]:
    broken: dict[str, str] = {}
    for sample in samples:
        broken |= sample.broken
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    return torch.stack(images) if images else torch.empty(0), torch.tensor(labels), broken


def _forget_signals(worker: int) -> None:
    """Let a reading process end when it is told to: its parent may hold signals back, see runners/train/notices.py."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
