"""The learning rate that suits a model: chosen by short trainings, before the comparison.

One rate for all mechanisms favours some of them. Each rate of a list trains a fresh model for a tenth of the steps, on
nine tenths of the training images, with the recipe's schedule over these steps; the rate with the highest acc1 on the
other tenth is taken, of two equal ones that of the lower loss. The test images take no part, and neither does the
cell's seed: the short trainings of all seeds are the same, and so is their choice.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from runners.data.datasets import Data
from runners.store.files import StoreError, parse_json, write_whole
from runners.train.accuracy import Diverged
from runners.train.distributed import ALONE, Group
from runners.train.recipe import Recipe

SHARE = 0.1
"""Of the steps, for each rate."""
SEED = 0


class Trial(NamedTuple):
    """A rate and what its short training came to; one that diverged has no accuracy."""

    lr: float
    acc1: float | None
    val_loss: float | None


def short_steps(steps: int) -> int:
    """Steps of a short training."""
    return max(1, round(SHARE * steps))


def choose_rate(
    rates: Sequence[float],
    data: Data,
    recipe: Recipe,
    steps: int,
    *,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module, Data, Recipe, int, int], tuple[float, float] | None],
    kept: Path,
    run: str,
    group: Group = ALONE,
) -> list[Trial]:
    """Try the rates that are not in the file `kept`, best first in what is returned.

    Of several processes the first alone reads and writes the file, and tells the others what is in it: all of them must
    train the same rates.

    Args:
        rates: learning rates, the recipe's `lr`.
        data: whose training images are divided.
        recipe: of the training, whose rate is replaced.
        steps: of the whole training.
        build: makes a fresh model.
        train: trains a model with a recipe, steps and seed; returns acc1 and loss, or None where it diverged.
        kept: file of finished trials, of a run that was interrupted.
        run: what the trials are of; those of another run do not count.
        group: the processes that train together.

    Raises:
        Diverged: it did at every rate.
    """
    part, known = data.for_tuning(), _known(kept, run, group)
    trials = []
    for rate in rates:
        trial = known.get(rate)
        if trial is None:
            found = train(build(), part, replace(recipe, lr=rate), short_steps(steps), SEED)
            trial = Trial(rate, *(found or (None, None)))
        trials.append(trial)
        if group.rank == 0:
            _write(kept, run, trials)
    trials.sort(key=_rank)
    if trials[0].acc1 is None:
        raise Diverged(f"tune_lr: the short trainings of all rates diverged: {', '.join(f'{r:g}' for r in rates)}")
    return trials


def _rank(trial: Trial) -> tuple[float, float]:
    """Sort key, the best first and what diverged last."""
    if trial.acc1 is None or trial.val_loss is None:
        return math.inf, 0.0
    return -trial.acc1, trial.val_loss


def _known(path: Path, run: str, group: Group) -> dict[float, Trial]:
    """Finished trials of this run, on every process."""
    mine = json.dumps([*_read(path, run).values()]).encode() if group.rank == 0 else None
    told = group.broadcast(mine)
    assert told is not None
    return {trial.lr: trial for trial in map(Trial._make, json.loads(told))}


def _read(path: Path, run: str) -> dict[float, Trial]:
    """Finished trials in a file; none where it is damaged, for they can be made again."""
    written = parse_json(str(path))
    try:
        if not isinstance(written, dict) or written["run"] != run:
            return {}
        return {float(rate): Trial(float(rate), acc1, loss) for rate, acc1, loss in written["trials"]}
    except (ValueError, TypeError, KeyError):
        return {}


def _write(path: Path, run: str, trials: list[Trial]) -> None:
    content: dict[str, Any] = {"run": run, "trials": [list(trial) for trial in trials]}
    try:
        write_whole(path, json.dumps(content).encode())
    except StoreError as error:
        print(f"warning: {error}; if killed, the short trainings are repeated", flush=True)
