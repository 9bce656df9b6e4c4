"""A training run that is cut off, in whatever way, ends bit for bit like one that was not."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import Stripes, without_times
from torch import nn

from runners.machine import environment
from runners.machine.conditions import Conditions
from runners.train import resume as checkpoint
from runners.train.accuracy import train_and_evaluate
from runners.train.distributed import Group
from runners.train.notices import NOTICES
from runners.train.optim import make_optimizer
from runners.train.recipe import Recipe
from runners.train.resume import Checkpoint, Training

CPU = torch.device("cpu")
STEPS = 12
NEVER = 1e9


class Noise(nn.Module):
    """Draws in training and in evaluation, and keeps a statistic."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += x.detach().mean()
        return x + 0.3 * torch.randn_like(x)


def make_model(width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), Noise(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * width, 8)
    )


def run(state_path=None, model=None, data=None, every_s=0.0, **changes):
    """Row and weights of a run, the times left out of the row; its states are removed, as when a row is recorded."""
    torch.set_num_threads(1)
    model = model or make_model()
    arguments = {"steps": STEPS, "seed": 0, "device": CPU, **changes}
    row, _ = train_and_evaluate(
        model, data or Stripes(), **arguments, state_path=state_path, checkpoint_every_s=every_s
    )
    for path in state_files(state_path):
        path.unlink()
    return without_times(row), model.state_dict()


def state_files(path):
    return [file for file in path.parent.glob(f"*{path.name}*") if file.is_file()] if path else []


@pytest.fixture(scope="module")
def whole():
    return run()


def assert_same(found, whole, resumed):
    row, weights = found
    assert row == {**whole[0], "resumed": resumed}
    assert weights.keys() == whole[1].keys()
    assert all(torch.equal(weights[name], whole[1][name]) for name in weights)


def saved_step(path):
    return json.loads(path.read_bytes().splitlines()[0])["step"]


class Cut(BaseException):
    """Not an error of training: the process would be gone."""


def cut_at(*steps):
    def progress(step, total, loss):
        if step in steps:
            raise Cut

    return progress


def cut(path, step, **arguments):
    """Run up to a step, whose own state is not saved any more."""
    with pytest.raises(Cut):
        run(path, progress=cut_at(step), **arguments)


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


def saved(path):
    """The newest state, the only one in its folder, of a run that was cut off in its seventh step."""
    cut(path, 7)
    path.with_name(f"{path.name}.before").unlink()
    return path.read_bytes()


