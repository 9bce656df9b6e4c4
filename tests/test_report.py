"""The report: which rows it takes, what it says of them, and that nothing in them leaves its place."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from figure_rows import frame
from sample_results import DEVICE, HOSTILE, failure, record, values_of, write_sample

from ablations.study import Cell, cell_key
from runners.report import main
from runners.reporting import payload
from runners.reporting.page import to_html
from runners.rows import findings, ranking, selection
from runners.rows.selection import described, read_rows
from runners.rows.stats import mean_interval
from runners.store.names import visible
from runners.store.store import open_store
from runners.table import load

ROOT = Path(__file__).parents[1]
SAMPLE = next((ROOT / "results").glob("digit_vote_cpu-*.csv"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_sample(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_drawn_figures():
    """They have tests of their own, and the one below that runs the script draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.reporting.page.drawn_figures", lambda rows, published: ([], []))
        yield


@pytest.fixture(scope="module")
def page(folder):
    return to_html(selection.read_rows(folder), str(folder))


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts apart from that of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("report.py: error: ")
    assert err.count("\n") == 1
    return err


# --- what it says


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


def test_the_table_shows_the_column_in_which_two_rows_differ():
    rows = selection.read_rows(next((ROOT / "results").glob("sample_*.csv")))
    columns = {column["name"]: column for column in payload.table(rows)["columns"]}
    shown = [name for name, column in columns.items() if column["main"]]
    assert "batch_size" in shown and "layout" not in shown
    identity = [name for name in shown if name in ("configuration", "resolution", "seed", "batch_size")]
    assert not rows.duplicated(identity).any()
    alone = {column["name"]: column for column in payload.table(rows[rows["batch_size"] == 64])["columns"]}
    assert not alone["batch_size"]["main"]


def test_a_disturbed_row_is_marked_in_the_table_the_charts_and_the_page(folder):
    rows = read_rows(folder)
    rows["disturbed"] = pd.array([index == 0 for index in range(len(rows))], dtype="boolean")
    assert {c["name"] for c in payload.table(rows)["columns"] if c["main"]} >= {"disturbed"}
    points = payload.points(rows, ranking.groups(rows))["points"]
    assert [p["name"] for p in points if p["disturbed"]] == [rows["configuration"].iloc[0]]
    assert "disturbed the timing of 1 rows" in Elements(to_html(rows, "x")).text


@pytest.mark.parametrize("margin", ["0", "-1", "none", "101"])
def test_a_margin_that_is_none(capsys, folder, margin):
    with pytest.raises(SystemExit) as end:
        main(["--results", str(folder), "--margin", margin])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "--margin" in message and repr(margin) in message and message.count("\n") == 1


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


# --- the page


def test_the_page_holds_every_row_its_command_and_its_environment(page, folder):
    elements = Elements(page)
    table, points = (json.loads(text) for text in elements.scripts[:2])
    columns = {column["name"]: column for column in table["columns"]}
    rows = read_rows(folder)
    assert table["size"] == len(rows) == 37
    commands = [columns["command"]["levels"][code] if code >= 0 else None for code in columns["command"]["codes"]]
    assert set(commands) - {None} == set(rows["command"].dropna())
    assert sorted(filter(None, columns["gmacs"]["values"])) == pytest.approx(sorted(rows["gmacs"].dropna()))
    assert columns["gmacs"]["unit"] == "GMAC"
    assert "Test Processor" in elements.text
    assert "0123abc" in elements.text
    assert len(points["points"]) == 13
    lost = [point for point in points["points"] if point["status"] == "oom"]
    assert [point["name"] for point in lost] == ["bra topk=16"]
    assert "throughput: out of memory" in lost[0]["message"]


