"""The curve of a training: a line for each step in a file, the same whether or not the training was cut off."""

import errno
import importlib.util
import math
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from resume_cells import Cut, cut_at, make_model
from test_train import Stripes

from runners.rows.curves import read_curve
from runners.store.curve import HEADER, Point, device_of
from runners.train import curve as module
from runners.train.accuracy import Diverged, train_and_evaluate
from runners.train.curve import Board, Curve
from runners.train.recipe import PROBE, Recipe

CPU = torch.device("cpu")
STEPS = 12


class Endless(Stripes):
    """Draws one batch after another."""


class Epochs(Stripes):
    """The same, of which five steps are an epoch."""

    steps_per_epoch = 5


def run(path: Path | None, data=None, every_s: float = 0.0, state: Path | None = None, **changes):
    """Losses, row and weights of a training that writes its curve."""
    torch.set_num_threads(1)
    data, model = data or Endless(), make_model()
    made = Curve(path, batch_size=16, steps_per_epoch=data.steps_per_epoch, every_s=every_s) if path else nullcontext()
    with made as curve:
        row, samples = train_and_evaluate(
            model,
            data,
            **{"steps": STEPS, "seed": 0, "device": CPU, **changes},
            state_path=state,
            checkpoint_every_s=0.0,
            curve=curve,
        )
    return samples["loss"], row, model.state_dict()


def lines(path: Path) -> list[str]:
    """Lines of a curve without their speed, which no two trainings share."""
    head, *rest = path.read_text().splitlines()
    assert f"{head}\n" == HEADER
    return [",".join(field for place, field in enumerate(line.split(",")) if place != 4) for line in rest]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "curve.csv"
    return path, run(path, Epochs())


def test_the_file_holds_every_step_and_the_evaluation_at_the_end(whole):
    path, (losses, row, _) = whole
    curve = read_curve(path)
    assert [*curve] == ["step", "epoch", "loss", "lr", "img_per_s", "acc1", "val_loss"]
    assert curve["loss"].tolist() == losses
    assert curve["step"].tolist() == [*range(1, STEPS + 1)]
    assert curve["epoch"].tolist() == pytest.approx([step / 5 for step in range(1, STEPS + 1)])
    assert curve["lr"].tolist() == pytest.approx([PROBE.learning_rate_at(s, STEPS) for s in range(STEPS)], rel=1e-5)
    assert (curve["img_per_s"] > 0).all()
    assert 16 * STEPS / row["train_seconds"] == pytest.approx(STEPS / (1 / curve["img_per_s"]).sum(), rel=0.02)
    assert curve["acc1"].notna().tolist() == [False] * (STEPS - 1) + [True]
    assert curve.iloc[-1][["acc1", "val_loss"]].tolist() == [row["acc1"], row["val_loss"]]


def test_an_endless_stream_has_no_epochs(tmp_path):
    run(tmp_path / "c", steps=2)
    assert [line.split(",")[1] for line in lines(tmp_path / "c")] == ["", ""]


def test_a_curve_moves_no_bit_of_the_training(whole):
    losses, _, weights = run(None, Epochs())
    assert losses == whole[1][0]
    assert all(torch.equal(weights[name], whole[1][2][name]) for name in weights)


def test_looks_for_a_stated_accuracy_are_evaluations(tmp_path):
    _, row, _ = run(tmp_path / "c", target_acc=100, steps=40)
    curve = read_curve(tmp_path / "c")
    seen = curve.loc[curve["acc1"].notna(), "step"].tolist()
    reached = row["steps_to_acc"] or 40
    assert seen == sorted({*range(2, reached + 1, 2), 40})