def damaged(content):
    yield from (content[:length] for length in (0, 1, 50, 150, len(content) // 2, len(content) - 1))
    for place in range(3, len(content), len(content) // 40):
        yield content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    yield from (b"[]\n", b"{}\n", b"\xff\xfe\n", bytes(1000), content + b"x")


def test_a_damaged_file_is_a_warning_and_a_start_from_the_beginning(whole, tmp_path, capsys):
    path = tmp_path / "state"
    for content in damaged(saved(path)):
        path.write_bytes(content)
        data = Stripes()
        training = fresh()
        Checkpoint(path, "of no run", every_s=0).restore(training)
        assert training.step == 0 and "starts anew" in capsys.readouterr().out
    # what is only checked above for the header is checked once for the whole
    path.write_bytes(saved(path)[:-100])
    assert_same(run(path, data=data), whole, resumed=0)
    assert data.drawn[0][1] == 0
    assert f"warning: the saved state {path} is damaged: training starts anew" in capsys.readouterr().out


def fresh():
    model = make_model()
    return Training(model, make_optimizer(model))


def test_a_flipped_bit_anywhere_is_noticed(tmp_path, capsys):
    path = tmp_path / "state"
    content = saved(path)
    name = json.loads(content.splitlines()[0])["run"]
    intact = fresh()
    Checkpoint(path, name, every_s=0).restore(intact)
    assert (intact.step, intact.resumed, len(intact.losses)) == (6, 1, 6)
    start = content.index(b"\n") + 1
    for place in range(start, len(content), (len(content) - start) // 50):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        training = fresh()
        Checkpoint(path, name, every_s=0).restore(training)
        assert training.step == 0 and "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": 13},
        {"recipe": Recipe(lr=2e-3)},
        {"conditions": Conditions(precision="amp-bf16")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_state_of_another_run_is_not_used(changes, tmp_path, capsys):
    path = tmp_path / "state"
    cut(path, 7)
    row, _ = run(path, **changes)
    assert f"warning: the saved state {path} is of a run with other settings" in capsys.readouterr().out
    assert row == run(**changes)[0]


def test_the_state_of_another_model_or_batch_is_not_used(tmp_path, capsys):
    path = tmp_path / "state"
    for other in ({"model": make_model(width=4)}, {"data": Small()}):
        cut(path, 7)
        row, _ = run(path, **other)
        assert row["resumed"] == 0 and "other settings" in capsys.readouterr().out


class Small(Stripes):
    batch_size = 8

    def batch(self, seed, step):
        images, labels = super().batch(seed, step)
        return images[:8], labels[:8]


def test_a_file_that_cannot_be_read_is_a_warning(whole, tmp_path, capsys):
    (tmp_path / "state").mkdir()
    assert_same(run(tmp_path / "state"), whole, resumed=0)
    assert f"{tmp_path}/state cannot be read (it is no regular file): training starts anew" in capsys.readouterr().out


def test_a_full_disk_loses_a_state_and_not_the_training(whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "state"
    cut(path, 7)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_up(step, steps, loss):
        if step == 7:
            monkeypatch.setattr(os, "replace", full)
        if step == 9:
            monkeypatch.undo()
            assert saved_step(path) == 6
        if step == 11:
            assert saved_step(path) == 10
            raise Cut

    with pytest.raises(Cut):
        run(path, progress=fill_up)
    printed = capsys.readouterr().out
    assert printed.count(f"cannot write {path}: No space left on device") == 1
    assert_same(run(path), whole, resumed=2)


def test_a_state_appears_whole_or_not_at_all(whole, tmp_path, monkeypatch):
    path = tmp_path / "state"
    cut(path, 4)

    def die(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(Cut):
            run(path)
    assert {file.name for file in tmp_path.iterdir()} == {"state", "state.before"}
    (tmp_path / ".state.0.tmp").touch()  # what a kill would have left
    Checkpoint(path, "run", every_s=0).restore(fresh())
    assert {file.name for file in tmp_path.iterdir()} == {"state", "state.before"}
    assert_same(run(path), whole, resumed=1)


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


def write_state(path, body, run_name="run", step=1):
    header = {"run": run_name, "step": step, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


def bodies():
    """Contents with the right checksum that are no state of the model below, each by its name."""
    model = nn.Linear(2, 2)
    training = Training(model, torch.optim.AdamW(model.parameters()), step=2, losses=[1.0, 0.5])
    whole = checkpoint._state(training)
    changes = {
        "weights of another model": {"model": {"other": torch.zeros(1)}},
        "another optimiser": {"optimizer": {"state": {}, "param_groups": []}},
        "more steps than losses": {"step": 9},
        "half a step": {"step": 1.5},
        "no losses": {"losses": None},
        "negative time": {"seconds": -1.0},
        "an evaluation to come": {"evaluations": [(3, 50.0, 1.0)], "looked": 3, "best": model.state_dict()},
        "evaluations without the best": {"evaluations": [(1, 50.0, 1.0)], "looked": 1},
        "the best of another model": {
            "evaluations": [(1, 50.0, 1.0)],
            "looked": 1,
            "best": {"weight": torch.zeros(1), "bias": torch.zeros(2)},
        },
        "an image without a name": {"broken": {1: "it is empty"}},
        "another generator": {"generators": {"cpu": torch.zeros(3, dtype=torch.uint8)}},
    }
    found = {"no torch file": b"hello", "a plain pickle": pickle.dumps(object), "empty": b""}
    for name, change in {**changes, "a list": None}.items():
        buffer = io.BytesIO()
        torch.save([1] if change is None else {**whole, **change}, buffer)
        found[name] = buffer.getvalue()
    return found


@pytest.mark.parametrize("name", bodies())
def test_a_state_that_cannot_be_loaded_is_a_warning_and_a_new_start(tmp_path, capsys, name):
    write_state(tmp_path / "state", bodies()[name])
    model = nn.Linear(2, 2)
    training = Training(model, torch.optim.AdamW(model.parameters()))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    Checkpoint(tmp_path / "state", "run", every_s=NEVER).restore(training)
    assert (training.step, training.seconds, training.losses, training.resumed) == (0, 0.0, [], 0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not training.optimizer.state_dict()["state"] and torch.equal(torch.get_rng_state(), random)
    assert str(tmp_path / "state") in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_state_is_a_file_and_nothing_else(tmp_path, capsys, kind):
    path = tmp_path / "state"
    {"link": lambda: path.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    model = nn.Linear(2, 2)
    training = Training(model, torch.optim.AdamW(model.parameters()))
    Checkpoint(path, "run", every_s=NEVER).restore(training)
    assert training.step == 0 and str(path) in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_code(whole, tmp_path, monkeypatch, capsys):
    path, model = tmp_path / "state", nn.Linear(2, 2)
    before = checkpoint.identify(model, steps=3)
    assert checkpoint.identify(model, steps=3) == before != checkpoint.identify(model, steps=3, code="edited")
    real = environment.code()
    monkeypatch.setattr(environment, "code", lambda: {**real, "source_sha256": "0" * 64})
    assert checkpoint.identify(model, steps=3) != before
    write_state(path, bodies()["a list"], run_name=before)
    Checkpoint(path, checkpoint.identify(model, steps=3), every_s=NEVER).restore(
        Training(model, torch.optim.AdamW(model.parameters()))
    )
    assert "other code" in capsys.readouterr().out
