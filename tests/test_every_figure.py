"""Figures of every kind: units and captions, what cannot be drawn, devices apart, and of which results they are."""

import matplotlib
import pandas as pd
import pytest
from drawn_axes import caption
from figure_rows import SAMPLE, frame, growing, trained
from sample_results import write_sample

from runners.figures import KINDS, draw, show
from runners.figures.__main__ import main
from runners.figures.frames import results
from runners.rows.selection import read_rows

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


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(ValueError, match=r"'circles'.*complexity"):
        draw("circles", frame(growing()))


@pytest.mark.parametrize("kind", ["complexity", "region_size"])
def test_devices_are_drawn_apart_when_asked(kind):
    table = frame(growing())
    if kind == "region_size":
        table = frame(trained())
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
