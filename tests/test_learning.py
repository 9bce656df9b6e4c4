"""Learning curves: what is drawn of trainings that are done, run or failed, read back from the axes."""

from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn_axes import axes_of, caption, inside, lines_of, texts_of
from figure_rows import frame, trained

from ablations.study import Cell
from runners.figures import draw
from runners.figures.__main__ import main
from runners.figures.choices import SIZES
from runners.figures.learning import smoothed
from runners.rows.curves import CurveSource, with_curves
from runners.rows.selection import LEARNING, as_read, described, read_rows
from runners.store.curve import HEADER, Point, curve_path
from runners.store.record import Record
from runners.store.store import open_store

DEVICE = "cpu-test-1t"


class Held:
    """A curve that no file holds: losses, and accuracies by step."""

    def __init__(self, losses, accuracies=()):
        self.curve = pd.DataFrame(dict.fromkeys(Point._fields, np.nan), index=range(len(losses)))
        self.curve["step"], self.curve["loss"] = np.arange(1.0, len(losses) + 1), losses
        for step, acc1 in dict(accuracies).items():
            self.curve.loc[step - 1, "acc1"] = acc1


def rows_of(steps=80, accuracies=True, **changes):
    """Rows of bra at three top-k and vanilla, three seeds each, whose losses fall, seed 2 lying 0.2 higher."""
    table = frame([{**row, **changes} for row in trained()])
    losses = [3 / np.arange(1, steps + 1) ** 0.5 + 0.1 * seed for seed in table["seed"]]
    seen = {step: 10.0 + step for step in range(20, steps + 1, 20)} if accuracies else {}
    held = [
        Held(loss, {s: acc1 + seed for s, acc1 in seen.items()})
        for loss, seed in zip(losses, table["seed"], strict=True)
    ]
    return table.assign(**{LEARNING: held})


