"""Mean and standard deviation of the values of a data set's own images."""

from dataclasses import replace

import numpy as np

from runners.data.augment import Augmentation, Pixels, eval_transform
from runners.data.folders import Folders
from runners.data.samples import TestSamples

IMAGES = 1000
"""Training images that are looked at."""
DIGITS = 4
"""Of the result, so that another machine's last bits do not matter."""


def of_images(folders: Folders, pixels: Pixels, augmentation: Augmentation) -> Pixels:
    """Return `pixels` with mean and standard deviation of up to IMAGES training images, as they come in the test.

    The same images for every seed of a training; each counts alike, and what cannot be read is left out.

    Raises:
        ValueError: none of them can be read, or all their values are the same.
    """
    chosen = np.random.default_rng(0).permutation(folders.train_indices)[:IMAGES]
    as_they_are = replace(pixels, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    samples = TestSamples(folders.train, eval_transform(augmentation, as_they_are))
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for index in np.sort(chosen):
        image = samples[int(index)].image
        if image is not None:
            values = image.numpy().astype(np.float64)
            sums += values.mean(axis=(1, 2))
            squares += (values**2).mean(axis=(1, 2))
            count += 1
    if not count:
        raise ValueError(f"norm=data: none of {len(chosen)} images of {folders.train.where} can be read")
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if std.min() < 1e-3:
        raise ValueError(f"norm=data: the images of {folders.train.where} have a channel of one value, {mean.round(3)}")
    red, green, blue = (round(float(value), DIGITS) for value in mean)
    of_red, of_green, of_blue = (round(float(value), DIGITS) for value in std)
    return replace(pixels, mean=(red, green, blue), std=(of_red, of_green, of_blue))
