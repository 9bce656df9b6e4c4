"""A training run that is cut off, in whatever way, ends bit for bit like one that was not."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_cells import CPU, NEVER, STEPS, Cut, assert_same, cut, cut_at, fresh, make_model, run, saved_step, whole
from test_train import Stripes

from runners.train import resume as checkpoint
from runners.train.accuracy import train_and_evaluate
from runners.train.distributed import Group
from runners.train.notices import NOTICES
from runners.train.resume import Checkpoint

__all__ = ["whole"]  # a fixture


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_cut_off_at_any_step(step, whole, tmp_path):
    path = tmp_path / "state"
    cut(path, step)
    assert path.exists() == (step > 1)
    data = Stripes()
    assert_same(run(path, data=data), whole, resumed=int(step > 1))
    assert data.drawn[0][1] == step - 1


@settings(max_examples=8)
@given(st.lists(st.integers(1, 5), max_size=4), st.integers(1, 3))
def test_cut_off_several_times_with_saves_here_and_there(parts, every):
    """Each part ends `n` steps after it began; a state is saved after every so many."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        path = Path(folder) / "state"
        clock = itertools.count()
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: float(next(clock)))
        for part in parts:
            left = iter(range(part))

            def progress(step, total, loss, left=left):
                if next(left, None) is None:
                    raise Cut

            with contextlib.suppress(Cut):
                run(path, every_s=float(every), progress=progress)
        row, weights = run(path, every_s=float(every))
    straight = run()
    assert_same((row, weights), straight, resumed=row["resumed"])
    assert row["resumed"] <= len(parts)


def test_cut_off_in_the_evaluation_which_draws_too(whole, tmp_path):
    class Cutting(Stripes):
        def eval_batches(self):
            yield next(super().eval_batches())
            raise Cut

    path = tmp_path / "state"
    with pytest.raises(Cut):
        run(path, data=Cutting())
    data = Stripes()
    assert_same(run(path, data=data), whole, resumed=1)
    assert not [step for _, step, _ in data.drawn if step < STEPS]


def child(path, every_s, steps, reports, result):
    """A process that trains and says so after every step."""
    row, weights = run(path, every_s=every_s, steps=steps, progress=lambda step, *_: reports.send(step))
    torch.save((row, weights), result)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["runners.train.accuracy", "hypothesis", "pytest", "torch._dynamo", "hypothesis.strategies"]
    )
    return context


def start(processes, path, every_s, steps):
    reports, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=child, args=(path, every_s, steps, theirs, path.parent / "result"))
    process.start()
    theirs.close()
    return process, reports


def test_kill_9_of_a_real_process_at_several_points(processes, tmp_path):
    path, steps = tmp_path / "state", 60
    for reports_seen in (3, 6, 11):
        process, reports = start(processes, path, 0.0, steps)
        for _ in range(reports_seen):
            reports.recv()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process, reports = start(processes, path, 0.0, steps)
    assert reports.recv() >= 18  # each part goes on from the step before the last one that was reported
    process.join()
    assert process.exitcode == 0
    found = torch.load(tmp_path / "result", weights_only=True)
    assert_same(found, run(steps=steps), resumed=3)
    assert [file.name for file in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("number", NOTICES, ids=lambda number: number.name)
def test_a_signal_saves_the_step_and_then_does_what_it_did(number, processes, tmp_path):
    path, steps = tmp_path / "state", 2000
    process, reports = start(processes, path, NEVER, steps)
    assert [reports.recv() for _ in range(3)] == [1, 2, 3]
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == -number
    last = 3
    with contextlib.suppress(EOFError):
        while True:
            last = reports.recv()
    assert saved_step(path) == last < steps


def test_a_handler_runs_after_the_state_is_saved_and_stays_the_handler(whole, tmp_path):
    path, calls = tmp_path / "state", []

    def requeue(number, frame):
        calls.append((number, saved_step(path)))
        raise Cut

    def progress(step, steps, loss):
        if step == 5:
            signal.raise_signal(signal.SIGUSR2)
            assert not calls

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(Cut):
            run(path, every_s=NEVER, progress=progress)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert calls == [(signal.SIGUSR2, 5)]
    assert_same(run(path), whole, resumed=1)


def test_a_handler_that_returns_lets_training_go_on(whole, tmp_path):
    calls = []

    def progress(step, steps, loss):
        if step in (3, 7):
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        assert_same(run(tmp_path / "state", every_s=NEVER, progress=progress), whole, resumed=0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(calls) == 2


def test_saving_keeps_to_its_interval(tmp_path, monkeypatch):
    now = 100.0
    saves = []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    monkeypatch.setattr(Checkpoint, "save", lambda self, training: saves.append(training.step) or reset(self))

    def reset(self):
        self._saved_at = now

    def progress(step, steps, loss):
        nonlocal now
        now += 4

    run(tmp_path / "state", every_s=10, progress=progress)
    assert saves == [3, 6, 9, 12]


def test_seconds_add_up_and_leave_out_the_saving(tmp_path, monkeypatch):
    path, now = tmp_path / "state", 0.0

    class Slow(Stripes):
        def batch(self, seed, step):
            nonlocal now
            now += 1
            return super().batch(seed, step)

    from runners.train import accuracy as train

    monkeypatch.setattr(train.time, "perf_counter", lambda: now)
    monkeypatch.setattr(
        train, "prefetch", lambda data, seed, start, stop: (data.batch(seed, s) for s in range(start, stop))
    )

    def expensive(self, training, save=Checkpoint.save):
        nonlocal now
        now += 1000
        save(self, training)

    monkeypatch.setattr(Checkpoint, "save", expensive)
    with pytest.raises(Cut):
        run(path, data=Slow(), progress=cut_at(8))
    row, _ = train_and_evaluate(
        make_model(), Slow(), steps=STEPS, seed=0, device=CPU, state_path=path, checkpoint_every_s=0
    )
    assert row["train_seconds"] == STEPS
    assert row["train_samples_per_sec"] == 16


def test_only_rank_0_writes(tmp_path):
    path = tmp_path / "state"
    second = Checkpoint(path, "run", every_s=0, group=Group(rank=1))
    second.save(fresh())
    assert not list(tmp_path.iterdir())
    with second:
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
