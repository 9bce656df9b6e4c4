"""What the report says of its rows: the best, what ties with it, the fastest, and the cheapest at equal accuracy."""

import pandas as pd
import pytest
from figure_rows import frame
from report_pages import folder
from sample_results import record, values_of, write_sample

from ablations.study import Cell, cell_key
from runners.rows import findings, ranking
from runners.rows.selection import described, read_rows
from runners.rows.stats import mean_interval
from runners.store.store import open_store
from runners.table import load

__all__ = ["folder"]  # fixtures


def one_group(rows: pd.DataFrame) -> ranking.Group:
    (group,) = ranking.groups(rows)
    return group


def test_the_summary_names_the_best_its_ties_and_the_cost_at_equal_accuracy(folder):
    groups = {group.conditions: group for group in ranking.groups(read_rows(folder)) if group.standings}
    assert set(groups) == {"64x64 px", "128x128 px"}
    accuracy = groups["64x64 px"].standings["acc1"]
    assert accuracy.best == "vanilla"
    assert set(accuracy.ties) == {"bra topk=8", "bra topk=16"}
    first, unclear, equal = findings.sentences(groups["64x64 px"])
    assert first.startswith("vanilla reaches 97.1")
    assert "bra topk=8" in unclear and "bra topk=16" in unclear and "swin" not in unclear
    assert "has the lowest" not in equal
    wide = findings.sentences(groups["64x64 px"], margin=5)
    ratio = (
        values_of(Cell(settings=(("topk", 8),)))["flops"]["gmacs"] / values_of(Cell(attn="vanilla"))["flops"]["gmacs"]
    )
    (cheapest,) = (sentence for sentence in wide if f"({ratio:.2f} times that of vanilla)" in sentence)
    assert "bra topk=8" in cheapest and "5 points" in cheapest
    assert findings.sentences(groups["128x128 px"])[-1] == "Failed: bra topk=16 (oom)."


def accuracies(**reached: list[float]) -> ranking.Group:
    rows = [
        {"attention": name, "seed": seed, "acc1": acc1, "resolution": "64x64", "status": "ok"}
        for name, values in reached.items()
        for seed, acc1 in enumerate(values)
    ]
    return one_group(described(frame(rows)))


def test_a_gap_of_ten_points_that_no_test_confirms_is_no_equal_accuracy():
    """The committed table: cswin has 87 % beside vanilla's 97 %, and three seeds tell nothing."""
    group = accuracies(vanilla=[97.0, 97.4, 96.8], cswin=[92.0, 78.0, 91.5], bra=[96.8, 97.3, 96.5])
    standing = group.standings["acc1"]
    assert set(standing.ties) >= {"cswin"}
    expected = mean_interval([5.0, 19.4, 5.3])
    assert (standing.gaps["cswin"].low, standing.gaps["cswin"].high) == pytest.approx((expected.low, expected.high))
    assert standing.equal(1.0) == ("bra",)
    assert standing.equal(0.1) == ()
    text = " ".join(findings.sentences(group))
    gap = standing.gaps["cswin"]
    assert f"cswin, gap {gap.mean:.1f} points ({gap.low:.1f} to {gap.high:.1f})" in text
    (equal,) = (sentence for sentence in findings.sentences(group) if sentence.startswith("Equal"))
    assert "bra" in equal and "cswin" not in equal


def test_equal_differences_are_no_evidence_unless_they_are_none():
    standing = accuracies(vanilla=[97.0, 96.0], same=[97.0, 96.0], off=[96.5, 95.5]).standings["acc1"]
    assert {standing.best, *standing.equal(1.0)} == {"vanilla", "same"}
    assert "off" not in standing.gaps


def timed(**ratios: tuple[float, float, float]) -> pd.DataFrame:
    rows = [
        {
            "attention": name,
            "seed": 0,
            "resolution": "64x64",
            "timing_processes": 4,
            "infer_latency_ms": 10 / ratio,
            "vs_vanilla": ratio,
            "vs_vanilla_low": low,
            "vs_vanilla_high": high,
        }
        for name, (ratio, low, high) in ratios.items()
    ]
    return described(frame(rows))


