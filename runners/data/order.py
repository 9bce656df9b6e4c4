"""The order of the training images of an epoch, by timm's sampler of repeated augmentation."""

from typing import Any

import numpy as np

from runners.data.listing import Ints

ORDER = 0
"""First word of the seed; those of `runners.data.samples` are others."""
SELECTED_ROUND = 256
"""Repeated augmentation drops images until their number is a multiple of this, as its official code does."""


def images_per_epoch(count: int, repeats: int) -> int:
    """Images that an epoch of `count` training images has."""
    return len(_sampler(count, repeats))


def _sampler(count: int, repeats: int) -> Any:
    from timm.data.distributed_sampler import RepeatAugSampler  # seconds of import

    # timm's for one process: the processes of a training share out each batch, not the images
    rounding = SELECTED_ROUND if repeats > 1 else 0
    sampler: Any = RepeatAugSampler
    return sampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=rounding)


def epoch_order(count: int, repeats: int, seed: int, epoch: int) -> Ints:
    """Return the samples of an epoch in their order: place among the training images, and repeat, (2, n)."""
    sampler = _sampler(count, repeats)
    sampler.set_epoch(int(np.random.SeedSequence((ORDER, seed, epoch)).generate_state(1, np.uint64)[0] >> 1))
    places = np.fromiter(sampler, dtype=np.int64, count=len(sampler))
    # the repeats of an image come one behind the other
    numbers = np.arange(len(places))
    first = np.r_[True, places[1:] != places[:-1]]
    return np.stack([places, numbers - np.maximum.accumulate(np.where(first, numbers, 0))])
