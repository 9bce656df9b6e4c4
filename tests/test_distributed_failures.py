"""Processes that train one cell together: one fails, is killed or says nothing; a job that was killed goes on."""

import contextlib
import json
import math
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import without_times
from torch import nn
from training_ranks import CPU, Wide, assert_one_run, make_model, processes, run, spread, toy_run

from runners.data.loading import make_data
from runners.machine.failures import ChildFailed
from runners.train.accuracy import train_and_evaluate
from runners.train.distributed import ALONE
from runners.train.recipes import make_recipe

__all__ = ["processes", "spread"]  # fixtures

PEER_GONE = "Connection (closed|reset) by peer|Connection was likely closed|Broken pipe"
"""How gloo and the store say that another process is gone, as it happens to end."""


def fail(group, rank, how):
    """One rank fails at its third step."""

    def progress(step):
        if group.rank == rank and step == 3:
            how()

    started = time.monotonic()
    try:
        return run(group, make_model(), Wide(16), steps=1000, progress=progress)
    finally:
        assert time.monotonic() - started < 50


def out_of_memory():
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_failed_on_another_rank_is_what_rank_0_reports(spread):
    first, second = spread(fail, 1, out_of_memory)
    assert isinstance(first, ChildFailed) and first.status == "oom"
    assert "rank 1 of 2: RuntimeError: [enforce fail" in str(first)
    assert "can't allocate memory" in str(second)


def test_what_failed_on_rank_0_is_its_own_and_the_others_leave(spread):
    first, second = spread(fail, 0, out_of_memory)
    assert not isinstance(first, ChildFailed) and "can't allocate memory" in str(first)
    assert isinstance(second, ChildFailed) and "rank 0 of 2" in str(second)


def test_a_rank_that_is_killed_is_reported_as_killed(spread):
    first, second = spread(fail, 1, killed)
    assert second is None
    assert isinstance(first, ChildFailed) and first.status == "killed"
    assert "one of the 2 ranks ended without a word" in str(first)


def test_when_rank_0_is_killed_the_others_leave(spread):
    first, second = spread(fail, 0, killed)
    assert first is None and re.search(PEER_GONE, str(second))


def wait_for_orders(group, arrived):
    for _ in group.orders() if group.rank else ():
        arrived.touch()
    group.lead("first")
    while not arrived.exists():
        time.sleep(0.01)
    killed()


def test_when_rank_0_is_killed_nobody_waits_for_orders(spread, tmp_path):
    first, second = spread(wait_for_orders, tmp_path / "arrived")
    assert first is None and re.search(PEER_GONE, str(second))


def never_there(group):
    """Rank 1 never comes to the training, and lives."""
    if group.rank == 0:
        run(group, make_model(), Wide(16))
    time.sleep(5)


def stuck(group):
    """Rank 1 trains two steps and no third."""
    run(group, make_model(), Wide(16), progress=lambda step: time.sleep(5) if (group.rank, step) == (1, 3) else None)


@pytest.mark.parametrize("body", [stuck, pytest.param(never_there, marks=pytest.mark.slow)])
def test_a_rank_that_does_not_answer_is_an_error_after_the_timeout(spread, body):
    first, _ = spread(body, timeout_s=1.0)
    assert isinstance(first, ChildFailed) and first.status == "error"
    assert str(first).startswith("one of the 2 ranks gave no answer for 1 s: ")


def recovering(group):
    """A training that fails on one rank, then one that does not."""
    with contextlib.suppress(Exception):
        fail(group, 1, out_of_memory)
    return toy_run(group, 16, True)


def test_after_a_failure_the_same_ranks_can_train_again(spread, one_thread):
    found = spread(recovering)
    assert_one_run(found)
    assert found[0][0] == pytest.approx(toy_run(ALONE, 16, True)[0], rel=1e-5)


