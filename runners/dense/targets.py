"""What is to be detected in the images of a batch: boxes, classes and masks, as many as each image has.

A target is a dict of tensors, for an image with N objects on a canvas of H x W px:

- `boxes` float32 (N, 4): left, top, right, bottom in px of the image as the model sees it;
- `labels` int64 (N,), from 1: 0 is the background;
- `iscrowd` bool (N,): a group of objects; a detection in it counts neither for nor against (VOC: a difficult object);
- `area` float32 (N,): of the object in px of its file, by which COCO tells small ones from large ones;
- `masks` uint8 (N, H, W): of instance segmentation only;
- `image_id` int64 (), `size` int64 (2,): height and width of the image on its canvas, and `original_size`, of its file.
"""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor

Target = dict[str, Tensor]

PER_OBJECT = ("boxes", "labels", "iscrowd", "area", "masks")
"""Entries with one item for each object; the others have one for each image."""


class Targets(list[Target]):
    """Targets of the images of a batch, which a training loop moves and splits as it does a tensor."""

    def to(self, device: torch.device | str, **options: Any) -> "Targets":
        """Copy to a device; options are those of `Tensor.to`."""
        return Targets({name: value.to(device, **options) for name, value in target.items()} for target in self)

    def pin_memory(self) -> "Targets":
        """Copy to memory from which an accelerator reads fast."""
        return Targets({name: value.pin_memory() for name, value in target.items()} for target in self)

    def tensor_split(self, sections: int) -> "tuple[Targets, ...]":
        """Split into so many parts, their lengths as `Tensor.tensor_split` would have them."""
        parts = torch.arange(len(self)).tensor_split(sections)
        return tuple(Targets(self[place] for place in part.tolist()) for part in parts)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Target: ...
    @overload
    def __getitem__(self, index: slice, /) -> "Targets": ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> "Target | Targets":
        """Target of an image, or targets of several."""
        return Targets(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)


def pack(targets: Sequence[Target]) -> dict[str, Tensor]:
    """Join targets on canvases of one size to a few tensors; a process sends each by a file handle of its own."""
    joined = {
        name: (torch.cat if name in PER_OBJECT else torch.stack)([target[name] for target in targets])
        for name in targets[0]
    }
    joined["counts"] = torch.tensor([len(target["labels"]) for target in targets])
    return joined


def unpack(joined: dict[str, Tensor]) -> Targets:
    """Targets that were packed."""
    counts = joined["counts"].tolist()
    columns: dict[str, Iterable[Tensor]] = {
        name: value.split(counts) if name in PER_OBJECT else value.unbind()
        for name, value in joined.items()
        if name != "counts"
    }
    return Targets(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
