"""What evaluations of dense tasks ask of their data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

Labels = TypeVar("Labels", covariant=True)

BoxTargets = Sequence[Mapping[str, Tensor]]
"""Of each image of a batch: boxes (N, 4), labels (N,), iscrowd (N,), area (N,), image_id, size, and maybe masks."""


class EvalData(Protocol[Labels]):
    """A fixed set of validation images, the same whatever the batch size and the number of processes."""

    @property
    def num_classes(self) -> int:
        """Number of classes; without the background where there are boxes."""
        ...

    def eval_batches(self, rank: int, world_size: int) -> Iterator[tuple[Tensor, Labels]]:
        """Batches of images (B, 3, H, W) and what is in them, this process's part of all."""
        ...


LabelData = EvalData[Tensor]
BoxData = EvalData[BoxTargets]
Columns = dict[str, Any]
"""Values by the names of their columns; None where there is nothing to measure."""