def diverging(group):
    class Poison(nn.Module):
        def forward(self, x):
            return x * math.nan

    return run(group, nn.Sequential(make_model(), Poison()), Wide(16))


def test_all_ranks_diverge_together(spread):
    assert {str(error) for error in spread(diverging)} == {"Diverged: training loss is nan at step 1 of 20, lr 0.0005"}


def resumable(group, path, die_at):
    return run(
        group,
        make_model(dropout=0.1),
        Wide(16),
        progress=lambda step: killed() if step == die_at else None,
        state_path=path,
    )


def test_a_job_that_is_killed_goes_on_bit_for_bit(spread, tmp_path):
    whole = spread(resumable, tmp_path / "other", None)
    assert spread(resumable, tmp_path / "state", 8) == [None, None]
    assert (tmp_path / "state").exists()
    found = spread(resumable, tmp_path / "state", None)
    assert_one_run(found)
    (losses, row, weights), (whole_losses, whole_row, whole_weights) = found[0], whole[0]
    assert len(losses) == 20 and losses == whole_losses
    assert (row["resumed"], whole_row["resumed"]) == (1, 0)
    same = ("acc1", "acc5", "val_loss", "train_loss")
    assert [row[name] for name in same] == [whole_row[name] for name in same]
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)


def with_images(group, folder, path, die_at):
    """Train on images with all that a recipe changes; rank 0 alone notes what each evaluation found."""
    recipe = make_recipe("small300", (("accumulate", 2), ("ema", 0.9), ("lr", 1e-2), ("warmup_epochs", 0)))
    data = make_data(f"imagefolder:{folder}", 32, 32, 8, recipe, smoothing=recipe.smoothing, workers=1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 4)
    )
    with group.joined(CPU):
        row, samples = train_and_evaluate(
            model,
            data,
            steps=14,
            seed=0,
            device=CPU,
            recipe=recipe,
            progress=lambda step, *_: killed() if step == die_at else None,
            group=group,
            state_path=path,
            checkpoint_every_s=0.0,
        )
    return samples["loss"], row | {"evaluations": samples["eval_acc1"]}, model.state_dict()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_go_on_in_an_epoch_from_the_state_before_a_damaged_one(spread, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 13)):  # 4 steps of 8 in an epoch
        for number in range(count):
            place = tmp_path / "images" / split / f"class{number % 4}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place)
    whole = spread(with_images, tmp_path / "images", tmp_path / "other", None)
    path = tmp_path / "state"
    assert spread(with_images, tmp_path / "images", path, 8) == [None, None]
    path.write_bytes(path.read_bytes()[:-1])
    found = spread(with_images, tmp_path / "images", path, None)
    assert_one_run(found)
    (losses, row, weights), (whole_losses, whole_row, whole_weights) = found[0], whole[0]
    assert len(losses) == 14 and losses == whole_losses and len(row["evaluations"]) == 4
    assert (row["resumed"], row["world_size"]) == (1, 2)
    assert without_times(row) == {**without_times(whole_row), "resumed": 1}
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)


def preempted(group, path):
    """SLURM's notice goes to every rank; submitit's handler of rank 0 requeues the job and exits."""

    def requeue(number, frame):
        if group.rank == 0:
            raise SystemExit

    def progress(step):
        if step == 5:
            signal.raise_signal(signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, requeue)
    try:
        with group.joined(CPU):
            train_and_evaluate(
                make_model(),
                Wide(16),
                steps=20,
                seed=0,
                device=CPU,
                progress=lambda step, *_: progress(step),
                group=group,
                state_path=path,
            )
    except SystemExit as exit:
        raise RuntimeError("preempted") from exit


def test_a_preemption_saves_the_step_on_rank_0(spread, tmp_path):
    path = tmp_path / "state"
    first, second = spread(preempted, path)
    assert str(first) == "RuntimeError: preempted" and re.search(PEER_GONE, str(second))
    assert json.loads(path.read_bytes().splitlines()[0])["step"] == 5
