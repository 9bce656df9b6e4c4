"""Scenes of digits as data: an endless training stream and a fixed test set, seeded image by image."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from runners.data.dense_augment import padded
from runners.data.probes import TEST_STREAM, TRAIN_STREAM, Digits, divide_digits, split_digits
from runners.dense.data.samples import Sample
from runners.dense.data.scene import draw_scene
from runners.dense.data.specs import DenseSpec
from runners.dense.data.transforms import on_canvas

TEST_SCENES = 256


class SceneSamples(Dataset[Sample]):
    """Scenes by the words of their seeds, for one task."""

    def __init__(self, parts: "SceneParts", digits: Digits) -> None:
        """Draw with these digits."""
        self.parts, self.digits = parts, digits

    def __getitem__(self, words: tuple[int, ...]) -> Sample:
        """Draw a scene; the last word is its number."""
        parts = self.parts
        scene = draw_scene(
            np.random.default_rng(words),
            self.digits,
            parts.height_px,
            parts.width_px,
            objects=parts.spec.objects,
            noise=parts.spec.noise,
            number=words[-1],
        )
        image = torch.from_numpy(scene.image)
        if parts.task == "segment":
            return Sample(image, torch.from_numpy(scene.labels), {})
        objects = scene.objects
        target = {
            "boxes": torch.from_numpy(objects.boxes.astype(np.float32)),
            "labels": torch.from_numpy(objects.labels),
            "iscrowd": torch.from_numpy(objects.iscrowd),
            "area": torch.from_numpy(objects.area.astype(np.float32)),
        }
        if parts.task == "instance":
            target["masks"] = torch.from_numpy(objects.masks)
        size = parts.height_px, parts.width_px
        return Sample(*on_canvas(image, target, padded(*size), objects.image_id, size), {})


class SceneParts(NamedTuple):
    """Digits to draw training scenes with, and others for the test; implements `runners.dense.data.batches.Parts`."""

    spec: DenseSpec
    task: str
    height_px: int
    width_px: int
    train: Digits
    test: Digits

    @classmethod
    def of(cls, spec: DenseSpec, task: str, height_px: int, width_px: int) -> "SceneParts":
        """Load the digits."""
        return cls(spec, task, height_px, width_px, *split_digits())

    @property
    def n_train(self) -> int | None:
        """The stream has no end."""
        return None

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """The stream has no end."""
        return None

    def train_samples(self, seed: int) -> SceneSamples:
        """Scenes of the training stream."""
        return SceneSamples(self, self.train)

    def train_keys(self, seed: int, start: int, stop: int, batch_size: int) -> Iterator[list[tuple[int, ...]]]:
        """Words of the seeds of each batch."""
        return ([(TRAIN_STREAM, seed, step, place) for place in range(batch_size)] for step in range(start, stop))

    def test_samples(self) -> SceneSamples:
        """Scenes of the test."""
        return SceneSamples(self, self.test)

    def test_keys(self) -> list[tuple[int, ...]]:
        """Words of their seeds."""
        return [(TEST_STREAM, number) for number in range(TEST_SCENES)]

    def divided(self, share: float) -> "SceneParts":
        """Training digits alone: a share of each class is the test's; always a tenth."""
        train, test = divide_digits(self.train)
        return self._replace(train=train, test=test)
