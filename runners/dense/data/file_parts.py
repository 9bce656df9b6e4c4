"""Images of files with annotations as data: the order of training, canvases of batches, and the test."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runners.data.dense_augment import DenseAugmentation, padded
from runners.data.images import keys_of_steps
from runners.dense.data.opened import Opened, steps_of
from runners.dense.data.samples import Canvas, TestSamples, TrainKey, TrainSamples
from runners.dense.data.sources import Ints, Source
from runners.dense.data.transforms import DetectTransform, SegmentTransform


@dataclass(frozen=True)
class FileParts:
    """Images to learn from and others for the test; implements `runners.dense.data.batches.Parts`.

    All images of a training batch lie on one canvas, the smallest that holds each of them as its annotation says its
    size. So the canvas does not depend on which process reads which image, and an image that stands in for a broken
    one is made to fit.
    """

    train: Source
    val: Source
    train_indices: Ints
    val_indices: Ints
    task: str
    augmentation: DenseAugmentation
    height_px: int
    width_px: int

    @classmethod
    def of(
        cls, opened: Opened, task: str, augmentation: DenseAugmentation, height_px: int, width_px: int
    ) -> "FileParts":
        """Take the images of data that are open.

        Raises:
            ValueError: there is no image to learn from.
        """
        assert opened.train is not None and opened.val is not None
        indices = opened.train_indices(keep_empty=augmentation.keep_empty)
        numbers = np.arange(len(opened.val))
        return cls(opened.train, opened.val, indices, numbers, task, augmentation, height_px, width_px)

    @property
    def n_train(self) -> int | None:
        """Training images."""
        return len(self.train_indices)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Steps of an epoch; images that do not fill a batch are left out.

        Raises:
            ValueError: the batch is larger than the training set.
        """
        return steps_of(len(self.train_indices), batch_size, of=len(self.train))

    def train_samples(self, seed: int) -> TrainSamples:
        """Changed images by their keys."""
        return TrainSamples(self.train, self.train_indices, self._transform(training=True), seed)

    def train_keys(self, seed: int, start: int, stop: int, batch_size: int) -> Iterator[list[TrainKey]]:
        """Keys of the whole batch of each step."""
        transform = self._transform(training=True)
        for keys in keys_of_steps(self.train_indices, 1, batch_size, seed, start, stop):
            canvas = None
            if isinstance(transform, DetectTransform):
                sizes = [self._padded(self.train, key.image, transform) for key in keys]
                canvas = max(height for height, _ in sizes), max(width for _, width in sizes)
            yield [TrainKey(key, canvas) for key in keys]

    def test_samples(self) -> TestSamples:
        """Test images by their numbers."""
        return TestSamples(self.val, self._transform(training=False))

    def test_keys(self) -> list[int]:
        """Numbers of the test images; those of one size follow one another, so that they make a batch."""
        transform = self._transform(training=False)
        if not isinstance(transform, DetectTransform):
            return list(self.val_indices.tolist())
        return sorted(self.val_indices.tolist(), key=lambda index: (self._padded(self.val, index, transform), index))

    def divided(self, share: float) -> "FileParts":
        """Training images alone: a share of them, at least one, is the test."""
        count = len(self.train_indices)
        if count < 2:
            raise ValueError(f"at least two training images are needed to keep some apart, got {count}")
        kept = np.random.default_rng(0).permutation(count)[: min(count - 1, max(1, round(share * count)))]
        rest = np.setdiff1d(np.arange(count), kept)
        return replace(
            self,
            val=self.train,
            train_indices=self.train_indices[rest],
            val_indices=self.train_indices[np.sort(kept)],
        )

    def _transform(self, *, training: bool) -> SegmentTransform | DetectTransform:
        kind: Any = SegmentTransform if self.task == "segment" else DetectTransform
        transform: SegmentTransform | DetectTransform = kind(
            self.augmentation, self.height_px, self.width_px, training=training
        )
        return transform

    @staticmethod
    def _padded(source: Source, index: int, transform: DetectTransform) -> Canvas:
        size = source.size(index)
        assert size is not None
        return padded(*transform.fitted(*size))
