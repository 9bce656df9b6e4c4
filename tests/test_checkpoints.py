"""Which states of a training are kept, and which one it goes on from."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch
from image_files import write_classes
from resume_cells import STEPS, Cut, assert_same, cut, fresh, make_model, run, saved_step, whole
from slurm.killer import can_mount, full_folder
from test_train import Stripes
from torch import nn

from ablations.study import Cell
from runners import clean
from runners.cells import task_data
from runners.cells.job import Job
from runners.cells.run import run_job
from runners.data.images import ImageData
from runners.data.loading import make_data
from runners.store.states import states
from runners.store.store import open_store
from runners.train import accuracy
from runners.train.accuracy import Diverged
from runners.train.recipe import Recipe
from runners.train.resume import Checkpoint

__all__ = ["whole"]  # a fixture


def before(path):
    return path.with_name(f"{path.name}.before")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)


DAMAGES = {"half": half, "flipped": flip, "empty": lambda path: path.write_bytes(b"")}


# --- the newest state, and the one before it


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_gives_way_to_the_one_before(damage, whole, tmp_path, capsys):
    path, data = tmp_path / "state", Stripes()
    cut(path, 9)
    assert (saved_step(path), saved_step(before(path))) == (8, 7)
    DAMAGES[damage](path)
    assert_same(run(path, data=data), whole, resumed=1)
    assert data.drawn[0][1] == 7
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: the saved state {path} is damaged") and line.endswith(
        "from state.before, saved after step 7"
    )


def test_a_kill_between_two_renames_leaves_the_one_before(whole, tmp_path, capsys):
    path, data = tmp_path / "state", Stripes()
    cut(path, 9)
    path.unlink()
    assert_same(run(path, data=data), whole, resumed=1)
    assert data.drawn[0][1] == 7 and "warning" not in capsys.readouterr().out


def test_two_damaged_states_are_a_start_from_the_beginning(whole, tmp_path, capsys):
    path, data = tmp_path / "state", Stripes()
    cut(path, 9)
    half(path)
    half(before(path))
    assert_same(run(path, data=data), whole, resumed=0)
    assert data.drawn[0][1] == 0
    assert [line.split()[4] for line in capsys.readouterr().out.splitlines()] == [str(path), str(before(path))]


def test_a_damaged_state_does_not_replace_the_one_before(tmp_path):
    path, training = tmp_path / "state", fresh()
    cut(path, 9)
    name, kept = json.loads(path.read_bytes().splitlines()[0])["run"], before(path).read_bytes()
    half(path)
    checkpoint = Checkpoint(path, name, every_s=0)
    checkpoint.restore(training)
    checkpoint.save(training)
    assert before(path).read_bytes() == kept and saved_step(path) == 7
    checkpoint.save(training)
    assert before(path).read_bytes() != kept  # now that there is another good one


def test_the_moving_average_goes_on_too(tmp_path, monkeypatch):
    made, recipe = [], Recipe(ema=0.5)

    def record(*arguments, make=accuracy.make_average, **settings):
        made.append(make(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(accuracy, "make_average", record)
    _, weights = run(recipe=recipe)
    cut(tmp_path / "state", 7, recipe=recipe)
    run(tmp_path / "state", recipe=recipe)
    whole, _, resumed = (average.module.state_dict() for average in made)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["5.weight"], weights["5.weight"])


# --- a full disk


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_is_one_line_and_the_last_states_stay(call, whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "state"

    class Full:
        def __init__(self, *_):
            (tmp_path / ".state.0.tmp").write_bytes(b"half of it")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_up(step, steps, loss):
        if step == 7:
            if call == "fsync":
                monkeypatch.setattr(os, "fsync", fail)
            else:
                monkeypatch.setattr("runners.store.files.open", Full, raising=False)
        if step == 10:
            monkeypatch.undo()
            assert (saved_step(path), saved_step(before(path))) == (6, 5)
        if step == 11:
            assert (saved_step(path), saved_step(before(path))) == (10, 6)
            raise Cut

    with pytest.raises(Cut):
        run(path, progress=fill_up)
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert_same(run(path), whole, resumed=1)


@pytest.mark.slow
def test_a_disk_that_is_really_full(whole, tmp_path, capsys):
    if not can_mount(tmp_path):
        pytest.skip("no file system can be mounted here, so no disk can be full")
    path = tmp_path / "state"
    cut(path, 4)
    with full_folder(tmp_path):

        def progress(step, steps, loss):
            assert (saved_step(path), saved_step(before(path))) == (3, 2)
            if step == 8:
                raise Cut

        with pytest.raises(Cut):
            run(path, progress=progress)
        assert capsys.readouterr().out.count("No space left on device") == 1
        (tmp_path / "filler").unlink()
        assert_same(run(path), whole, resumed=1)


# --- a training that diverges


class Explode(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


class ExplodingAt(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.left = call

    def forward(self, x):
        self.left -= self.training
        return Explode.apply(x) if self.left == 0 and self.training else x


def test_a_gradient_that_is_not_finite_leaves_the_state_before_it(tmp_path, capsys):
    path = tmp_path / "state"
    with pytest.raises(Diverged, match="training loss is nan at step 7 of 12"):
        run(path, model=nn.Sequential(make_model(), ExplodingAt(6)))
    assert (saved_step(path), saved_step(before(path))) == (5, 4)
    assert "the saved state of step 5 is kept" in capsys.readouterr().out


def test_a_test_loss_that_is_not_finite_keeps_the_states_too(tmp_path):
    class Nan(Stripes):
        def eval_batches(self):
            return ((images * math.nan, labels) for images, labels in super().eval_batches())

    with pytest.raises(Diverged, match="test loss is nan after 12 steps"):
        run(tmp_path / "state", data=Nan())
    assert saved_step(tmp_path / "state") == STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """256 training and 16 test images of 32 px in 4 classes; eight training images are none."""

    def mark(pixels, number):
        pixels[:, :, number % 3] += np.uint8(30 * (number % 4))

    root = write_classes(tmp_path_factory.mktemp("images"), {"train": 256, "val": 16}, mark)
    for number in range(0, 256, 32):
        (root / "train" / "class0" / f"{number}.png").write_bytes(b"")
    return root


EVERYTHING = {"ema": 0.9, "drop_path": 0.2, "accumulate": 2, "checkpointing": True, "repeats": 3, "eval_crop": 0.875}


class Poisoned(ImageData):
    """A batch of NaN at the sixth step."""

    def train_batches(self, seed, start, stop, rank=0, world_size=1):
        for step, batch in enumerate(super().train_batches(seed, start, stop, rank, world_size), start):
            yield batch._replace(images=batch.images * math.nan) if step == 5 else batch


def train_cell(out, cell, attempt):
    """Accuracy record of a cell, and its store."""
    store = open_store(out, create=True)
    key = store.add_cell(cell)
    run_job(Job(out=out, key=key, cell=cell, attempts={"accuracy": attempt}, checkpoint_every_s=0, save_weights=True))
    record = store.records(key)[-1]
    assert record.attempt == attempt
    return store, key, record


def test_nan_in_a_batch_with_every_augmentation_keeps_the_last_good_state(folder, tmp_path, monkeypatch):
    cell = Cell(
        attn="swin",
        data=f"imagefolder:{folder}",
        recipe="small300",
        training=tuple(sorted(EVERYTHING.items())),
        steps=7,
        batch_size=32,
        height_px=32,
        width_px=32,
        threads=1,
    )
    with monkeypatch.context() as patch:
        patch.setattr(task_data, "make_data", lambda *spec, **more: Poisoned(**vars(make_data(*spec, **more))))
        store, key, record = train_cell(tmp_path / "poisoned", cell, 1)
    assert (record.status, record.error_type) == ("diverged", "Diverged")
    assert record.error_message.startswith("training loss is nan at step 6 of 7")
    newest, older = states(store, key)
    assert (saved_step(newest), saved_step(older)) == (5, 4)
    (newest.parent / f".{newest.name}.0.tmp").touch()  # of a process that was killed
    assert clean.main(["--results", str(store.out)]) == 0
    assert len(states(store, key)) == 3  # the cell is not done

    _, _, again = train_cell(tmp_path / "poisoned", cell, 2)
    assert (again.status, again.values["resumed"]) == ("ok", 1)
    assert not states(store, key)
    newest.touch()
    assert clean.main(["--results", str(store.out)]) == 0
    assert not states(store, key) and store.records(key)
    other, _, straight = train_cell(tmp_path / "straight", cell, 1)
    assert again.values["broken_images"] == straight.values["broken_images"] > 0
    assert again.samples == straight.samples and len(again.samples["loss"]) == 7
    found, expected = (
        [torch.load(path, weights_only=True)["model"] for path in sorted(s.folder(key).glob("weights.*.pth"))]
        for s in (store, other)
    )
    assert len(found) == len(expected) == 2
    for one, two in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in two)
