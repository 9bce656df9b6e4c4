"""What is looked at of the annotated images of a split before work begins: some of its files."""

from collections.abc import Callable

import numpy as np

from runners.dense.data.sources import AnnotationError

CHECKED = 64
"""Images of a split that are looked at, evenly over it."""


def sampled(count: int) -> list[int]:
    """Numbers of the images that are looked at, of so many."""
    numbers: list[int] = np.unique(np.linspace(0, count - 1, CHECKED).astype(int)).tolist()
    return numbers


def check_some(
    count: int, check: Callable[[int], None], image: Callable[[int], str], annotation: Callable[[int], str]
) -> None:
    """Check some images of a split, by their numbers; `image` and `annotation` name the files of one.

    An image that cannot be read is counted when its turn comes.

    Raises:
        ValueError: an annotation does not fit, or none of the images can be read.
    """
    chosen = sampled(count)
    unread = []
    for index in chosen:
        try:
            check(index)
        except AnnotationError as error:
            raise ValueError(f"{annotation(index)}: {error}") from error
        except (OSError, ValueError) as error:
            unread.append(f"{image(index)}: {getattr(error, 'strerror', None) or error}")
    if len(unread) == len(chosen):
        raise ValueError(f"none of the {len(chosen)} images that were looked at can be read ({unread[0]})")
