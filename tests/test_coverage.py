"""What the coverage benchmark says of repeated runs, from runs made up with a known spread."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import CELLS, RATIOS, held, main, read, report
from runners.measures import MEASURES


def run_of(draw, truth, spread, disturbed=False):
    """Columns of one run of four processes."""
    logs = draw.normal(np.log(truth), spread, 4)
    low, high = np.exp(stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs)))
    one = {"vs_vanilla": float(np.exp(logs.mean())), "vs_vanilla_low": float(low), "vs_vanilla_high": float(high)}
    return {
        **one,
        **{f"train_{name}": value for name, value in one.items()},
        "timing_processes": 4,
        "disturbed": disturbed,
    }


def test_pairs_of_one_truth_hold_one_as_often_as_they_say_and_of_two_do_not():
    draw = np.random.default_rng(0)
    same = [run_of(draw, 0.9, 0.02) for _ in range(60)]
    assert 0.93 <= np.mean(held(same, "vs_vanilla")) <= 0.99
    apart = [run_of(draw, 0.5, 0.001), run_of(draw, 0.9, 0.001)]
    assert held(apart, "vs_vanilla") == [False]


def test_the_table_counts_pairs_and_marks():
    draw = np.random.default_rng(1)
    runs = {cell: [run_of(draw, 1.0, 0.01, disturbed=index == 0) for index in range(3)] for cell in CELLS}
    lines = report(runs)
    marked = next(index for index, line in enumerate(lines) if "6 of 18 runs" in line)
    for part, each in ((lines[:marked], 3), (lines[marked:], 2)):
        rows = [line for line in part if line.startswith(tuple(f"| {cell} |" for cell in CELLS))]
        assert len(rows) == 6 * len(RATIOS) and all(f"| {each} |" in row for row in rows)
        pairs = sum(sum(held(found[-each:], "vs_vanilla")) for found in runs.values())
        assert any(line.startswith(f"- vs_vanilla: {pairs} of {6 * each * (each - 1) // 2} pairs") for line in part)


def test_a_cell_whose_runs_are_all_marked_is_left_out_of_the_second_table():
    draw = np.random.default_rng(2)
    runs = {cell: [run_of(draw, 1.0, 0.01, disturbed=cell == "swin") for _ in range(2)] for cell in CELLS}
    assert len([line for line in report(runs) if line.startswith("| swin |")]) == len(RATIOS)


def test_runs_go_on_behind_a_line_that_was_cut_off_and_other_protocols_are_left_out(tmp_path):
    kept = {"cell": "swin", "protocol": MEASURES["throughput"].protocol, "columns": {"vs_vanilla": 1.0}}
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([json.dumps(kept), json.dumps({**kept, "protocol": 1}), json.dumps(kept)[:30]]))
    assert {cell: len(runs) for cell, runs in read(path).items() if runs} == {"swin": 1}


@pytest.mark.parametrize(("flag", "value"), [("--runs", "1"), ("--threads", "0")])
def test_bad_numbers_are_one_line_before_any_work(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        main([flag, value])
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]