def band(ax):
    """Lowest and highest of the first band, at each of its places."""
    points = ax.collections[0].get_paths()[0].vertices
    return {x: (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in {*points[:, 0]}}


def test_a_line_is_the_mean_of_its_seeds_and_of_its_steps_in_a_band_from_the_lowest_to_the_highest():
    figure = draw("learning", rows_of())
    ax = axes_of(figure)["training loss"]
    drawn = lines_of(ax)["vanilla"]
    expected = (3 / np.arange(1, 81) ** 0.5).reshape(40, 2).mean(axis=1) + 0.1
    assert drawn.get_xdata() == pytest.approx(np.arange(1.5, 80, 2))
    assert drawn.get_ydata() == pytest.approx(expected)
    assert band(ax)[79.5] == pytest.approx((expected[-1] - 0.1, expected[-1] + 0.1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "nats")
    assert "each point is the mean of 2 steps" in caption(figure)
    assert "mean over 3 seeds" in caption(figure) and "lowest to highest seed" in caption(figure)


def test_accuracies_on_the_way_have_a_panel_and_one_at_the_end_alone_has_none():
    ax = axes_of(draw("learning", rows_of()))["accuracy, acc1"]
    drawn = lines_of(ax)["bra topk=4"]
    assert drawn.get_xdata() == pytest.approx([20, 40, 60, 80])
    assert drawn.get_ydata() == pytest.approx([31, 51, 71, 91])
    assert ax.get_ylabel() == "%"
    alone = rows_of(accuracies=False)
    for held in alone[LEARNING]:
        held.curve.loc[79, "acc1"] = 90.0
    assert [*axes_of(draw("learning", alone))] == ["training loss"]


def test_data_layouts_and_recipes_have_panels_of_their_own():
    parts = [
        rows_of(accuracies=False),
        rows_of(accuracies=False, recipe="short"),
        rows_of(accuracies=False, layout="stl"),
    ]
    table = pd.concat([part.assign(recipe=part["recipe"].fillna("probe")) for part in parts])
    titles = {" ".join(title.split()) for title in axes_of(draw("learning", table))}
    assert titles == {f"training loss: {words}" for words in ("small", "small, recipe short", "stl")}


def test_one_seed_has_no_band():
    figure = draw("learning", rows_of()[lambda rows: rows["seed"] == 0])
    assert not any(ax.collections for ax in figure.findobj(matplotlib.axes.Axes))
    assert "One seed." in caption(figure) and "mean over" not in caption(figure)


def test_a_training_that_runs_is_drawn_as_far_as_it_is():
    table = rows_of(accuracies=False)
    at = table.index[(table["attention"] == "vanilla") & (table["seed"] == 2)][0]
    table.loc[at, "status"] = "running"
    table.at[at, LEARNING] = Held([2.0] * 30)
    table.at[table.index[0], LEARNING] = None
    figure = draw("learning", table)
    drawn = lines_of(axes_of(figure)["training loss"])["vanilla"].get_ydata()
    two, three = 3 / np.arange(1, 81) ** 0.5 + 0.05, 3 / np.arange(1, 31) ** 0.5 + 0.05
    assert drawn[20] == pytest.approx(two[40:42].mean())
    assert drawn[10] == pytest.approx((2 * three[20:22].mean() + 2.0) / 3)
    assert "Still running: 1 of 11 trainings" in caption(figure)


def test_a_training_that_failed_is_a_cross_where_it_ended():
    table = rows_of(accuracies=False)
    table.loc[0, ["acc1", "accuracy_status", "status"]] = [None, "diverged", "diverged"]
    table.at[0, LEARNING] = Held([3.0] * 50)
    ax = axes_of(draw("learning", table))["training loss"]
    (mark,) = [line for line in ax.lines if line.get_label() == "_failed"]
    assert mark.get_xdata()[0] == 50
    assert [text.get_text() for text in ax.texts if "diverged" in text.get_text()]


def test_a_rest_of_few_steps_is_left_out():
    curve = Held([1.0] * 4 + [3.0] * 4 + [9.0]).curve
    assert smoothed(curve, 4).to_dict() == {2.5: 1.0, 6.5: 3.0}
    assert smoothed(curve[:7], 4).to_dict() == {2.5: 1.0, 6.5: 3.0}
    assert smoothed(curve[:1], 4).to_dict() == {2.5: 1.0}


@pytest.mark.parametrize("size", SIZES)
def test_nothing_leaves_the_picture_or_lies_on_another(size):
    figure = draw("learning", pd.concat([rows_of(), rows_of(data="digit-recall")]), size=size)
    figure.draw_without_rendering()
    boxes = texts_of(figure)
    assert figure.get_figwidth() == SIZES[size].width
    assert [text.get_text() for text, box in boxes.items() if not inside(figure.bbox, box)] == []
    pairs = combinations(boxes.items(), 2)
    assert not [
        (a.get_text(), b.get_text()) for (a, x), (b, y) in pairs if x.shrunk(0.95, 0.75).overlaps(y.shrunk(0.95, 0.75))
    ]


# --- from a results folder


def recorded(store, cell, losses):
    key = store.add_cell(cell, None, ["accuracy"], DEVICE)
    values, samples = {"acc1": 90.0}, {"loss": losses}
    store.write_record(
        key,
        Record(measure="accuracy", device_id=DEVICE, protocol=1, status="ok", values=values, samples=samples),
    )
    return key


def write_curve(store, key, points, device=DEVICE):
    path = curve_path(store, key, device)
    path.write_text(HEADER + "".join(Point(step, None, loss, 0.1).line() for step, loss in points))
    return path


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "runs", create=True)


def test_a_curve_is_read_from_its_file_else_from_the_record(store):
    one, two = (recorded(store, Cell(attn="swin", seed=seed), [3.0, 2.0]) for seed in (0, 1))
    write_curve(store, one, [(1, 3.0), (2, 2.5), (3, 2.0)])
    rows = with_curves(read_rows(store.out), store.out).set_index("cell_key")
    assert rows[LEARNING][one].curve["loss"].tolist() == [3.0, 2.5, 2.0]
    assert rows[LEARNING][two].curve["loss"].tolist() == [3.0, 2.0]
    assert rows[LEARNING][two].curve["step"].tolist() == [1, 2]


def test_a_training_without_any_record_has_the_device_of_its_file(store):
    key = store.add_cell(Cell(attn="swin"), None, ["accuracy"])
    write_curve(store, key, [(1, 3.0)])
    recorded(store, Cell(attn="vanilla"), [3.0, 2.0])
    rows = with_curves(read_rows(store.out), store.out)
    assert rows["device_id"].tolist() == [DEVICE, DEVICE]
    assert {*lines_of(axes_of(draw("learning", rows))["training loss"])} == {"swin", "vanilla"}
    write_curve(store, key, [(1, 3.0)], "cpu-other-1t")
    assert with_curves(read_rows(store.out), store.out)["device_id"].isna().tolist().count(True) == 1


@pytest.mark.parametrize("losses", ["text", {"1": 2.0}, [], [1.0, "2"], [1.0, None], [True], [1e300], ["inf"]], ids=str)
def test_losses_of_a_record_that_are_none_are_no_curve(store, losses):
    key = recorded(store, Cell(), losses)
    assert CurveSource(store, key, DEVICE).curve is None


def test_a_file_that_is_no_curve_is_one_warning_and_the_record_is_drawn(store, capsys, tmp_path):
    keys = [recorded(store, Cell(attn="swin", seed=seed), [3.0, 2.0]) for seed in (0, 1)]
    curve_path(store, keys[0], DEVICE).write_text("\x1b[31mnonsense\n")
    (tmp_path / "theirs").write_text(HEADER + "1,,9.0,1,1,,\n")
    curve_path(store, keys[1], DEVICE).symlink_to(tmp_path / "theirs")
    sources = [CurveSource(store, key, DEVICE) for key in keys]
    assert [[*source.curve["loss"]] for source in sources for _ in range(2)] == [[3.0, 2.0]] * 4
    warnings = capsys.readouterr().err.splitlines()
    assert [keys[i] in line and "\x1b" not in line for i, line in enumerate(warnings)] == [True, True]


def test_curves_are_no_column_of_a_table_that_is_written(store):
    recorded(store, Cell(), [1.0])
    rows = read_rows(store.out)
    pd.testing.assert_frame_equal(as_read(with_curves(rows, store.out)), as_read(rows))
    assert LEARNING in described(with_curves(rows, store.out))


def test_the_command_draws_a_folder_and_refuses_what_holds_no_curves(store, tmp_path, capsys):
    for seed in (0, 1):
        recorded(store, Cell(attn="swin", seed=seed), [3.0, 2.0, 1.0])
    out = tmp_path / "p.png"
    assert main(["learning", "--results", str(store.out), "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    table = tmp_path / "t.csv"
    frame(trained()).to_csv(table, index=False)
    empty = open_store(tmp_path / "empty", create=True)
    for seed in (0, 1):
        empty.add_cell(Cell(seed=seed), None, ["accuracy"], DEVICE)
    capsys.readouterr()
    for source, words in ((table, "results folder"), (Path(empty.out), "no training has written")):
        assert main(["learning", "--results", str(source), "--out", str(tmp_path / "q.png")]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and words in message
    assert not (tmp_path / "q.png").exists()
