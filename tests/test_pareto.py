"""Fronts and rooflines of tables hold what the rows say, failures included, read back from their axes."""

import matplotlib
import numpy as np
import pytest
from drawn_axes import axes_of, crosses, lines_of
from figure_rows import frame, growing, trained

from runners.figures import draw
from runners.figures.pareto import STANDINGS
from runners.measures import MACS
from runners.rows.stats import mean_interval

# --- pareto


def test_a_front_is_marked_and_what_is_not_off_it_tied():
    rows = trained()
    for row in rows:
        if row["topk"] == 16:
            row["acc1"] = {0: 99.0, 1: 90.0, 2: 96.5}[row["seed"]]
    ax = axes_of(draw("pareto", frame(rows)))[MACS.axis]
    points = lines_of(ax)
    edges = {name: (line.get_markersize(), line.get_markeredgecolor()) for name, line in points.items()}
    front, tied, off = (
        (STANDINGS[name][1]["markersize"], STANDINGS[name][1]["mec"]) for name in STANDINGS if name != "untested"
    )
    assert edges == {"bra topk=1": front, "bra topk=4": front, "bra topk=16": tied, "vanilla": front}
    assert (*points["vanilla"].get_xydata()[0],) == pytest.approx((0.015, 96.1))
    below = [{**row, "acc1": row["acc1"] - 20 - row["seed"]} if row["topk"] == 16 else row for row in trained()]
    ax = axes_of(draw("pareto", frame(below)))[MACS.axis]
    assert lines_of(ax)["bra topk=16"].get_markersize() == off[0]


def test_error_bars_of_a_front_lie_on_both_axes():
    ax = axes_of(draw("pareto", frame(trained())))["latency of a batch (ms)"]
    x, y = mean_interval([14.7, 15.06, 15.33]), mean_interval([95, 96.2, 97.1])
    bars = [segment for bars in ax.collections for segment in bars.get_segments()]
    assert any(np.allclose(bar, [[x.low, y.mean], [x.high, y.mean]]) for bar in bars)
    assert any(np.allclose(bar, [[x.mean, y.low], [x.mean, min(y.high, 100)]]) for bar in bars)


def test_failures_of_a_front_stand_at_their_cost_or_at_the_edge():
    rows = [row for row in trained() if row["topk"] != 16 or row["seed"] == 0]
    for row in rows:
        if row["topk"] == 16:
            row |= {"acc1": None, "accuracy_status": "timeout"}
        if row["topk"] == 4:
            row |= {"infer_latency_ms": None, "throughput_status": "oom"}
    ax = axes_of(draw("pareto", frame(rows)))["latency of a batch (ms)"]
    found = crosses(ax)
    assert found["bra topk=16: acc1 timeout"][0] == pytest.approx(19.7)
    assert found["bra topk=4: latency oom"][0] == 0.03
    assert "bra topk=4" not in lines_of(ax)


@pytest.mark.parametrize("change, name", [({"data": "digit-recall"}, "data"), ({"steps": 100}, "steps")])
def test_accuracies_of_different_tasks_have_no_front(change, name):
    rows = trained()
    rows[0] |= change
    with pytest.raises(ValueError, match=f"several values of {name} do not compare"):
        draw("pareto", frame(rows))


def test_points_of_one_cost_are_named_and_the_ceiling_of_the_probe_is_a_line():
    one_cost = {"infer_latency_ms": None, "peak_infer_mib": None, "train_step_ms": None, "ceiling_percent": 61.1}
    (ax,) = draw("pareto", frame([{**row, **one_cost} for row in trained()])).findobj(matplotlib.axes.Axes)
    named = {text.get_text(): text.xy for text in ax.texts if text.get_text() in lines_of(ax)}
    assert any("61.1" in text.get_text() for text in ax.texts)
    assert named.keys() == {"bra topk=1", "bra topk=4", "bra topk=16", "vanilla"}
    assert all(named[name] == pytest.approx(point.get_xydata()[0]) for name, point in lines_of(ax).items())
    (ceiling,) = (line for line in ax.lines if line.get_label() == "_ceiling")
    assert set(ceiling.get_ydata()) == {61.1}


def test_each_resolution_has_a_front_of_its_own():
    rows = [
        {**row, "height_px": side, "width_px": side, "resolution": f"{side}x{side}"}
        for row in trained()
        for side in (64, 96)
    ]
    rows = [{**row, "cell_key": f"{row['cell_key']}{row['resolution']}"} for row in rows]
    axes = draw("pareto", frame(rows)).findobj(matplotlib.axes.Axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["64x64 px"] * 4 + ["96x96 px"] * 4
    assert all(len(lines_of(ax)) == 4 for ax in axes)


# --- roofline


def test_a_roofline_shows_speed_over_intensity_under_what_was_measured():
    table = frame(growing())
    ax = axes_of(draw("roofline", table))["FLOP per byte that operators move"]
    swin = lines_of(ax)["swin"].get_xydata()
    # 2 x 1e-5 GMAC x 8 images / 0.05 MiB for each token
    intensity = 2 * 1e-5 * 8 * 1e9 / (0.05 * 2**20)
    assert len(swin) == 4 and np.allclose(swin[:, 0], intensity)
    speeds = [np.mean([2 * 1e-5 * 8 * 1e3 / 0.02 / noise for noise in (0.95, 1, 1.05)])]
    assert np.allclose(swin[:, 1], speeds)
    roof = next(line for line in ax.lines if len(line.get_xdata()) == 200)
    assert np.allclose(roof.get_ydata(), np.minimum(10 * roof.get_xdata(), 101))
    assert any("101 GFLOP/s" in text.get_text() for text in ax.texts)
    assert any("10 GB/s" in text.get_text() for text in ax.texts)


def test_failed_cells_of_a_roofline_are_named():
    rows = growing()
    rows[0] |= {"infer_latency_ms": None, "throughput_status": "error"}
    ax = axes_of(draw("roofline", frame(rows)))["FLOP per byte that operators move"]
    assert [*crosses(ax)] == ["vanilla: 64x64 error"]
