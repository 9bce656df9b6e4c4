"""Fashion-MNIST: 60,000 training and 10,000 test photographs of clothes, 28x28 px, ten classes.

Xiao et al., arXiv:1708.07747. Read from Debian's package `dataset-fashion-mnist`, or else from a cache folder that
torchvision's download fills once. Images are padded to 32x32 px, resized bilinearly to other resolutions, repeated
over three channels and normalised by the training set's mean and standard deviation. No augmentation; each epoch has
an order of its own and leaves out the images that do not fill a batch.
"""

import copy
import functools
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.data.datasets import FASHION_IMAGES, HELD_OUT_SHARE, steps_per_epoch
from runners.data.probes import bilinear

PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = [f"{split}-{kind}-ubyte.gz" for split in FASHION_IMAGES for kind in ("images-idx3", "labels-idx1")]
MEAN, STD = 0.2860, 0.3530  # of the training pixels in [0, 1]
UNSIGNED_BYTE = 0x08  # element type in the third byte of an idx file


def find_folder() -> Path:
    """Return a folder with the four idx files: the package's, or the cache, filled by a download if need be.

    Raises:
        FileNotFoundError: not installed, and the download failed.
    """
    if all((PACKAGE_FOLDER / name).is_file() for name in FILES):
        return PACKAGE_FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-zoo"
    from torchvision.datasets import FashionMNIST

    try:
        # asked even when the files are there: it knows their checksums and repairs a broken download
        FashionMNIST(str(cache), download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST is not in {PACKAGE_FOLDER} (apt-get install dataset-fashion-mnist), and torchvision "
            f"could not download it to {cache}: {error}"
        ) from error
    return cache / "FashionMNIST" / "raw"


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes.

    Raises:
        ValueError: not gzip, cut short, or of another type or shape; names the file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    header = bytes([0, 0, UNSIGNED_BYTE, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    if raw[: len(header)] != header or len(raw) != len(header) + math.prod(shape):
        raise ValueError(
            f"{path} must be an idx file of unsigned bytes, shape {shape}: header {header.hex()} and "
            f"{math.prod(shape)} bytes; got header {raw[: len(header)].hex()} and {len(raw) - len(header)} bytes"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=len(header)).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images (n, 28, 28) and labels (n,) of a key of FASHION_IMAGES; raises what `read_idx` raises."""
    count = FASHION_IMAGES[split]
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz", (count, 28, 28))
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz", (count,))


@functools.lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of the `count` training images in one epoch; cached, for it is asked for at every step."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class FashionMnist:
    """The dataset of this module's docstring at one resolution: implements `runners.data.datasets.Data`."""

    num_classes = 10
    ceiling_percent: float | None = None
    chance_percent = 10.0

    def __init__(self, folder: Path, height_px: int, width_px: int, batch_size: int) -> None:
        """Read the four files.

        Raises:
            ValueError: a damaged file, or a batch larger than the training set.
        """
        self.steps_per_epoch: int | None = steps_per_epoch("fashion-mnist", batch_size)
        self.height_px, self.width_px, self.batch_size = height_px, width_px, batch_size
        self.train_images, self.train_labels = read_split(folder, "train")
        self.test_images, self.test_labels = read_split(folder, "t10k")

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the training batch of one step: (B, 3, height_px, width_px), (B,)."""
        assert self.steps_per_epoch is not None
        epoch, position = divmod(step, self.steps_per_epoch)
        order = epoch_order(seed, epoch, len(self.train_labels))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        return self._prepare(self.train_images[chosen], self.train_labels[chosen])

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the 10,000 test images in the order of the file."""
        for start in range(0, len(self.test_labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self._prepare(self.test_images[part], self.test_labels[part])

    def for_tuning(self) -> "FashionMnist":
        """Test on the last tenth of the training images and train on the others."""
        part = copy.copy(self)
        kept = len(self.train_labels) - round(HELD_OUT_SHARE * len(self.train_labels))
        part.test_images, part.test_labels = self.train_images[kept:], self.train_labels[kept:]
        part.train_images, part.train_labels = self.train_images[:kept], self.train_labels[:kept]
        part.steps_per_epoch = kept // self.batch_size
        return part

    def _prepare(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Turn (B, 28, 28) bytes into padded, resized and normalised images."""
        padded = np.pad(images.astype(np.float32) / 255, ((0, 0), (2, 2), (2, 2)))
        resized = bilinear(32, self.height_px) @ padded @ bilinear(32, self.width_px).T
        normalised = (resized - MEAN) / STD
        return torch.from_numpy(normalised[:, None].repeat(3, axis=1)), torch.from_numpy(labels.astype(np.int64))
