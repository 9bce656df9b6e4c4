"""Accuracy on the test images, which several processes share out by batches."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runners.data.datasets import Data, SharedData
from runners.machine.conditions import Conditions
from runners.train.distributed import ALONE, Group
from runners.train.step import PLAIN

Quality = dict[str, float | int | None]
"""Columns of an evaluation: how good the model is, the loss if there is one, and what else was found."""


def eval_batches(data: Data, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of the test images."""
    if isinstance(data, SharedData):
        return data.eval_batches(group.rank, group.world_size)
    return itertools.islice(data.eval_batches(), group.rank, None, group.world_size)


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Data, *, device: torch.device, conditions: Conditions = PLAIN, group: Group = ALONE
) -> Quality:
    """Measure `acc1`, `acc5` (percent), `val_loss` (mean cross-entropy) over the `n_eval` test images.

    Leaves the model in evaluation mode. With fewer than five classes, `acc5` is 100.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    for images, labels in eval_batches(data, group):
        with conditions.autocast(device):
            logits = model(conditions.place_images(images, device))
        logits = logits.float().cpu()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        found = [len(labels), best[:, 0].sum().item(), best.sum().item(), loss.item()]
        totals += torch.tensor(found, dtype=torch.float64)
    count, first, five, summed = group.total(totals).tolist()
    return {"acc1": 100 * first / count, "acc5": 100 * five / count, "n_eval": int(count), "val_loss": summed / count}