@pytest.mark.parametrize("every_s", [0.0, 1e9], ids=["each line at once", "at the end alone"])
@pytest.mark.parametrize("step", [1, 7, STEPS])
def test_a_training_that_was_cut_off_leaves_the_file_of_one_that_was_not(whole, tmp_path, step, every_s):
    path, state = tmp_path / "c", tmp_path / "state"
    with pytest.raises(Cut):
        run(path, Epochs(), every_s, state, progress=cut_at(step))
    run(path, Epochs(), every_s, state)
    assert lines(path) == lines(whole[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff\x00" * 99),
        lambda path: path.write_text(path.read_text()[:-9]),
        lambda path: path.write_text(path.read_text().replace("\n3,", "\nx,")),
        lambda path: path.write_text(path.read_text() + "8,1.6,nan,1,1,,\n9,9,9\n"),
        lambda path: path.write_text(path.read_text().replace(",", ";")),
    ],
    ids=["gone", "bytes", "cut off", "a word", "more lines", "other fields"],
)
def test_what_became_of_the_file_meanwhile_is_written_again_from_the_state(whole, tmp_path, damage):
    path, state = tmp_path / "c", tmp_path / "state"
    with pytest.raises(Cut):
        run(path, Epochs(), 0.0, state, progress=cut_at(7))
    damage(path)
    run(path, Epochs(), 0.0, state)
    assert lines(path) == lines(whole[0])


def test_lines_of_another_training_are_cut_away(whole, tmp_path):
    path = tmp_path / "c"
    run(path, Epochs(), seed=1, steps=STEPS + 5)
    run(path, Epochs())
    assert lines(path) == lines(whole[0])


def test_an_evaluation_joins_the_line_of_its_step_and_may_be_told_again(tmp_path):
    with Curve(tmp_path / "c", batch_size=8, steps_per_epoch=None) as curve:
        curve.resume([], lambda step: 1.0)
        curve.step(1, 2.5, 1e-3, 0.5)
        curve.evaluation(1, 12.34567, 2.25)
        curve.evaluation(1, 9.0, math.nan)
        with pytest.raises(ValueError, match=r"after step 2.*last step is 1"):
            curve.evaluation(2, 50.0, 1.0)
        curve.step(2, 2.0, 2e-3, 0.25)
        assert (tmp_path / "c").read_text() == HEADER + "1,,2.5,0.001,16.0,9.0,\n"
    assert (tmp_path / "c").read_text() == HEADER + "1,,2.5,0.001,16.0,9.0,\n2,,2.0,0.002,32.0,,\n"


def test_lines_are_written_every_few_seconds_and_at_the_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Curve(tmp_path / "c", batch_size=8, steps_per_epoch=None, every_s=5.0) as curve:
        curve.resume([], lambda step: 1.0)
        written = []
        for step in range(1, 13):
            now[0] += 1
            curve.step(step, 1.0, 1.0, 1.0)
            written.append(len(lines(tmp_path / "c")))
    assert written == [0] * 4 + [5] * 5 + [10] * 3
    assert len(lines(tmp_path / "c")) == 12


def test_a_full_disk_is_one_warning_and_the_lines_come_when_there_is_room(tmp_path, monkeypatch, capsys):
    room, write = [10**6], os.pwrite

    def pwrite(descriptor, content, place):
        if place + len(content) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content, place)

    monkeypatch.setattr(module.os, "pwrite", pwrite)
    with Curve(tmp_path / "c", batch_size=8, steps_per_epoch=None, every_s=0.0) as curve:
        curve.resume([], lambda step: 1.0)
        for step in range(1, 9):
            room[0] = 80 if 3 <= step <= 6 else 10**6
            curve.step(step, 1.0, 1.0, 1.0)
            assert curve.is_whole == (room[0] > 80)
    warning = capsys.readouterr().out
    assert warning.count("\n") == 1 and "No space left on device" in warning and str(tmp_path / "c") in warning
    assert read_curve(tmp_path / "c")["step"].tolist() == [*range(1, 9)]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "no folder"])
def test_what_is_no_file_is_left_alone_and_costs_no_training(whole, tmp_path, kind, capsys):
    path = tmp_path / ("none/c" if kind == "no folder" else "c")
    if kind == "link":
        (tmp_path / "theirs").write_text("theirs")
        path.symlink_to(tmp_path / "theirs")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    losses, _, _ = run(path, Epochs())
    assert losses == whole[1][0]
    assert capsys.readouterr().out.count("warning") == 1
    assert kind != "link" or (tmp_path / "theirs").read_text() == "theirs"


