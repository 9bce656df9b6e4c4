"""Figures of tables hold what the rows say, failures included, read back from their axes."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figure_rows import frame, growing, trained
from sample_results import write_sample

from runners.figures import KINDS, draw, show
from runners.figures.__main__ import main
from runners.figures.frames import labels, results
from runners.figures.pareto import STANDINGS
from runners.measures import FIRST_CORE_MACS, MACS
from runners.rows.selection import described, read_rows
from runners.rows.stats import fit_exponent, mean_interval

ROOT = Path(__file__).parents[1]
(SAMPLE,) = (ROOT / "results").glob("sample_*.csv")


def axes_of(figure) -> dict[str, object]:
    """Axes by title, or by the label of x where they have none."""
    return {ax.get_title(loc="left") or ax.get_xlabel(): ax for ax in figure.findobj(matplotlib.axes.Axes)}


def lines_of(ax) -> dict[str, object]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def names_beside(ax) -> set[str]:
    """What is written in the column at the right of axes."""
    return {text.get_text() for text in ax.texts if text.get_position()[0] > 1 and text.anncoords == "axes fraction"}


def bars_at(ax, x) -> list[tuple[float, float]]:
    """Ends of the vertical intervals at an x, in the order in which they were drawn."""
    bars = [segment for bars in ax.collections if hasattr(bars, "get_segments") for segment in bars.get_segments()]
    return [tuple(bar[:, 1]) for bar in bars if np.allclose(bar[:, 0], x)]


def crosses(ax) -> dict[str, tuple[float, float]]:
    """Places of the failures by what is written beside them."""
    marks = [line for line in ax.lines if line.get_label() == "_failed"]
    return {text.get_text(): tuple(text.xy) for text in ax.texts if text.xy in [(*m.get_xydata()[0],) for m in marks]}


def caption(figure) -> str:
    return " ".join(" ".join(part.get_supxlabel() for part in figure.subfigs).split())


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


# --- every kind


@pytest.fixture(scope="module")
def drawn():
    rows = read_rows(SAMPLE)
    return {kind: draw(kind, rows) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_has_a_unit_and_the_caption_a_device_and_versions(drawn, kind):
    for ax in drawn[kind].findobj(matplotlib.axes.Axes):
        assert ax.get_xlabel().endswith(")") or "tokens" in ax.get_xlabel() or "FLOP per byte" in ax.get_xlabel()
        # a ranking has names in the place of a scale
        assert ax.get_ylabel() or {text.get_text() for text in ax.get_yticklabels()} >= {"vanilla", "bra"}
    text = caption(drawn[kind])
    assert "Intel(R) Xeon(R) Processor (cpu-intel" in text
    assert all(f"{library} " in text for library in ("attention-zoo", "torch", "python"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_drawn_is_one_clear_error(kind):
    table = frame(growing() + trained())
    with pytest.raises(ValueError, match="no rows"):
        draw(kind, table[:0])
    with pytest.raises(ValueError, match="compares rows, and the table has 1 "):
        draw(kind, table[:1])
    with pytest.raises(ValueError, match=r"lacks column infer_latency_ms$"):
        draw(kind, table.drop(columns="infer_latency_ms"))
    with pytest.raises(ValueError, match=r"cpu-test-1t, gpu.*by_device"):
        draw(kind, pd.concat([table, table.assign(device_id="gpu")]))
    with pytest.raises(ValueError, match=r"no (row|mechanism)|needs the accuracy"):
        draw(kind, frame([{"attention": "swin", "seed": seed, "resolution": "64x64"} for seed in range(2)]))
    with pytest.raises(ValueError, match=r"'circles'.*complexity"):
        draw("circles", table)


@pytest.mark.parametrize("kind", ["complexity", "region_size"])
def test_devices_are_drawn_apart_when_asked(kind):
    table = frame(trained() if kind in ("topk", "region_size", "pareto") else growing())
    if kind == "region_size":
        table = table.assign(settings=table["settings"].str.replace("topk", "region_size"), topk=4)
    alone = draw(kind, table)
    figure = draw(kind, pd.concat([table, table.assign(device_id="gpu")]), by_device=True)
    parts = figure.subfigs
    assert [part.get_suptitle() for part in parts] == ["cpu-test-1t", "gpu"]
    assert [len(part.axes) for part in parts] == [len(alone.subfigs[0].axes)] * 2


def test_cells_without_a_record_are_counted(capsys):
    table = frame([*growing(), {**growing()[0], "device_id": None, "status": "pending", "gmacs": None}])
    assert "not drawn: 1 pending" in caption(draw("complexity", table))
    assert show("complexity", table[:0]) is None
    assert capsys.readouterr().out == "complexity is not drawn: the table has no rows: nothing to draw\n"


@pytest.mark.parametrize("kind", ["topk", "roofline"])
def test_the_command_draws_a_kind(kind, tmp_path, capsys):
    out = tmp_path / "picture.svg"
    assert main([kind, "--results", str(SAMPLE), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<svg" in out.read_text()


def test_the_command_draws_one_device_of_several(tmp_path, capsys):
    both = tmp_path / "both.csv"
    rows = frame(growing())
    pd.concat([rows, rows.assign(device_id="gpu", cell_key=rows["cell_key"] + "g")]).to_csv(both, index=False)
    out = str(tmp_path / "picture.svg")
    assert main(["complexity", "--results", str(both), "--out", out]) == 2
    assert "rows of 2 devices do not compare" in capsys.readouterr().err
    assert main(["complexity", "--results", str(both), "--out", out, "--device-id", "gpu"]) == 0
    assert main(["complexity", "--results", str(both), "--out", out, "--device-id", "tpu"]) == 2
    assert capsys.readouterr().err.endswith("--device-id tpu: no such device in the table; it has: cpu-test-1t, gpu\n")


# --- which results


def test_the_sample_is_drawn_only_where_there_are_no_results(tmp_path):
    with pytest.raises(ValueError, match="no results: neither"):
        results(tmp_path)
    (tmp_path / SAMPLE.name).write_text(SAMPLE.read_text())
    assert len(results(tmp_path)) == len(read_rows(SAMPLE)) > 50
    from ablations.study import Cell
    from runners.store.store import open_store

    open_store(tmp_path / "runs", create=True).add_cell(Cell())
    assert len(results(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["complexity", pytest.param("topk", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("column", "measure"), [("peak_infer_mib", "memory"), ("infer_latency_ms", "throughput")])
def test_a_quantity_that_failed_everywhere_leaves_the_others(tmp_path, kind, column, measure):
    write_sample(tmp_path, seeds=2)
    rows = read_rows(tmp_path)
    failed = rows.assign(**{column: pd.array([None] * len(rows), dtype="Float64"), f"{measure}_status": "oom"})
    titles = {ax.get_title(loc="left") or ax.get_xlabel() for ax in draw(kind, failed).axes if ax.lines}
    assert len(titles) > 1


@pytest.mark.parametrize("kind", ["topk", *(pytest.param(k, marks=pytest.mark.slow) for k in ("complexity", "pareto"))])
def test_tables_that_were_joined_are_drawn(tmp_path, kind):
    write_sample(tmp_path, seeds=2)
    rows = read_rows(tmp_path)
    half = len(rows) // 2
    parts = [part.reset_index(drop=True) for part in (rows.iloc[:half], rows.iloc[half:])]
    joined, whole = (draw(kind, table) for table in (pd.concat(parts), rows))
    assert [len(ax.lines) for ax in joined.axes] == [len(ax.lines) for ax in whole.axes]
