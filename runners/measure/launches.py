"""Operators of one forward: the measure `launches`.

Protocol 1. Counts what torch dispatches in one forward of one image in evaluation mode: every operator that computes or
moves data, views and allocations left out. Without a compiler each is a kernel or few on a GPU, so the count bounds
what small maps cost there. `torch.compile` is not used here: it launches fewer.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from runners.machine.conditions import Conditions

_NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "_unsafe_view",
}
"""Allocations, and views that torch does not call so."""


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NO_KERNEL:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_launches(
    model: nn.Module, image_shape: Sequence[int], device: torch.device, conditions: Conditions
) -> dict[str, Any]:
    """Columns `kernel_launches` and `kernels`, the number of each, of one image (3, height_px, width_px).

    A copy is run: the model stays as it is.
    """
    subject = conditions.place(copy.deepcopy(model), device).eval()
    image = conditions.place_images(torch.zeros(1, *image_shape), device)
    with torch.no_grad(), conditions.autocast(device), _Operators() as operators:
        subject(image)
    named = ";".join(f"{name}:{count}" for name, count in operators.counts.most_common())
    return {"kernel_launches": operators.counts.total(), "kernels": named}