def test_a_training_that_diverges_leaves_the_steps_before(tmp_path):
    with pytest.raises(Diverged):
        run(tmp_path / "c", every_s=1e9, steps=40, recipe=Recipe(lr=1e30, clip_norm=None))
    curve = read_curve(tmp_path / "c")
    assert 0 < len(curve) < 40 and curve["acc1"].isna().all()


# --- what strangers' files may hold


BAD = {
    "another header": "step,loss\n1,2\n",
    "no header": "1,,2.0,0.1,1.0,,\n",
    "nothing": "",
    "a word": HEADER + "1,,two,0.1,1.0,,\n",
    "no loss": HEADER + "1,,,0.1,1.0,,\n",
    "an infinity": HEADER + "1,,inf,0.1,1.0,,\n",
    "not a number": HEADER + "1,,nan,0.1,1.0,,\n",
    "beyond any axis": HEADER + "1,,1e300,0.1,1.0,,\n",
    "a gap": HEADER + "1,,2.0,0.1,1.0,,\n3,,2.0,0.1,1.0,,\n",
    "backwards": HEADER + "2,,2.0,0.1,1.0,,\n1,,2.0,0.1,1.0,,\n",
    "more fields": HEADER + "1,,2.0,0.1,1.0,,\n2,,2.0,0.1,1.0,,,,,7\n",
    "a formula": HEADER + '1,,"=cmd()",0.1,1.0,,\n',
    "bytes": HEADER + "1,,\udcff,0.1,1.0,,\n",
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_no_training_wrote_is_refused(tmp_path, what):
    (tmp_path / "c").write_text(BAD[what], errors="surrogateescape")
    with pytest.raises(ValueError) as error:
        read_curve(tmp_path / "c")
    assert "\n" not in str(error.value).strip()


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    (tmp_path / "c").write_text(HEADER + "1,,2.0,0.1,1.0,,\n")
    monkeypatch.setattr("runners.rows.curves.MAX_BYTES", 59)
    with pytest.raises(ValueError, match="more than 59"):
        read_curve(tmp_path / "c")


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path):
    (tmp_path / "c").write_text(HEADER + "1,,2.0,0.1,1.0,,\n2,,1.")
    assert read_curve(tmp_path / "c")["loss"].tolist() == [2.0]
    (tmp_path / "c").write_text(HEADER)
    assert read_curve(tmp_path / "c").empty


def test_a_point_is_read_as_it_was_written():
    for point in (Point(7, 1.4, 0.1 + 0.2, 1e-3, 512.5, 97.0, 0.25), Point(1, None, 2.5, 0.5)):
        assert Point.parse(point.line().strip()) == point
    assert device_of("curve.cpu-x-1t.csv") == "cpu-x-1t"
    assert device_of("curve.csv") is device_of("training.cpu-x-1t") is device_of("curve..csv") is None


# --- TensorBoard


def test_a_board_that_cannot_be_written_is_one_warning(tmp_path, capsys):
    (tmp_path / "board").write_text("a file")
    path = tmp_path / "c"
    with Curve(path, batch_size=8, steps_per_epoch=None, board=Board(tmp_path / "board", "bra")) as curve:
        curve.resume([], lambda step: 1.0)
        for step in (1, 2):
            curve.step(step, 1.0, 1.0, 1.0)
        curve.evaluation(2, 50.0, 1.0)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and str(tmp_path / "board") in out
    assert len(lines(path)) == 2


@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_what_a_training_that_was_cut_off_has_written(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed: pip install -e '.[watch]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = [2.0, 1.5, 1.25]
    for before, steps in (([], (1, 2, 3)), (losses[:1], (2, 3))):
        board = Board(tmp_path / "board", "bra small 64x64")
        with Curve(tmp_path / "c", batch_size=8, steps_per_epoch=None, board=board) as curve:
            curve.resume(before, lambda step: 1.0)
            for step in steps:
                curve.step(step, losses[step - 1], 1e-3, 0.5)
            curve.evaluation(3, 75.0, 0.5)
    read = EventAccumulator(str(tmp_path / "board"), purge_orphaned_data=True)
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("train/loss")] == [*enumerate(losses, 1)]
    assert {point.value for point in read.Scalars("train/img_per_s")} == {16.0}
    assert [(point.step, point.value) for point in read.Scalars("eval/acc1")] == [(3, 75.0)]
