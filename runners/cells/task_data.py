"""The data of a task: images with classes, or with labels of pixels, boxes and masks."""

from ablations.values import HEADS
from runners.data.datasets import Data, check_data, count_classes, steps_per_epoch
from runners.data.loading import make_data
from runners.dense.data.opened import count_dense_classes, dense_steps_per_epoch
from runners.dense.data.specs import check_dense_spec, is_dense_spec
from runners.train.recipe import Recipe

CLASSIFY = next(iter(HEADS))


def check_data_of(task: str, spec: str, height_px: int | None = None, width_px: int | None = None) -> None:
    """Check at plan time that data are of a task, and fit images of a size.

    Raises:
        ValueError: they are another task's, or what the check of their kind raises.
    """
    if task != CLASSIFY:
        check_dense_spec(task, spec, height_px, width_px)
        return
    if is_dense_spec(spec):
        dense = [name for name in HEADS if name != CLASSIFY]
        raise ValueError(f"data {spec!r} has no classes of images; it is for task {', '.join(dense)}")
    check_data(spec, height_px, width_px)


def count_classes_of(task: str, spec: str) -> int:
    """Count the classes, without what is ignored and without a background of boxes.

    Raises:
        ValueError: an unknown spec, or files that are not there.
    """
    return count_classes(spec) if task == CLASSIFY else count_dense_classes(spec, task)


def steps_of_epoch(task: str, spec: str, batch_size: int, recipe: Recipe) -> int | None:
    """Count the optimiser steps of one pass over the training images, None for an endless stream.

    Raises:
        ValueError: what `check_data_of` raises, or a batch larger than the training set.
    """
    if task == CLASSIFY:
        return steps_per_epoch(spec, batch_size, recipe.repeats)
    return dense_steps_per_epoch(spec, task, batch_size, keep_empty=recipe.keep_empty)


def make_data_of(
    task: str,
    spec: str,
    height_px: int,
    width_px: int,
    batch_size: int,
    recipe: Recipe,
    *,
    workers: int | None = None,
    strict: bool = False,
) -> Data:
    """Load the data that a cell is trained on.

    Raises:
        ValueError: a spec, resolution or batch size that does not fit, or images that are not there.
    """
    if task == CLASSIFY:
        smoothing = recipe.smoothing
        return make_data(
            spec, height_px, width_px, batch_size, recipe, smoothing=smoothing, workers=workers, strict=strict
        )
    from runners.dense.data.batches import make_dense_data  # seconds of import

    return make_dense_data(task, spec, height_px, width_px, batch_size, recipe, workers=workers, strict=strict)