def test_the_page_asks_the_network_for_nothing(page):
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not (attributes.get("src") or "data:").startswith(("http", "//"))
        assert not (attributes.get("href") or "#").startswith(("http", "//"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")


def test_no_text_of_a_result_becomes_a_tag(tmp_path):
    store = write_sample(tmp_path, seeds=1, sides=(64,), study="x")
    cell = Cell(attn="swin", seed=7)
    store.add_cell(cell)
    hostile = failure(cell, "accuracy", "error")
    hostile.command = HOSTILE
    hostile.environment = {"host": HOSTILE, "git_sha": HOSTILE, "device_name": HOSTILE}
    store.write_record(cell_key(cell), hostile)
    harmless = Elements(to_html(selection.read_rows(SAMPLE), "s"))
    elements = Elements(to_html(read_rows(tmp_path), HOSTILE, HOSTILE))
    assert {tag for tag, _ in elements.tags} == {tag for tag, _ in harmless.tags}
    assert len(elements.scripts) == len(harmless.scripts)
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in elements.text
    levels = {text for column in json.loads(elements.scripts[0])["columns"] for text in column.get("levels", [])}
    assert visible(HOSTILE) in levels


def test_script_data_survives_the_trip_and_holds_no_tag():
    data = {"text": HOSTILE + "\u2028<!--", "numbers": [1, 0.5, None]}
    text = payload.to_script(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028") & set(text)


def test_infinite_losses_stay_infinite(folder):
    rows = read_rows(folder).assign(val_loss=pd.array([float("inf")] * 37, dtype="Float64"))
    (column,) = [c for c in json.loads(payload.to_script(payload.table(rows)))["columns"] if c["name"] == "val_loss"]
    assert set(column["values"]) == {float("inf")}


def test_versions_of_a_protocol_that_do_not_mix_are_pointed_out(folder):
    rows = read_rows(folder)
    rows.loc[0, "accuracy_protocol"] = 2
    assert "accuracy_protocol: rows of versions 1, 2" in Elements(to_html(rows, "x")).text


# --- rows


def test_the_committed_table_can_be_read(capsys, tmp_path):
    assert main(["--results", str(SAMPLE), "--format", "csv"]) == 0
    copy = tmp_path / "copy.csv"
    copy.write_text(capsys.readouterr().out)
    pd.testing.assert_frame_equal(selection.read_rows(copy), selection.read_rows(SAMPLE), check_column_type=False)


def test_configurations_and_conditions_have_readable_names():
    rows = pd.DataFrame(
        {
            "attention": ["bra", "bra", "swin", None],
            "topk": pd.array([4, None, None, None], dtype="Int64"),
            "topk_schedule": [None, "1-4-16-full", None, None],
            "settings": ["topk=4;lepe=false", "topk=1-4-16-full", "", None],
        }
    )
    found = described(rows.reindex(columns=[*rows, "model", *selection.CONDITIONS]))
    assert list(found["configuration"]) == ["bra topk=4 lepe=false", "bra topk=1-4-16-full", "swin", "unknown"]
    assert list(found["settings"]) == [{"topk": "4", "lepe": "false"}, {"topk": "1-4-16-full"}, {}, {}]
    assert set(found["conditions"]) == {"all rows"}
    assert list(selection.as_read(found)["settings"]) == ["topk=4;lepe=false", "topk=1-4-16-full", "", ""]


# --- bad input


def test_results_that_are_not_there(capsys, tmp_path):
    assert "does not exist" in refused(capsys, "--results", tmp_path / "nowhere")
    assert "no store.json" in refused(capsys, "--results", tmp_path)


def test_results_without_a_row(capsys, tmp_path):
    open_store(tmp_path / "empty", create=True)
    assert "no rows in" in refused(capsys, "--results", tmp_path / "empty")


def test_a_single_row(capsys, tmp_path):
    store = open_store(tmp_path, create=True)
    store.add_cell(Cell())
    store.write_record(cell_key(Cell()), record(Cell(settings=(("topk", 4),)), "flops"))
    assert "one row only" in refused(capsys, "--results", tmp_path, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_missing_column(capsys, tmp_path):
    pd.read_csv(SAMPLE).drop(columns=["seed", "status"]).to_csv(tmp_path / "t.csv", index=False)
    assert "lacks the columns seed, status" in refused(capsys, "--results", tmp_path / "t.csv")


def test_a_file_that_is_no_table(capsys, tmp_path):
    (tmp_path / "t.csv").write_bytes(b'a,b\n"1\n\xff')
    assert "cannot be read as a CSV table" in refused(capsys, "--results", tmp_path / "t.csv")


def test_an_unknown_study_lists_the_known(capsys, folder):
    assert "unknown study 'tokp'; these results have topk" in refused(capsys, "--results", folder, "--study", "tokp")


def test_rows_of_several_devices(capsys, tmp_path):
    store = write_sample(tmp_path / "r", seeds=2, sides=(64,))
    cell = Cell(attn="vanilla")
    store.write_record(cell_key(cell), record(cell, "throughput", device_id="cuda-x"))
    out = tmp_path / "r.html"
    message = refused(capsys, "--results", tmp_path / "r", "--out", out)
    assert f"{DEVICE}, cuda-x" in message
    assert "--mixed-devices" in message
    assert main(["--results", str(tmp_path / "r"), "--out", str(out), "--mixed-devices"]) == 0
    assert "2 devices, which are kept apart" in Elements(out.read_text()).text


def test_flops_of_another_device_are_not_another_device(tmp_path):
    store = write_sample(tmp_path, seeds=1, sides=(64,))
    cell = Cell(attn="swin", seed=9)
    store.add_cell(cell)
    store.write_record(cell_key(cell), record(cell, "flops", device_id="cuda-x", values={"gmacs": 1.0}))
    assert selection.devices(read_rows(tmp_path)) == [DEVICE]


@pytest.mark.parametrize("name", ["", "nowhere/r.html"])
def test_an_output_that_cannot_be_written(capsys, tmp_path, folder, name):
    assert "--out" in refused(capsys, "--results", folder, "--out", tmp_path / name)


def test_a_failed_report_leaves_the_older_one(capsys, tmp_path, folder):
    out = tmp_path / "r.html"
    out.write_text("older")
    refused(capsys, "--results", folder, "--study", "nothing", "--out", out)
    assert out.read_text() == "older"
    assert list(tmp_path.iterdir()) == [out]


def test_the_script_runs_from_the_checkout_and_writes_the_page(tmp_path):
    out = tmp_path / "report.html"
    arguments = [sys.executable, "runners/report.py", "--results", str(SAMPLE), "--out", str(out)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{out}\n")
    assert "vanilla reaches 97.1" in Elements(out.read_text()).text
