"""Curves and sweeps of tables hold what the rows say, failures included, read back from their axes."""

import numpy as np
import pytest
from drawn_axes import axes_of, bars_at, caption, crosses, lines_of, names_beside
from figure_rows import frame, growing, trained

from runners.figures import draw
from runners.figures.frames import labels
from runners.measures import FIRST_CORE_MACS, MACS
from runners.rows.selection import described
from runners.rows.stats import fit_exponent, mean_interval

# --- complexity


def test_a_complexity_curve_is_the_geometric_mean_of_its_seeds_with_its_exponent():
    table = frame(growing())
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    drawn = lines_of(ax)["vanilla"]
    own = table[table["attention"] == "vanilla"]
    means = own.groupby("height_px")["infer_latency_ms"].agg(lambda values: np.exp(np.log(values).mean()))
    assert np.allclose(drawn.get_xdata(), [(side / 4) ** 2 for side in means.index])
    assert np.allclose(drawn.get_ydata(), means)
    assert names_beside(ax) == {"vanilla\n2.00 ± 0.00", "swin\n1.00 ± 0.00", "bra\n1.30 ± 0.00"}
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylabel()) == ("log", "log", "ms")
    assert ax.get_xlabel() == "tokens of the first stage"


def test_the_interval_is_over_seeds_and_no_wider_for_more_sizes():
    table = frame(growing())
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    own = table[(table["attention"] == "vanilla") & (table["height_px"] == 128)]
    expected = mean_interval(np.log(own["infer_latency_ms"].astype(float)))
    assert bars_at(ax, 1024)[0] == pytest.approx((np.exp(expected.low), np.exp(expected.high)))


def test_exponents_are_fitted_to_means_so_that_repeats_do_not_narrow_their_interval():
    rows = growing()
    for row in rows:
        row["infer_latency_ms"] *= 1.2 if row["height_px"] == 128 else 1
    table = frame(rows)
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    line = lines_of(ax)["swin"]
    fit = fit_exponent(line.get_xdata(), line.get_ydata())
    assert f"swin\n{fit.exponent:.2f} ± {fit.high - fit.exponent:.2f}" in names_beside(ax)
    assert fit.n == 4 and fit.high - fit.low > 0.1


def test_dashed_lines_have_the_slopes_of_the_closed_forms():
    ax = axes_of(draw("complexity", frame(growing())))[FIRST_CORE_MACS.title]
    guides = [line for line in ax.lines if line.get_label() == "_guide"]
    slopes = [float(np.diff(np.log(line.get_ydata()))[0] / np.diff(np.log(line.get_xdata()))[0]) for line in guides]
    assert sorted(slopes) == pytest.approx([1, 4 / 3, 2])
    assert {"$N$", "$N^{4/3}$", "$N^{2}$"} <= {text.get_text() for text in ax.texts}


def test_failed_cells_are_crosses_on_top_and_the_other_measures_of_the_cell_stay():
    rows = growing()
    for row in rows:
        if row["attention"] == "vanilla" and row["height_px"] == 256:
            row |= {"infer_latency_ms": None, "throughput_status": "oom", "status": "oom"}
        if row["attention"] == "swin" and row["height_px"] == 256:
            row |= {"infer_latency_ms": None, "throughput_status": "timeout", "status": "timeout"}
    axes = axes_of(draw("complexity", frame(rows)))
    found = crosses(axes["latency of a batch"])
    assert {text: x for text, (x, _) in found.items()} == {"vanilla: oom": 4096, "swin: timeout": 4096}
    assert all(0.8 < y < 1 for _, y in found.values()) and len({y for _, y in found.values()}) == 2
    assert len(lines_of(axes["latency of a batch"])["vanilla"].get_xdata()) == 3
    assert not crosses(axes["peak memory of inference"])
    assert len(lines_of(axes["peak memory of inference"])["vanilla"].get_xdata()) == 4


def test_rows_under_other_conditions_are_no_part_of_a_line():
    table = frame([*growing(), *growing(batch_size=64, cell_key="x")])
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    assert {"vanilla batch 8", "vanilla batch 64"} <= {*lines_of(ax)}
    assert "vanilla batch 64 2.00 ± 0.00" in {name.replace("\n", " ") for name in names_beside(ax)}
    # of a table's column of booleans, whose values are not Python's own
    compiled = axes_of(draw("complexity", frame([*growing(), *growing(compile=True, cell_key="x")])))
    assert {"vanilla", "vanilla compiled"} <= {*lines_of(compiled["latency of a batch"])}
    once = frame([*growing(), {**trained()[0], "batch_size": 64}])
    figure = draw("complexity", once)
    assert {*lines_of(axes_of(figure)["latency of a batch"])} == {"vanilla", "swin", "bra"}
    assert "batch 64" in caption(figure)


