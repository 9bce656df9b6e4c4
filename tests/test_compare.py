"""Two result sets side by side: what counts as worse, and what is not judged."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from sample_results import DEVICE, failure, record, write_sample
from scipy import stats

from ablations.study import Cell, cell_key
from runners import compare
from runners.store.store import open_store
from runners.table import load

VANILLA = Cell(attn="vanilla")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    write_sample(folder, sides=(64,))
    return folder


@pytest.fixture
def after(before, tmp_path):
    return shutil.copytree(before, tmp_path / "after")


def again(folder, cell, measure, **changes) -> None:
    """A further attempt, with other values."""
    own = record(cell, measure, attempt=2)
    open_store(folder, create=False).write_record(
        cell_key(cell), replace(own, values={**own.values, **changes}, ended_at="2031-01-01T00:00:00.000+00:00")
    )


def scale(folder, column: str, factor: float, measure: str, attention: str = "vanilla", seeds=range(3)) -> None:
    for seed in seeds:
        cell = replace(VANILLA, attn=attention, seed=seed)
        again(folder, cell, measure, **{column: record(cell, measure).values[column] * factor})


def run(capsys, *arguments) -> tuple[int, str]:
    code = compare.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def refused(capsys, *arguments) -> str:
    assert compare.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("compare.py: error: ")
    assert err.count("\n") == 1
    return err


def test_equal_results_are_the_same(capsys, before, after):
    code, out = run(capsys, before, after, "--fail-above", "0%")
    assert code == 0
    assert "worse" not in out
    assert " tie" in out


@pytest.mark.parametrize(
    ("column", "factor", "measure"),
    [
        pytest.param("infer_latency_ms", 1.2, "throughput", marks=pytest.mark.slow),
        ("acc1", 0.9, "accuracy"),
        pytest.param("peak_infer_mib", 1.1, "memory", marks=pytest.mark.slow),
        pytest.param("gmacs", 1.06, "flops", marks=pytest.mark.slow),
    ],
)
def test_a_metric_that_got_worse_fails(capsys, before, after, column, factor, measure):
    scale(after, column, factor, measure)
    code, out = run(capsys, before, after, "--fail-above", "5%")
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("worse by more than 0.05: vanilla")]
    assert run(capsys, before, after)[0] == 0
    assert run(capsys, after, before, "--fail-above", "5%")[0] == 0
    assert run(capsys, before, after, "--fail-above", "50%")[0] == 0


def test_noise_does_not_fail(capsys, before, after):
    for seed, factor in enumerate((1.4, 0.85, 1.1)):
        scale(after, "infer_latency_ms", factor, "throughput", seeds=[seed])
    code, out = run(capsys, before, after, "--fail-above", "5%")
    assert code == 0
    assert "1.0" in out


def test_the_ratio_is_the_geometric_mean_of_pairs(before, after):
    for seed, factor in enumerate((2.0, 4.0, 8.0)):
        scale(after, "infer_latency_ms", factor, "throughput", seeds=[seed])
    rows = [compare.read(folder, None) for folder in (before, after)]
    (change,) = [
        change
        for change in compare.changes(*rows, compare.raw_samples(before, after))
        if (change.configuration, change.metric.column) == ("vanilla", "infer_latency_ms")
    ]
    assert change.ratio == pytest.approx(4)
    assert change.low < 4 < change.high
    assert change.low * change.high == pytest.approx(16)
    assert change.pairs == 3


# --- one seed


def one(folder, cell, **fields):
    store = open_store(folder, create=True)
    store.add_cell(cell)
    store.write_record(cell_key(cell), record(cell, "throughput", **fields))


def samples(scale: float) -> dict[str, list[float]]:
    return {"infer_ms": [scale * (10 + 0.1 * (i % 7)) for i in range(40)]}


def test_one_seed_is_judged_by_its_raw_samples(capsys, tmp_path):
    for folder, factor in (("a", 1.0), ("b", 1.3)):
        values = {"infer_latency_ms": 10.3 * factor, "train_step_ms": 30.0 * factor}
        one(tmp_path / folder, VANILLA, samples=samples(factor), values=values)
    code, out = run(capsys, tmp_path / "a", tmp_path / "b", "--fail-above", "5")
    assert code == 1
    assert "worse by more than 0.05: vanilla (all rows) latency, 1.300 times A" in out
    assert "1 not judged" in out  # the training step has no samples


def test_one_seed_without_samples_is_not_judged(capsys, before, after, tmp_path):
    for folder, factor in (("a", 1.0), ("b", 3.0)):
        one(tmp_path / folder, VANILLA, values={"infer_latency_ms": 10.3 * factor})
    code, out = run(capsys, tmp_path / "a", tmp_path / "b", "--fail-above", "5%")
    assert code == 0
    assert "1 not judged" in out


def test_a_speed_up_over_vanilla_has_its_own_interval(capsys, tmp_path):
    for folder, factor in (("a", 1.0), ("b", 0.8)):
        values = {"vs_vanilla": factor, "vs_vanilla_low": 0.97 * factor, "vs_vanilla_high": 1.03 * factor}
        one(tmp_path / folder, Cell(attn="swin"), values=values)
    code, out = run(capsys, tmp_path / "a", tmp_path / "b", "--fail-above", "5%")
    assert code == 1
    assert "speed-up over vanilla, 0.800 times A" in out


def in_processes(factors: list[float], scale: float = 1.0) -> dict[str, list[float]]:
    """Rounds of several processes, each with luck of its own."""
    rounds = [(i, scale * factor * (1 + 0.01 * (n % 5))) for i, factor in enumerate(factors) for n in range(20)]
    return {"infer_ms": [10 * value for _, value in rounds], "infer_process": [float(i) for i, _ in rounds]}


@pytest.mark.parametrize(("scale", "verdict"), [(1.03, "tie"), (1.3, "worse")])
def test_the_luck_of_a_process_is_in_the_interval(tmp_path, scale, verdict):
    lucks = [1.0, 1.05, 0.97, 1.02], [1.04, 0.98, 1.01, 1.06]
    for folder, luck, factor in zip("ab", lucks, (1.0, scale), strict=True):
        values = {"infer_latency_ms": 10.3 * factor}
        one(tmp_path / folder, VANILLA, samples=in_processes(luck, factor), values=values)
    folders = tmp_path / "a", tmp_path / "b"
    (change,) = compare.changes(*(compare.read(folder, None) for folder in folders), compare.raw_samples(*folders))
    medians = [np.log(np.array(luck) * factor) for luck, factor in zip(lucks, (1.0, scale), strict=True)]
    welch = stats.ttest_ind(*medians[::-1], equal_var=False).confidence_interval(0.95)
    assert [change.low, change.high] == pytest.approx(np.exp(welch))
    assert change.verdict == verdict


def test_speed_ups_over_processes_are_told_apart_by_welch(tmp_path):
    lucks = [0.9, 0.92, 0.91, 0.93], [0.94, 0.97, 0.95, 0.96]
    for folder, luck in zip("ab", lucks, strict=True):
        low, high = np.exp(stats.t.interval(0.95, 3, np.log(luck).mean(), stats.sem(np.log(luck))))
        ends = {"vs_vanilla_low": float(low), "vs_vanilla_high": float(high)}
        values = {"vs_vanilla": float(stats.gmean(luck)), **ends, "timing_processes": 4}
        one(tmp_path / folder, Cell(attn="swin"), values=values)
    folders = tmp_path / "a", tmp_path / "b"
    (change,) = compare.changes(*(compare.read(folder, None) for folder in folders), compare.raw_samples(*folders))
    welch = stats.ttest_ind(np.log(lucks[1]), np.log(lucks[0]), equal_var=False).confidence_interval(0.95)
    assert [change.low, change.high] == pytest.approx(np.exp(welch))
    assert change.verdict == "better"


def test_disturbed_rows_are_pointed_out(capsys, tmp_path):
    for folder, disturbed in (("a", False), ("b", True)):
        values = {"infer_latency_ms": 10.0, "disturbed": disturbed}
        one(tmp_path / folder, VANILLA, samples=in_processes([1.0, 1.1]), values=values)
    _, out = run(capsys, tmp_path / "a", tmp_path / "b")
    assert "1 cells in B" in out and "in A, see" not in out


# --- what is not compared


def test_a_cell_that_fails_now_fails(capsys, before, after):
    cell = Cell(attn="swin", seed=1)
    lost = replace(failure(cell, "throughput"), attempt=2)
    open_store(after, create=False).write_record(cell_key(cell), lost)
    code, out = run(capsys, before, after, "--fail-above", "5%")
    assert code == 1
    assert "failed in B: swin seed 1 (oom)" in out
    assert run(capsys, before, after)[0] == 0


def test_rows_of_different_devices_are_not_compared_but_their_macs(capsys, tmp_path):
    for folder, device, latency in (("a", DEVICE, 10.0), ("b", "cuda-x", 1.0)):
        one(tmp_path / folder, VANILLA, device_id=device, values={"infer_latency_ms": latency})
    message = refused(capsys, tmp_path / "a", tmp_path / "b")
    assert f"measured on different devices (A: {DEVICE}; B: cuda-x)" in message
    for folder, device in (("a", DEVICE), ("b", "cuda-x")):
        store = open_store(tmp_path / folder, create=False)
        store.write_record(cell_key(VANILLA), record(VANILLA, "flops", device_id=device))
    code, out = run(capsys, tmp_path / "a", tmp_path / "b", "--fail-above", "5%")
    assert code == 0
    assert "MACs" in out
    assert "latency" not in out
    assert "different devices" in out


def test_versions_of_a_protocol_are_not_compared(capsys, before, after):
    for seed in range(3):
        cell = replace(VANILLA, seed=seed)
        own = record(cell, "accuracy", protocol=2)
        open_store(after, create=False).write_record(cell_key(cell), replace(own, values={**own.values, "acc1": 1.0}))
    code, out = run(capsys, before, after, "--fail-above", "5%")
    assert code == 0
    assert "accuracy of 3 cells has another protocol version in B and is not compared" in out


def test_cells_of_one_side_are_counted(capsys, before, tmp_path):
    write_sample(tmp_path / "fewer", sides=(64,), seeds=2)
    _, out = run(capsys, before, tmp_path / "fewer")
    assert "note: 6 cells are in A alone" in out


def test_csv_and_folder_compare(capsys, before, after, tmp_path):
    load(before).to_csv(tmp_path / "a.csv", index=False)
    scale(after, "infer_latency_ms", 1.2, "throughput")
    assert run(capsys, tmp_path / "a.csv", after, "--fail-above", "5%")[0] == 1


# --- bad input


def test_bad_input_is_one_line(capsys, before, tmp_path):
    assert "does not exist" in refused(capsys, before, tmp_path / "b")
    open_store(tmp_path / "empty", create=True)
    assert "no rows" in refused(capsys, tmp_path / "empty", before)
    assert "unknown study 'x'; these results have topk" in refused(capsys, before, before, "--study", "x")


@pytest.mark.parametrize("text", ["-1", "five", "5%%", "nan"])
def test_a_limit_is_a_percentage(capsys, before, text):
    with pytest.raises(SystemExit) as done:
        compare.main([str(before), str(before), f"--fail-above={text}"])
    assert done.value.code == 2
    assert "is not a percentage" in capsys.readouterr().err