def test_speed_is_ranked_by_the_intervals_over_processes_and_a_tie_is_a_tie():
    rows = timed(vanilla=(1.0, 0.99, 1.01), swin=(1.3, 1.28, 1.32), bra=(1.29, 1.2, 1.387), axial=(1.1, 1.09, 1.11))
    (speeds,) = one_group(rows).speeds
    assert [*speeds.intervals] == ["swin", "bra", "axial", "vanilla"]
    assert speeds.ties == ("bra",)
    assert speeds.intervals["swin"].low == pytest.approx(1.28, abs=0.001)
    fastest = findings.sentences(one_group(rows))[-1]
    assert "swin, 1.3 times" in fastest and "bra" in fastest and "axial" not in fastest and "4 processes" in fastest
    marked = rows.assign(disturbed=pd.array([False, True, False, False], dtype="boolean"))
    assert "swin (disturbed)" in findings.sentences(one_group(marked))[-1]


def test_rows_without_processes_are_ranked_by_their_latency():
    rows = timed(vanilla=(1.0, 0.99, 1.01), swin=(1.3, 1.28, 1.32)).drop(columns="timing_processes")
    group = one_group(rows)
    assert group.speeds == ()
    assert any("latency: swin" in sentence for sentence in findings.sentences(group))


def test_one_seed_tells_nobody_from_the_best(tmp_path):
    write_sample(tmp_path, seeds=1, sides=(64,))
    group = one_group(described(load(tmp_path).query("status == 'ok'")))
    assert group.standings["acc1"].leaders == ()
    first, *costs = findings.sentences(group)
    assert "none can be told from it" in first
    assert not any("equal accuracy" in sentence for sentence in costs)


def test_a_metric_that_is_counted_is_tied_only_with_its_equals(folder):
    first, *_ = ranking.groups(described(load(folder).query("status == 'ok'")))
    assert first.standings["params_m"].tested
    assert set(first.standings["params_m"].leaders) == {"swin", "vanilla"}


@pytest.mark.parametrize(("other", "tied"), [((4.0, 4.0), False), ((3.1, 4.9), True)], ids=["counted", "measured"])
def test_a_cost_that_never_varied_is_tied_only_with_its_equals(tmp_path, other, tied):
    store = open_store(tmp_path, create=True)
    for attn, values in {"swin": (3.0, 3.0), "vanilla": other}.items():
        for seed, peak in enumerate(values):
            cell = Cell(attn=attn, seed=seed)
            store.add_cell(cell)
            store.write_record(cell_key(cell), record(cell, "memory", values={"peak_infer_mib": peak}))
    assert one_group(read_rows(tmp_path)).standings["peak_infer_mib"].ties == (("vanilla",) if tied else ())


def test_without_accuracy_the_lowest_costs_are_said(tmp_path):
    store = open_store(tmp_path, create=True)
    for cell in (Cell(attn="swin"), Cell(attn="vanilla")):
        store.add_cell(cell)
        store.write_record(
            cell_key(cell), record(cell, "flops", values={"gmacs": {"swin": 1.0, "vanilla": 2.5}[cell.attn]})
        )
    assert findings.sentences(one_group(read_rows(tmp_path))) == [
        "Accuracy was not measured.",
        "Lowest MACs: swin, 1 GMAC.",
    ]


def test_a_cell_asked_for_in_two_ways_is_one_repeat(tmp_path):
    store = write_sample(tmp_path, sides=(64,))
    for seed in range(3):
        cell = Cell(attn="swin", seed=seed, threads=1)
        store.add_cell(cell, "topk")
        store.write_record(cell_key(cell), record(cell, "accuracy"))
    (group,) = [group for group in ranking.groups(read_rows(tmp_path)) if group.standings]
    assert group.standings["acc1"].intervals["swin"].n == 3
    assert "swin" not in group.standings["acc1"].leaders


def test_a_row_of_two_studies_is_in_both_and_a_declared_one_has_its_question(folder):
    rows = read_rows(folder)
    rows.loc[0, "study"] = "mine;topk"
    assert {group.study for group in ranking.groups(rows)} == {"mine", "topk"}
    assert ranking.question("topk")[0].endswith("?")
    assert ranking.question("mine") == ("", "")
