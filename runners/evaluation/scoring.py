"""What a model answers to each image of a set, and how many answers are right.

The images are shared out to the processes by their index, each to one of them, and every answer is kept with the index
of its image: so each image counts once, whatever the batch size and the number of processes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from runners.evaluation.images import EvalSet
from runners.evaluation.labels import RealLabels
from runners.machine.conditions import Conditions

TOP = 5


class Answers(NamedTuple):
    """What a model says of some images: (n,) indices, (n, TOP or fewer) classes from the best on, (n,) losses.

    The classes of an image with logits that are not finite are -1. `unread` are the indices of images that cannot be
    read.
    """

    indices: Tensor
    classes: Tensor
    losses: Tensor
    unread: tuple[int, ...]


class Batch(NamedTuple):
    """Images (B, 3, height_px, width_px) with their indices, and the indices of those that cannot be read."""

    indices: list[int]
    images: Tensor | None
    unread: list[int]


class _Indexed(torch.utils.data.Dataset[tuple[int, Tensor | None]]):
    def __init__(self, images: EvalSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        return index, self._images[index]


def _collate(items: Sequence[tuple[int, Tensor | None]]) -> Batch:
    read = [(index, image) for index, image in items if image is not None]
    images = torch.stack([image for _, image in read]) if read else None
    return Batch([index for index, _ in read], images, [index for index, image in items if image is None])


class Way(NamedTuple):
    """How a model is evaluated: batch size, workers that read images, device and precision."""

    batch_size: int
    workers: int
    device: torch.device
    conditions: Conditions


def answer(
    model: nn.Module,
    images: EvalSet,
    labels: Sequence[int],
    way: Way,
    *,
    share: tuple[int, int] = (0, 1),
    done: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Ask a model, in evaluation mode, about its share of the images: (rank, world size).

    `labels` are classes of the model, one for each image of the set; `done` hears of how many images were seen.
    """
    rank, world_size = share
    mine = Subset(_Indexed(images), range(rank, len(images), world_size))
    loader: DataLoader[Any] = DataLoader(
        mine,
        batch_size=way.batch_size,
        num_workers=way.workers,
        collate_fn=_collate,
        pin_memory=way.device.type == "cuda",
    )
    model = way.conditions.place(model, way.device)
    indices: list[int] = []
    unread: list[int] = []
    classes, losses = [torch.zeros(0, TOP, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
    with torch.inference_mode(), way.conditions.applied(way.device):
        for batch in loader:
            indices += batch.indices
            unread += batch.unread
            if batch.images is not None:
                with way.conditions.autocast(way.device):
                    logits = model(way.conditions.place_images(batch.images, way.device))
                target = torch.tensor([labels[index] for index in batch.indices])
                best, loss = _judge(logits.cpu().double(), target)
                classes.append(best)
                losses.append(loss)
            done(len(batch.indices) + len(batch.unread))
    return Answers(torch.tensor(indices, dtype=torch.int64), torch.cat(classes), torch.cat(losses), tuple(unread))


def _judge(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Classes from the best on, of equal logits the lower class first, filled up by -1; cross-entropy of each image."""
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    best[~logits.isfinite().all(1)] = -1
    return F.pad(best, (0, TOP - best.shape[1]), value=-1), F.cross_entropy(logits, target, reduction="none")


def merge(parts: Iterable[Answers], count: int) -> Answers:
    """Put the answers of all processes in the order of the images, of which there are `count`.

    Raises:
        RuntimeError: an image was not seen, or more than once.
    """
    parts = list(parts)
    indices = torch.cat([part.indices for part in parts])
    unread = tuple(sorted(index for part in parts for index in part.unread))
    if sorted([*indices.tolist(), *unread]) != list(range(count)):
        raise RuntimeError(f"{len(indices) + len(unread)} answers to {count} images: not each was seen once")
    order = indices.argsort()
    return Answers(
        indices[order],
        torch.cat([part.classes for part in parts])[order],
        torch.cat([part.losses for part in parts])[order],
        unread,
    )


def score(answers: Answers, labels: Sequence[int], real_labels: RealLabels | None = None) -> dict[str, Any]:
    """Accuracies in percent, mean loss, and how many images they are of; columns of a row.

    The loss is missing if it is not finite; accuracies are missing where no image counts.
    """
    rows = list(zip(answers.indices.tolist(), answers.classes.tolist(), strict=True))
    row = _accuracy(rows, [frozenset((label,)) for label in labels])
    loss = math.fsum(answers.losses.tolist()) / len(rows) if rows else math.nan
    row |= {"loss": loss if math.isfinite(loss) else None, "unread": len(answers.unread)}
    if real_labels is not None:
        row |= {f"real_{name}": value for name, value in _accuracy(rows, real_labels).items()}
    return row


def _accuracy(rows: Sequence[tuple[int, list[int]]], right: Sequence[frozenset[int]]) -> dict[str, Any]:
    counted = [(right[index], classes) for index, classes in rows if right[index]]
    first = sum(classes[0] in labels for labels, classes in counted)
    among = sum(not labels.isdisjoint(classes) for labels, classes in counted)
    number = len(counted)
    return {
        "acc1": 100 * first / number if number else None,
        "acc5": 100 * among / number if number else None,
        "n_eval": number,
    }
