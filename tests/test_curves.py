"""Figures of tables hold what the rows say, failures included, read back from their axes."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from sample_results import write_sample

from runners.figures import KINDS, draw, show
from runners.figures.__main__ import main
from runners.figures.frames import labels, results
from runners.figures.style import looks
from runners.measures import FIRST_CORE_MACS, MACS
from runners.rows.selection import described, read_rows
from runners.rows.stats import fit_exponent, mean_interval
from runners.store.columns import COLUMNS

ROOT = Path(__file__).parents[1]
(SAMPLE,) = (ROOT / "results").glob("sample_*.csv")

COMMON = {
    "status": "ok",
    "layout": "small",
    "precision": "fp32",
    "compile": False,
    "data": "digit-vote",
    "steps": 400,
    "batch_size": 8,
    "threads": 1,
    "device_id": "cpu-test-1t",
    "device_name": "Test Processor",
    "versions": "attention-zoo=0.1.0;torch=2.14.1",
}


def frame(rows: list[dict]) -> pd.DataFrame:
    """A table as `load` returns it, of rows that give what they have."""
    found = pd.DataFrame([{**COMMON, **row} for row in rows])
    data = {
        name: found[name].astype(c.dtype) if name in found else pd.array([None] * len(found), dtype=c.dtype)
        for name, c in COLUMNS.items()
    }
    return pd.DataFrame(data)


def growing(**changes) -> list[dict]:
    """Rows of vanilla, swin and bra at four sizes and three seeds, whose costs are powers of the tokens."""
    rows = []
    for attention, settings, exponent in (
        ("vanilla", None, 2.0),
        ("swin", None, 1.0),
        ("bra", "region_size=auto", 1.3),
    ):
        for side in (64, 128, 192, 256):
            for seed in range(3):
                tokens = (side / 4) ** 2
                # the same for each size, so that the means follow the power exactly
                noise = 1 + 0.05 * (seed - 1)
                rows.append(
                    {
                        "cell_key": f"{attention}{side}{seed}",
                        "attention": attention,
                        "settings": settings,
                        "height_px": side,
                        "width_px": side,
                        "resolution": f"{side}x{side}",
                        "seed": seed,
                        "first_core_gmacs": 1e-7 * tokens**exponent,
                        "gmacs": 1e-5 * tokens,
                        "executed_gmacs": 1e-5 * tokens,
                        "infer_latency_ms": 0.02 * tokens**exponent * noise,
                        "peak_infer_mib": 2 * tokens**0.8,
                        "traffic_mib": 0.05 * tokens,
                        "gemm_gflops": 100.0 + seed,
                        "copy_gb_s": 10.0,
                        "throughput_status": "ok",
                    }
                )
    return [{**row, **changes} for row in rows]


def trained() -> list[dict]:
    """Rows of bra at three top-k and of vanilla, three seeds each, with accuracies and costs."""
    settings = {("bra", 1): (55, 10), ("bra", 4): (85, 12), ("bra", 16): (95, 20), ("vanilla", None): (96, 15)}
    return [
        {
            "cell_key": f"{attention}{topk}{seed}",
            "attention": attention,
            "settings": f"topk={topk}" if topk else None,
            "topk": topk,
            "region_size": f"{topk or 4}x{topk or 4}-2x2",
            "resolution": "64x64",
            "height_px": 64,
            "width_px": 64,
            "seed": seed,
            "acc1": acc1 + spread,
            "gmacs": cost / 1000,
            "infer_latency_ms": cost + 0.3 * spread,
            "peak_infer_mib": 2.0 * cost,
            "train_step_ms": 3 * cost + 0.2 * spread,
            "accuracy_status": "ok",
            "throughput_status": "ok",
        }
        for (attention, topk), (acc1, cost) in settings.items()
        for seed, spread in enumerate((-1.0, 0.2, 1.1))
    ]


def axes_of(figure) -> dict[str, object]:
    """Axes by title, or by the label of x where they have none."""
    return {ax.get_title(loc="left") or ax.get_xlabel(): ax for ax in figure.findobj(matplotlib.axes.Axes)}


def lines_of(ax) -> dict[str, object]:
    return {line.get_label().partition("\n")[0]: line for line in ax.lines if not line.get_label().startswith("_")}


def crosses(ax) -> dict[str, tuple[float, float]]:
    """Places of the failures by what is written beside them."""
    marks = [line for line in ax.lines if line.get_label() == "_failed"]
    return {text.get_text(): tuple(text.xy) for text in ax.texts if text.xy in [(*m.get_xydata()[0],) for m in marks]}


def caption(figure) -> str:
    return " ".join(" ".join(part.get_text() for part in figure.findobj(Text) if "\n" in part.get_text()).split())


# --- complexity


def test_a_complexity_curve_is_the_geometric_mean_of_its_seeds_with_its_exponent():
    table = frame(growing())
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    drawn = lines_of(ax)["vanilla"]
    own = table[table["attention"] == "vanilla"]
    means = own.groupby("height_px")["infer_latency_ms"].agg(lambda values: np.exp(np.log(values).mean()))
    assert np.allclose(drawn.get_xdata(), [(side / 4) ** 2 for side in means.index])
    assert np.allclose(drawn.get_ydata(), means)
    assert drawn.get_label() == "vanilla\n2.00 (2.00 to 2.00)"
    assert {line.get_label().split("\n")[1][:4] for line in lines_of(ax).values()} == {"2.00", "1.00", "1.30"}
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylabel()) == ("log", "log", "ms")
    assert ax.get_xlabel() == "tokens of the first stage"


def test_the_band_is_the_interval_over_seeds_and_no_wider_for_more_sizes():
    table = frame(growing())
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    own = table[(table["attention"] == "vanilla") & (table["height_px"] == 128)]
    expected = mean_interval(np.log(own["infer_latency_ms"].astype(float)))
    band = ax.collections[0].get_paths()[0].vertices
    ends = band[np.isclose(band[:, 0], 1024), 1]
    assert (ends.min(), ends.max()) == (pytest.approx(np.exp(expected.low)), pytest.approx(np.exp(expected.high)))


def test_exponents_are_fitted_to_means_so_that_repeats_do_not_narrow_their_interval():
    rows = growing()
    for row in rows:
        row["infer_latency_ms"] *= 1.2 if row["height_px"] == 128 else 1
    table = frame(rows)
    ax = axes_of(draw("complexity", table))["latency of a batch"]
    line = lines_of(ax)["swin"]
    fit = fit_exponent(line.get_xdata(), line.get_ydata())
    assert line.get_label() == f"swin\n{fit.exponent:.2f} ({fit.low:.2f} to {fit.high:.2f})"
    assert fit.n == 4 and fit.high - fit.low > 0.1


def test_dashed_lines_have_the_slopes_of_the_closed_forms():
    ax = axes_of(draw("complexity", frame(growing())))[FIRST_CORE_MACS.title]
    guides = [line for line in ax.lines if line.get_label().startswith("_child") and len(line.get_xdata()) == 2]
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
    once = frame([*growing(), {**trained()[0], "batch_size": 64}])
    assert {*lines_of(axes_of(draw("complexity", once))["latency of a batch"])} == {"vanilla", "swin", "bra"}


def test_lines_are_named_by_what_tells_them_apart():
    rows = [
        {"attention": "bra", "settings": s, "seed": 0, "resolution": "64x64"} for s in ("lepe=off;topk=1", "topk=8")
    ]
    table = described(frame([*rows, {"attention": "swin", "seed": 0, "resolution": "64x64"}]))
    assert [*labels(table)] == ["bra topk=1 lepe=off", "bra topk=8", "swin"]
    assert [*labels(table, apart=("topk",))] == ["bra lepe=off", "bra", "swin"]


# --- sweeps


def test_a_sweep_shows_means_bands_seeds_and_vanilla_as_a_level():
    table = frame(trained())
    figure = draw("topk", table)
    ax = axes_of(figure)["accuracy, acc1"]
    line = lines_of(ax)["bra"]
    assert np.allclose(line.get_xdata(), [1, 4, 16])
    assert np.allclose(line.get_ydata(), [55.1, 85.1, 95.1])
    vanilla = lines_of(ax)["vanilla"]
    assert np.allclose(vanilla.get_ydata(), 96.1)
    dots = [dot for dot in ax.lines if dot.get_marker() == "."]
    assert sorted(dots[0].get_ydata()) == sorted(table.loc[table["attention"] == "bra", "acc1"])
    band = ax.collections[0].get_paths()[0].vertices
    interval = mean_interval([54, 55.2, 56.1])
    ends = band[np.isclose(band[:, 0], 1), 1]
    assert (ends.min(), ends.max()) == (pytest.approx(interval.low), pytest.approx(interval.high))
    (part,) = figure.subfigs
    assert [text.get_text() for text in part.legends[0].get_texts()] == ["bra (n = 3)", "vanilla (n = 3)"]


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
    styles = {name: line.get_fillstyle() for name, line in points.items()}
    assert styles == {"bra topk=1": "full", "bra topk=4": "full", "bra topk=16": "bottom", "vanilla": "full"}
    assert (*points["vanilla"].get_xydata()[0],) == pytest.approx((0.015, 96.1))
    below = [{**row, "acc1": row["acc1"] - 20 - row["seed"]} if row["topk"] == 16 else row for row in trained()]
    ax = axes_of(draw("pareto", frame(below)))[MACS.axis]
    assert lines_of(ax)["bra topk=16"].get_fillstyle() == "none"


def test_error_bars_of_a_front_lie_on_both_axes():
    ax = axes_of(draw("pareto", frame(trained())))["latency of a batch (ms)"]
    x, y = mean_interval([14.7, 15.06, 15.33]), mean_interval([95, 96.2, 97.1])
    bars = [segment for bars in ax.collections for segment in bars.get_segments()]
    assert any(np.allclose(bar, [[x.low, y.mean], [x.high, y.mean]]) for bar in bars)
    assert any(np.allclose(bar, [[x.mean, y.low], [x.mean, y.high]]) for bar in bars)


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
    assert found["bra topk=4: infer_latency_ms oom"][0] == 0.03
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
    assert named.keys() == {"bra topk=1", "bra topk=4", "bra topk=16", "vanilla"}
    assert all(named[name] == pytest.approx(point.get_xydata()[0]) for name, point in lines_of(ax).items())
    (ceiling,) = (line for line in ax.lines if line.get_label() == "_ceiling")
    assert set(ceiling.get_ydata()) == {61.1}
    assert "bra topk=1" not in {text.get_text() for text in ax.get_legend().get_texts()}


# --- roofline


def test_a_roofline_shows_speed_over_intensity_under_what_was_measured():
    table = frame(growing())
    ax = axes_of(draw("roofline", table))["arithmetic intensity (FLOP per byte that operators move)"]
    swin = lines_of(ax)["swin"].get_xydata()
    # 2 x 1e-5 GMAC x 8 images / 0.05 MiB for each token
    intensity = 2 * 1e-5 * 8 * 1e9 / (0.05 * 2**20)
    assert np.allclose(swin[:, 0], intensity)
    speeds = [np.mean([2 * 1e-5 * 8 * 1e3 / 0.02 / noise for noise in (0.95, 1, 1.05)])]
    assert np.allclose(swin[:, 1], speeds)
    roof = next(line for line in ax.lines if len(line.get_xdata()) == 200)
    assert np.allclose(roof.get_ydata(), np.minimum(10 * roof.get_xdata(), 101))
    assert any("101 GFLOP/s" in text.get_text() for text in ax.texts)
    assert any("10 GB/s" in text.get_text() for text in ax.texts)


def test_failed_cells_of_a_roofline_are_named():
    rows = growing()
    rows[0] |= {"infer_latency_ms": None, "throughput_status": "error"}
    ax = axes_of(draw("roofline", frame(rows)))["arithmetic intensity (FLOP per byte that operators move)"]
    assert [*crosses(ax)] == ["vanilla 64x64: error"]


# --- every kind


@pytest.fixture(scope="module")
def drawn():
    rows = read_rows(SAMPLE)
    return {kind: draw(kind, rows) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_has_a_unit_and_the_caption_a_device_and_versions(drawn, kind):
    for ax in drawn[kind].findobj(matplotlib.axes.Axes):
        if ax.axison:
            assert ax.get_xlabel().endswith(")") or "tokens" in ax.get_xlabel()
            shares = kind == "pareto" and not ax.get_subplotspec().is_first_col()
            assert ax.get_ylabel() or shares
    text = caption(drawn[kind])
    assert "Intel(R) Xeon(R) Processor (cpu-intel" in text
    assert all(f"{library} " in text for library in ("attention-zoo", "torch", "python"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_leaves_the_picture_or_lies_on_another(drawn, kind):
    figure = drawn[kind]
    figure.draw_without_rendering()
    boxes = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.axes is not None and not text.axes.axison:
            continue
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent()
    ticks = {tick for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for tick in _hidden(ax, axis)}
    boxes = {text: box for text, box in boxes.items() if text not in ticks}
    outside = [text.get_text() for text, box in boxes.items() if not _inside(figure.bbox, box)]
    assert not outside
    found = [*boxes.items()]
    overlaps = [
        (one.get_text(), other.get_text())
        for i, (one, box) in enumerate(found)
        for other, before in found[:i]
        if box.shrunk(0.9, 0.7).overlaps(before.shrunk(0.9, 0.7))
    ]
    assert not overlaps


def _hidden(ax, axis) -> list[Text]:
    """Labels of ticks beyond the limits, which matplotlib keeps but does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [t for tick in ticks for t in (tick.label1, tick.label2) if not low <= tick.get_loc() <= high]


def _inside(outer, box) -> bool:
    return outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1


def test_looks_differ_without_colour_and_keep_to_their_mechanism():
    names = ["vanilla", *(f"bra topk={k}" for k in range(20)), "swin", "mine:A", "mine:B"]
    found = looks(names)
    assert len({(look.marker, str(look.line)) for look in found.values()}) == len(names)
    assert found["vanilla"] == looks(["swin", "vanilla"])["vanilla"]
    assert all(max(to_rgb(look.colour)) - 0 < 1.01 and sum(to_rgb(look.colour)) < 2.6 for look in found.values())


def test_a_legend_lists_numbers_by_their_value():
    settings = ["bra topk=16", "bra topk=4", "bra topk=1", "bra topk=8", "bra topk=4 128x128", "bra topk=4 64x64"]
    ordered = ["topk=1", "topk=4", "topk=4 64x64", "topk=4 128x128", "topk=8", "topk=16"]
    assert [*looks(settings)] == [f"bra {words}" for words in ordered]


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
