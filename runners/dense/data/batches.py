"""From the name of data of a dense task to batches: `make_dense_data`.

Every image is read as `runners.data.images` reads one: the order of an epoch follows from (seed, epoch), the draws of
an image from (seed, epoch, index, repeat). So a training may begin at any step, any number of processes shares out a
batch, and any number of workers reads it: the bits are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from runners.data.datasets import HELD_OUT_SHARE
from runners.data.dense_augment import PUBLISHED, DenseAugmentation
from runners.data.image_specs import IMAGENET_MEAN, IMAGENET_STD
from runners.data.images import Batch, DataError, note_broken, read_ahead
from runners.data.loading import spare_processors
from runners.dense.data.file_parts import FileParts
from runners.dense.data.opened import Opened, open_dense
from runners.dense.data.samples import Labels, Samples, collate
from runners.dense.data.scene import SCENE_MEAN, SCENE_STD
from runners.dense.data.scenes import SceneParts
from runners.dense.data.specs import check_dense_spec


class Parts(Protocol):
    """Training and test images of one kind of data, by keys that say all that is drawn."""

    @property
    def n_train(self) -> int | None:
        """Training images; None where they are drawn."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Steps of one pass over the training images, None for an endless stream."""
        ...

    def train_samples(self, seed: int) -> Any:
        """Samples of a training by their keys."""
        ...

    def train_keys(self, seed: int, start: int, stop: int, batch_size: int) -> Iterator[list[Any]]:
        """Keys of the whole batch of each step."""
        ...

    def test_samples(self) -> Any:
        """Samples of the test by their keys."""
        ...

    def test_keys(self) -> list[Any]:
        """Keys of the test."""
        ...

    def divided(self, share: float) -> "Parts":
        """Training images alone, a share of them as the test."""
        ...


@dataclass
class DenseData:
    """Images of a dense task at one resolution; `broken` names those that could not be read, with the reason.

    Images are (b, 3, H, W) float32, normalised; targets are labels (b, H, W) int64 with 255 for what is ignored, or
    `runners.dense.targets.Targets`. Training batches of segmentation are crops of the resolution; those of detection
    are padded to multiples of 32 px.

    Attributes:
        task: `segment`, `detect` or `instance`.
        opened: names of the classes, and what identifies the data.
        parts: which images there are.
        batch_size: images of a step, over all processes.
        workers: processes that read ahead; 0 reads in this one.
        strict: an image that cannot be read ends the run.
    """

    task: str
    opened: Opened
    parts: Parts
    batch_size: int
    workers: int = 1
    strict: bool = False
    broken: dict[str, str] = field(default_factory=dict)
    ceiling_percent: float | None = None
    chance_percent: float | None = None

    def __post_init__(self) -> None:
        """Check the batch.

        Raises:
            ValueError: it is empty, or larger than an epoch.
        """
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {self.batch_size}")
        self.parts.steps_per_epoch(self.batch_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.opened.classes

    @property
    def num_classes(self) -> int:
        """Classes of segmentation without what is ignored, of detection without the background."""
        return len(self.class_names)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the training images, None for an endless stream."""
        return self.parts.steps_per_epoch(self.batch_size)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the channels, taken from the values of images in [0, 1]."""
        return IMAGENET_MEAN if self.opened.train is not None else SCENE_MEAN

    @property
    def std(self) -> tuple[float, ...]:
        """Of the channels; what they are divided by then."""
        return IMAGENET_STD if self.opened.train is not None else SCENE_STD

    @property
    def n_train(self) -> int | None:
        """Training images; None where they are drawn."""
        return self.parts.n_train

    def fingerprint(self, code: str = "") -> str:
        """Hash of names and annotations of all images, and of the code that reads them: 16 hex digits."""
        return self.opened.fingerprint(code)

    def train_batches(self, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yield one process's part of the batches of the steps start .. stop - 1.

        Raises:
            ValueError: fewer images than processes.
            BrokenImage: an image cannot be read, and `strict` is set.
            DataError: none of many in a row can be.
        """
        if self.batch_size < world_size:
            raise ValueError(
                f"a global batch of {self.batch_size} images cannot be shared out to {world_size} processes; give "
                f"--batch-size {world_size} or more, or fewer processes"
            )
        mine = np.array_split(np.arange(self.batch_size), world_size)[rank].tolist()
        share = len(mine) * world_size / self.batch_size
        keys = ([key[i] for i in mine] for key in self.parts.train_keys(seed, start, stop, self.batch_size))
        for found in self._load(self.parts.train_samples(seed), keys):
            (group,) = found.groups
            images, targets = group.unpacked
            yield Batch(images, targets, share)

    def batch(self, seed: int, step: int) -> tuple[Any, Labels]:
        """Return the whole batch of one step."""
        batch = next(self.train_batches(seed, step, step + 1))
        return batch.images, batch.targets

    def eval_batches(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Any, Labels]]:
        """Yield the test images that can be read, of several processes every n-th, those of a batch of one size.

        Raises:
            BrokenImage: an image cannot be read, and `strict` is set.
            DataError: none can be.
        """
        every = self.parts.test_keys()
        keys = every[rank::world_size]
        parts = (keys[first : first + self.batch_size] for first in range(0, len(keys), self.batch_size))
        count = 0
        for found in self._load(self.parts.test_samples(), parts):
            for group in found.groups:
                count += len(group.images)
                yield group.unpacked
        if not count and world_size == 1:  # of several processes one may have none; who joins them counts
            raise DataError(f"none of the {len(every)} test images can be read")

    def for_tuning(self) -> "DenseData":
        """Test on a tenth of the training images, as a test image is read, and train on the others."""
        return replace(self, parts=self.parts.divided(HELD_OUT_SHARE), broken={})

    def _load(self, samples: Any, keys: Any) -> Iterator[Samples]:
        for found in read_ahead(samples, keys, self.workers, collate):
            note_broken(self.broken, found.broken, found.failure, strict=self.strict)
            yield found


def make_dense_data(
    task: str,
    spec: str,
    height_px: int,
    width_px: int,
    batch_size: int,
    recipe_fields: DenseAugmentation | None = None,
    *,
    workers: int | None = None,
    strict: bool = False,
) -> DenseData:
    """Load the data that a spec names for a task; the fields are the published ones if they are not given.

    The resolution is that of the crops of segmentation. An image of detection gets the short side of it, or less where
    its long side would exceed that of the resolution, as in mmdet: 800 x 1333.

    Raises:
        ValueError: a task, spec, resolution or batch size that does not fit, or files that are not what they should be.
    """
    parsed = check_dense_spec(task, spec, height_px, width_px)
    opened = open_dense(spec, task)
    parts: Parts
    if opened.train is None:
        parts = SceneParts.of(parsed, task, height_px, width_px)
    else:
        parts = FileParts.of(opened, task, recipe_fields or PUBLISHED[task], height_px, width_px)
    data = DenseData(
        task, opened, parts, batch_size, workers=spare_processors() if workers is None else workers, strict=strict
    )
    for warning in opened.warnings:
        print(f"warning: {warning}", flush=True)
    for note in opened.notes(keep_empty=recipe_fields is not None and recipe_fields.keep_empty):
        print(f"note: {note}", flush=True)
    return data