def test_a_mechanism_of_one_size_is_a_point_in_every_panel():
    rows = [row for row in growing() if row["attention"] != "swin" or row["height_px"] == 64]
    axes = axes_of(draw("complexity", frame(rows))).values()
    assert [len(lines_of(ax)["swin"].get_xdata()) for ax in axes] == [1] * 4
    assert all("swin" in {text.get_text() for text in ax.texts} for ax in axes)


def test_lines_are_named_by_what_tells_them_apart():
    rows = [
        {"attention": "bra", "settings": s, "seed": 0, "resolution": "64x64"} for s in ("lepe=off;topk=1", "topk=8")
    ]
    table = described(frame([*rows, {"attention": "swin", "seed": 0, "resolution": "64x64"}]))
    assert [*labels(table)] == ["bra topk=1 lepe=off", "bra topk=8", "swin"]
    assert [*labels(table, apart=("topk",))] == ["bra lepe=off", "bra", "swin"]


# --- sweeps


def test_a_sweep_shows_means_intervals_seeds_and_vanilla_as_a_level():
    table = frame(trained())
    figure = draw("topk", table)
    ax = axes_of(figure)["accuracy, acc1"]
    line = lines_of(ax)["bra"]
    assert np.allclose(line.get_xdata(), [1, 4, 16])
    assert np.allclose(line.get_ydata(), [55.1, 85.1, 95.1])
    vanilla = lines_of(ax)["vanilla"]
    assert np.allclose(vanilla.get_ydata(), 96.1)
    dots = [dot for dot in ax.lines if dot.get_label() == "_seeds"]
    assert sorted(dots[0].get_ydata()) == sorted(table.loc[table["attention"] == "bra", "acc1"])
    interval = mean_interval([54, 55.2, 56.1])
    assert bars_at(ax, 1) == [pytest.approx((interval.low, interval.high))]
    assert names_beside(ax) == {"bra", "vanilla"}
    assert not [area for area in ax.collections if not hasattr(area, "get_segments")], "a band covers the panel"


def test_speed_and_memory_against_the_batch_have_a_line_for_each_mechanism():
    rows = [
        {
            **{"attention": name, "resolution": "64x64", "seed": 0, "batch_size": batch, "cell_key": f"{name}{batch}"},
            **{"infer_samples_per_sec": rate * batch, "peak_infer_mib": 10.0 + batch, "peak_train_mib": 20.0 * batch},
        }
        for name, rate in (("swin", 100.0), ("vanilla", 50.0))
        for batch in (1, 8, 64)
    ]
    axes = axes_of(draw("batch", frame(rows)))
    assert [*axes] == ["throughput of inference", "peak memory of inference", "peak memory of training"]
    lines = lines_of(axes["throughput of inference"])
    assert np.allclose(lines["swin"].get_xdata(), [1, 8, 64])
    assert np.allclose(lines["vanilla"].get_ydata(), [50, 400, 3200])
    with pytest.raises(ValueError, match="two values of the batch"):
        draw("batch", frame(rows[::3]))


def test_a_sweep_over_region_sizes_marks_what_auto_chose():
    rows = [
        {**row, "settings": f"region_size={row['topk']}", "topk": 4} for row in trained() if row["attention"] == "bra"
    ]
    auto = [{**row, "settings": "region_size=auto", "region_size": "8x8-2x2"} for row in rows[:3]]
    ax = axes_of(draw("region_size", frame(rows + auto)))[MACS.title]
    assert np.allclose(lines_of(ax)["bra"].get_xdata(), [1, 4, 16])
    assert np.allclose(lines_of(ax)["bra auto"].get_xdata(), [8])


def test_a_failed_value_of_a_sweep_is_a_cross():
    rows = trained()
    for row in rows:
        if row["topk"] == 16:
            row |= {"acc1": None, "accuracy_status": "diverged"}
    ax = axes_of(draw("topk", frame(rows)))["accuracy, acc1"]
    assert {text: x for text, (x, _) in crosses(ax).items()} == {"bra: diverged": 16}
