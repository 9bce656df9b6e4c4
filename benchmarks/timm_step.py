"""Our training step against the same step of timm's parts: python -m benchmarks.timm_step [--rounds 30]

The same model, images and labels; timm's optimiser, loss, Mixup and moving average, written as its train.py does.
Steps take turns; printed is ours over theirs, the median of the ratios of the rounds and its quartiles.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from attention_zoo import create_model
from benchmarks.pairs import Spread, take_turns
from runners.data.augment import make_mixup
from runners.data.seeding import drawn_from
from runners.train.criterion import make_criterion
from runners.train.optim import make_optimizer
from runners.train.recipe import Recipe
from runners.train.step import train_step

BATCH, SIDE, CLASSES, EMA = 32, 64, 10, 0.9999
RECIPE = Recipe(lr=1e-7, mixup=0.8, cutmix=1.0, smoothing=0.1, clip_norm=1.0, ema=EMA)


def our_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """A step as `train` takes it."""
    optimizer, criterion = make_optimizer(model, RECIPE), make_criterion(RECIPE, None)
    mixup, average = make_mixup(RECIPE, CLASSES, RECIPE.smoothing), ModelEmaV3(model, decay=EMA)
    assert mixup is not None

    def step() -> None:
        with drawn_from(2, 0, 0):
            mixed, targets = mixup(images.clone(), labels)
        loss = train_step(model, optimizer, mixed, targets, clip_norm=RECIPE.clip_norm, criterion=criterion)
        loss.item()
        average.update(model)

    return step


def timm_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """A step as timm's train.py takes it."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    loss_of, average = SoftTargetCrossEntropy(), ModelEmaV3(model, decay=EMA)

    def step() -> None:
        mixed, targets = mixup(images.clone(), labels)
        optimizer.zero_grad()
        loss = loss_of(model(mixed), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        average.update(model)

    return step


def main() -> int:
    """Print the ratio."""
    parser = argparse.ArgumentParser(prog="benchmarks.timm_step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="steps of each (default: 30)")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    ours = create_model("small", attn="bra", num_classes=CLASSES).train()
    theirs = copy.deepcopy(ours)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    contenders = {"ours": our_step(ours, images, labels), "timm": timm_step(theirs, images, labels)}
    samples = take_turns(contenders, rounds)
    ratio = Spread.of([mine / other for mine, other in zip(samples["ours"], samples["timm"], strict=True)])
    print(
        f"time of our step over timm's: {ratio.median:.3f} (quartiles {ratio.q25:.3f} to {ratio.q75:.3f}, "
        f"{ratio.n} rounds), bra in small, {SIDE} px, batch {BATCH}, {torch.get_num_threads()} threads"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
