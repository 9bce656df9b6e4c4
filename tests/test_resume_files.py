"""Files of saved states: damaged, of another run, or on a full disk; training goes on from them, or starts anew."""

import errno
import hashlib
import io
import json
import os
import pickle

import pytest
import torch
from resume_cells import NEVER, Cut, assert_same, cut, fresh, make_model, run, saved_step, whole
from test_train import Stripes
from torch import nn

from runners.machine import environment
from runners.machine.conditions import Conditions
from runners.train import resume as checkpoint
from runners.train.recipe import Recipe
from runners.train.resume import Checkpoint, Training

__all__ = ["whole"]  # a fixture


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
