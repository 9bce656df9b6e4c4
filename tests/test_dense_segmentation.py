"""Scores of semantic segmentation: counted by hand, by numpy one pixel at a time, and over processes and batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runners.dense.losses import IGNORE
from runners.dense.segmentation import (
    MULTI_SCALES,
    Segmented,
    confusion_matrix,
    count_pixels,
    segmentation_scores,
)
from runners.train.distributed import Group

CPU = torch.device("cpu")


def evaluate_segmentation(*arguments, **more):
    return count_pixels(*arguments, **more).columns()


class Pictures:
    """Images whose batches several processes take in turn."""

    def __init__(self, images, labels, num_classes=4, batch_size=2):
        self.images, self.labels, self.num_classes, self.batch_size = images, labels, num_classes, batch_size

    def eval_batches(self, rank, world_size):
        batches = list(zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True))
        yield from batches[rank::world_size]


class Pixelwise(nn.Module):
    """Logits of each pixel by itself: the same whatever is beside it in a batch."""

    def __init__(self, classes=4):
        super().__init__()
        self.head, self.sizes = nn.Conv2d(3, classes, 1), []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return self.head(images)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Pixelwise()


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (7, 6, 9), generator=generator)  # class 3 may be predicted and is never true
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    labels[4] = IGNORE
    return Pictures(torch.randn(7, 3, 6, 9, generator=generator), labels)


def by_pixels(predicted, labels, classes):
    """The definition: sets of pixels, in numpy."""
    predicted, labels = predicted.numpy().ravel(), labels.numpy().ravel()
    kept = labels != IGNORE
    matrix = np.zeros((classes, classes), np.int64)
    for truth, guess in zip(labels[kept], predicted[kept], strict=True):
        matrix[truth, guess] += 1
    ious, accuracies = [], []
    for number in range(classes):
        true, guessed = kept & (labels == number), kept & (predicted == number)
        if (true | guessed).any():
            ious.append((true & guessed).sum() / (true | guessed).sum())
        if true.any():
            accuracies.append((true & guessed).sum() / true.sum())
    right = (predicted == labels)[kept].mean()
    return matrix, {"miou": 100 * np.mean(ious), "macc": 100 * np.mean(accuracies), "aacc": 100 * right}


def test_scores_of_a_matrix_made_by_hand():
    # class 2 is predicted and never true, class 3 does neither
    matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = segmentation_scores(matrix)
    assert scores["miou"] == pytest.approx(100 * (6 / 9 + 3 / 10 + 0) / 3)
    assert scores["macc"] == pytest.approx(100 * (6 / 8 + 3 / 8) / 2)
    assert scores["aacc"] == pytest.approx(100 * 9 / 16)


def test_a_perfect_prediction_has_100_whatever_is_ignored():
    labels = torch.tensor([[[0, 1, IGNORE], [1, 0, IGNORE]]])
    matrix = confusion_matrix(labels.clamp(max=2), labels, 3)
    assert matrix.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert segmentation_scores(matrix) == {"miou": 100, "macc": 100, "aacc": 100}


@pytest.mark.parametrize("label", [4, -1, 254, 256])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match=rf"labels must be 0 to 3, or 255 for none, got {label}$"):
        confusion_matrix(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([[[0, label]]]), 4)


def test_columns_are_those_of_the_definition(model, pictures):
    with torch.no_grad():
        logits = model(pictures.images)
    matrix, scores = by_pixels(logits.argmax(1), pictures.labels, 4)
    assert matrix[:, 3].sum() > 0 and matrix[3].sum() == 0
    found = evaluate_segmentation(model.train(), pictures, device=CPU)
    loss = F.cross_entropy(logits.double(), pictures.labels, ignore_index=IGNORE).item()
    assert found == pytest.approx({**scores, "val_loss": loss, "n_eval": 7})
    assert not model.training


def test_torchmetrics_agrees(model, pictures):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    with torch.no_grad():
        logits = model(pictures.images)
    found = evaluate_segmentation(model, pictures, device=CPU)
    expected = {
        "miou": MulticlassJaccardIndex(4, ignore_index=IGNORE),
        "aacc": MulticlassAccuracy(4, average="micro", ignore_index=IGNORE),
    }
    for name, metric in expected.items():
        assert found[name] == pytest.approx(100 * metric(logits, pictures.labels).item()), name


class Rank(Group):
    """One of several processes, which hears what the others said when they ran before it."""

    def __init__(self, rank, world_size, said):
        super().__init__(rank, world_size)
        self.said = said

    def _all(self, value):
        """Values of all ranks that have come to this point, by the order in which each says things."""
        self.count = getattr(self, "count", -1) + 1
        self.said.setdefault(self.count, []).append(value)
        return self.said[self.count]

    def total(self, values):
        return torch.stack(self._all(values.clone())).sum(0)

    def gather(self, value):
        return list(self._all(value))


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_count_what_one_does(world_size, model, pictures):
    one = evaluate_segmentation(model, pictures, device=CPU, scales=(1.0, 2.0), flip=True)
    said = {}
    for rank in range(world_size):
        group = Rank(rank, world_size, said)
        found = evaluate_segmentation(model, pictures, device=CPU, scales=(1.0, 2.0), flip=True, group=group)
    assert found == one


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_batch_size_does_not_matter(batch_size, model, pictures):
    one = evaluate_segmentation(model, pictures, device=CPU)
    pictures.batch_size = batch_size
    found = evaluate_segmentation(model, pictures, device=CPU)
    assert {**found, "val_loss": 0} == {**one, "val_loss": 0}
    assert found["val_loss"] == pytest.approx(one["val_loss"], rel=1e-6)


def test_scales_and_flips_are_averaged_as_probabilities(model):
    """A model that sees positions, so that mirroring matters; the mean is written out."""

    class Lopsided(Pixelwise):
        def forward(self, images):
            ramp = torch.linspace(-1, 1, images.shape[-1])
            return super().forward(images) * (1 + ramp)

    torch.manual_seed(1)
    model = Lopsided()
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(4, (2, 64, 96))
    found = count_pixels(model, Pictures(images, labels), device=CPU, scales=(0.5, 1.0), flip=True)
    assert sorted({*model.sizes}) == [(32, 64), (64, 96)]  # half of 96 is 48, no multiple of 32: rounded to even
    with torch.no_grad():
        views = [(images, False), (images, True)]
        small = F.interpolate(images, size=(32, 64), mode="bilinear")
        views += [(small, False), (small, True)]
        shares = []
        for view, mirrored in views:
            logits = model(view.flip(-1)).flip(-1) if mirrored else model(view)
            shares.append(F.interpolate(logits, size=(64, 96), mode="bilinear").softmax(1))
        matrix, scores = by_pixels(torch.stack(shares).mean(0).argmax(1), labels, 4)
        plain, _ = by_pixels(model(images).argmax(1), labels, 4)
    assert np.array_equal(found.augmented.numpy(), matrix) and not np.array_equal(matrix, plain)
    assert np.array_equal(found.plain.numpy(), plain)
    assert {name: found.columns()[f"{name}_ms"] for name in scores} == pytest.approx(scores)


def test_the_published_scales():
    assert MULTI_SCALES == (0.5, 0.75, 1, 1.25, 1.5, 1.75)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (math.nan,)])
def test_scales_must_be_positive(scales, model, pictures):
    with pytest.raises(ValueError, match="scales must be positive numbers, got"):
        evaluate_segmentation(model, pictures, device=CPU, scales=scales)


def test_images_without_any_label_are_refused():
    with pytest.raises(ValueError, match="no pixel of 2 validation images has a label: all are 255"):
        Segmented(torch.zeros(3, 3, dtype=torch.int64), losses=[0.0, 0.0]).columns()


def test_labels_of_another_size_are_compared_in_their_own_pixels():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    logits = torch.tensor([[[[5.0, -5.0]], [[-5.0, 5.0]]]])  # one row of two places, twice as coarse

    class Coarse(torch.nn.Module):
        def forward(self, images):
            return logits

    class Data:
        num_classes = 2

        def eval_batches(self, rank, world_size):
            yield torch.zeros(1, 3, 1, 2), labels

    found = evaluate_segmentation(Coarse(), Data(), device=torch.device("cpu"))
    assert (found["miou"], found["aacc"]) == (100, 100)
