"""From the name of the data to the data: `make_data`."""

import os

from runners.data.augment import Augmentation, Pixels
from runners.data.datasets import Data, check_data, parse_data
from runners.data.fashion import FashionMnist, find_folder
from runners.data.folders import open_folders
from runners.data.image_specs import is_image_spec, parse_image_spec
from runners.data.images import ImageData
from runners.data.normalise import of_images
from runners.data.probes import DigitProbe

MAX_WORKERS = 8
"""Processes that read images, where the machine has so many processors to spare."""


def make_data(
    spec: str,
    height_px: int,
    width_px: int,
    batch_size: int,
    augmentation: Augmentation | None = None,
    *,
    smoothing: float = 0.0,
    workers: int | None = None,
    strict: bool = False,
) -> Data:
    """Load the data that a spec names, at a resolution and batch size; the last four are of images of files.

    Raises:
        ValueError: a spec, resolution or batch size that does not fit, or images that are not there.
        FileNotFoundError: the dataset is neither installed nor downloadable.
    """
    check_data(spec, height_px, width_px)
    if batch_size < 1 or min(height_px, width_px) < 32:
        raise ValueError(
            f"data {spec!r} needs a batch of at least 1 and sides of at least 32 px, "
            f"got batch {batch_size} at {height_px}x{width_px} px"
        )
    if is_image_spec(spec):
        named, folders, augmentation = parse_image_spec(spec), open_folders(spec), augmentation or Augmentation()
        pixels = Pixels(height_px, width_px, named.mean, named.std)
        return ImageData(
            folders,
            of_images(folders, pixels, augmentation) if named.norm == "data" else pixels,
            batch_size,
            augmentation,
            smoothing=smoothing,
            workers=spare_processors() if workers is None else workers,
            strict=strict,
        )
    name, options = parse_data(spec)
    if name == "fashion-mnist":
        return FashionMnist(find_folder(), height_px, width_px, batch_size)
    return DigitProbe(
        name,
        height_px,
        width_px,
        batch_size,
        jitter_px=options.get("jitter", 0),
        noise=options.get("noise", 0.05),
    )


def spare_processors() -> int:
    """Processors that may read images: all that this process may use but one, at least one, at most MAX_WORKERS.

    Processes that torchrun starts on one machine share them; SLURM gives each its own.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "SLURM_CPUS_PER_TASK" not in os.environ:
        usable //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, usable - 1))
