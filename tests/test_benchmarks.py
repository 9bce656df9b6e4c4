"""The benchmarks: timing is in turns, claims are judged, and reports are shown and kept."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import report, results, scaling, sections
from benchmarks.claims import Claim, Measured, judge
from benchmarks.models import OURS, TIMM_SWIN
from benchmarks.pairs import Spread, share, speed, take_turns
from benchmarks.report import KEEP_FREED, main, measure, plan, read_command, set_unless_given
from benchmarks.results import measured_in, read, save
from benchmarks.tables import rows_of

ROOT = Path(__file__).parents[1]


class Clock:
    """Time that passes only when a contender works; every second round the machine is ten times as slow."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def worker(self, name, seconds):
        def work():
            self.calls.append(name)
            turn = self.calls.count(name)
            self.now += seconds * (10 if turn % 4 < 2 else 1)

        return work


def test_contenders_meet_the_same_disturbances_in_turns():
    clock = Clock()
    contenders = {name: clock.worker(name, seconds) for name, seconds in (("a", 2.0), ("b", 6.0), ("c", 1.0))}
    samples = take_turns(contenders, rounds=7, clock=clock)
    # each twice: the first call of a sample is not timed
    assert "".join(clock.calls[3:]) == "aabbccccbbaa" * 3 + "aabbcc"
    assert set(samples["a"]) == {2e3, 20e3}
    assert speed(samples, "a", "b") == Spread(pytest.approx(3), pytest.approx(3), pytest.approx(3), 7)
    assert share(samples, "a", "b").median == pytest.approx(1 / 3)


def test_a_quick_contender_is_called_often():
    clock = Clock()
    samples = take_turns({"a": clock.worker("a", 1 / 1024)}, rounds=2, clock=clock, min_sample_s=8 / 1024)
    assert len(clock.calls) == 2 + 2 * (1 + 8)
    assert samples["a"] == [pytest.approx(5.5e3 / 1024)] * 2


def test_exponents_are_those_of_large_maps():
    def point(side, milliseconds):
        samples = {"bra, region_size=auto": [milliseconds], "vanilla": [milliseconds]}
        return Measured(section="scaling", work=f"{side}x{side}", samples=samples, tokens=side**2)

    curve = [point(side, max(56.0, side) ** 3.0) for side in scaling.SIDES]
    routed, vanilla = scaling.slopes(curve)
    assert (routed.spread.median, routed.spread.n) == (pytest.approx(1.5), 6)
    assert (routed.spread.q25, routed.spread.q75) == (pytest.approx(1.5), pytest.approx(1.5))
    assert (routed.subject, routed.wanted, routed.verdict) == ("bra, region_size=auto", "below 1.4", "SHORT")
    assert (vanilla.subject, vanilla.verdict) == ("vanilla", "")
    assert scaling.slopes(curve[:5]) == []


def anchor(paper_ms):
    samples = {"ours": [100.0] * 7, "swin": [200.0] * 7, "paper": [paper_ms] * 7}
    claims = (Claim("ours", "swin", 2.3), Claim("paper", "swin", within=(0.85, 1.0)), Claim("ours", "paper", 2.0))
    return Measured(section="anchors", work="forward", samples=samples, claims=claims)


def test_claims_are_judged():
    rows = judge(anchor(paper_ms=220.0))
    assert [(row.subject, row.against, row.verdict) for row in rows] == [
        ("ours", "swin", "SHORT"),
        ("paper", "swin", "in range"),
        ("ours", "paper", "met"),
    ]
    assert [row.spread.median for row in rows] == [2.0, pytest.approx(0.909, abs=1e-3), 2.2]


@pytest.mark.parametrize("paper_ms", [190.0, 240.0])
def test_a_number_beside_a_stand_in_outside_its_range_is_not_valid(paper_ms):
    ours, paper, invalid = judge(anchor(paper_ms))
    assert ours.spread.median == 2.0
    assert paper.verdict == "OUT OF RANGE"
    assert (invalid.spread.median, invalid.wanted) == (paper_ms / 100, "at least 2")
    assert invalid.verdict == "not valid: paper ran outside its range beside swin"


@pytest.mark.parametrize(
    ("cpu", "goals"),
    [
        ("AMD EPYC 9R14", [1.55, 1.5, 1.4]),
        ("Intel(R) Xeon(R) Processor", [1.85, 1.8, 1.55]),
        ("Neoverse-V2", [None, None, None]),
    ],
    ids=str,
)
def test_the_ratio_to_the_floor_has_a_goal_for_the_processor(cpu, goals, monkeypatch):
    monkeypatch.setattr(sections, "cpu_model", lambda: cpu)
    claims = []
    monkeypatch.setattr(sections, "timed", lambda *arguments: claims.extend(arguments[-1]))
    sections.floors(7)
    assert [claim.wanted for claim in claims if claim.subject == "biformer_tiny"] == goals
    assert {claim.wanted for claim in claims if claim.subject != "biformer_tiny"} == {None}
    assert {claim.kind for claim in claims} == {"share"}


def test_beside_timm_nothing_is_wanted(monkeypatch):
    claims = []
    monkeypatch.setattr(sections, "timed", lambda *arguments: claims.extend(arguments[-1]))
    sections.anchors(7)
    assert [claim.wanted for claim in claims if (claim.subject, claim.against) == (OURS, TIMM_SWIN)] == [None] * 3


def test_few_rounds_and_failures_are_said():
    few = Measured(section="twins", work="w", samples={"a": [1.0], "b": [2.0]}, claims=(Claim("a", "b", 1.0),))
    assert judge(few)[0].verdict == "met, but n < 7"
    failed = Measured(section="twins", work="w", failed="RuntimeError: no compiler")
    assert judge(failed)[0].verdict == "NOT MEASURED: RuntimeError: no compiler"
    peak = Measured(section="memory", work="w", samples={"a": [4.0], "b": [9.0]}, unit="MiB")
    row = judge(Measured(**{**vars(peak), "claims": (Claim("a", "b", 0.4, kind="share"),)}))[0]
    assert (row.spread.median, row.wanted, row.verdict) == (pytest.approx(4 / 9), "at most 0.4", "SHORT")


def test_a_report_is_saved_and_added_to(tmp_path, monkeypatch):
    save([anchor(220.0), Measured(section="twins", work="w", failed="x")], tmp_path)
    later = {**results.here(), "git_sha": "another"}
    monkeypatch.setattr(results, "here", lambda: later)
    path = save([anchor(180.0)], tmp_path)
    content = read(path)
    assert [len(run["measured"]) for run in content["runs"]] == [1, 1]
    assert {"torch", "timm"} <= content["runs"][0]["environment"]["versions"].keys()
    saved = measured_in(content)
    assert [one.section for one in saved] == ["anchors", "twins"]
    assert saved[0] == anchor(180.0)
    assert [row["verdict"] for row in content["rows"]][1:3] == ["OUT OF RANGE", judge(anchor(180.0))[2].verdict]
    text = path.with_suffix(".md").read_text()
    assert "| forward | ours | swin | 2 | 2 to 2 | 7 | at least 2.3 | SHORT |" in text
    assert list(rows_of(saved)) == ["anchors", "twins"]
    # what the same command measures next is of the same run
    save([replace(anchor(180.0), work="another")], tmp_path)
    assert [len(run["measured"]) for run in read(path)["runs"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "anchor"], "argument --only: 'anchor' is not one of anchors, memory"),
        (["--rounds", "0"], "argument --rounds: '0' is not an integer of at least 1"),
        (["--json", "x", "--save"], "--save: --json FILE is saved already"),
    ],
    ids=str,
)
def test_bad_flags_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        read_command(arguments)
    assert ended.value.code == 2
    assert f"report.py: error: {message}" in capsys.readouterr().err


def test_compiling_is_asked_for():
    assert "compiled" not in read_command([]).sections
    assert read_command(["--only", "anchors", "--compile"]).sections == ["anchors", "compiled"]


@pytest.mark.slow
def test_a_saved_report_is_printed_from_any_folder(tmp_path, capsys):
    path = save([anchor(240.0)], tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--json", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not valid" in done.stdout
    path.write_text(json.dumps({"runs": [{"measured": [{"section": "anchors"}]}]}))
    assert main(["--json", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"report.py: error: --json {path}: not a saved report (")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_each_comparison_has_a_process_of_its_own():
    (task,) = [task for task in plan(["twins"], 1, "vanilla on 14x14") if task.work.endswith("forward")]
    elsewhere = replace(task, work="nowhere planned")
    threads = torch.get_num_threads()
    found, lost = list(measure([task, elsewhere], rounds=1, threads=threads + 1))
    assert {name: len(samples) for name, samples in found.samples.items()} == {"ours": 1, "timm's": 1}
    assert found.failed is None
    assert lost.failed.startswith("ValueError")
    assert torch.get_num_threads() == threads


def test_an_interrupted_report_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    shown = []

    def measure_one(task, rounds, threads):
        shown.append(capsys.readouterr().out)
        if task.section == "floor" and "batch 1" not in task.work:
            raise KeyboardInterrupt
        return Measured(section=task.section, work=task.work, samples={"a": [1.0]}, claims=(Claim("a", kind="value"),))

    monkeypatch.setattr(report, "measure_one", measure_one)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda number, handler: number)
    assert main(["--only", "anchors,floor,harness", "--save"]) == 130
    # a section is on screen before the next begins
    assert [text.count("training step, batch 8") for text in shown] == [0, 0, 0, 1, 0]
    saved = measured_in(read(next(tmp_path.glob("*.json"))))
    assert [one.section for one in saved] == ["anchors", "anchors", "anchors", "floor"]
    assert "biformer_tiny, forward, batch 1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_terminated_report_ends_at_once():
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--only", "twins", "--rounds", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not psutil.Process(running.pid).children() and time.monotonic() < deadline:
            time.sleep(0.1)
        running.terminate()
        running.communicate(timeout=60)
    assert running.returncode == 130


def test_the_rounds_of_an_anchor_are_shared_by_processes(monkeypatch):
    (task,) = plan(["anchors"], 7, "forward, batch 1")
    asked = []

    def part(task, rounds, threads):
        asked.append((rounds, threads))
        return Measured(section=task.section, work=task.work, samples={"ours": [float(len(asked))] * rounds})

    monkeypatch.setattr(report, "_measure_apart", part)
    assert report.measure_one(task, 7, 2).samples == {"ours": [1, 1, 1, 2, 2, 2, 3]}
    assert asked == [(3, 2), (3, 2), (1, 2)]
    (other,) = [task for task in plan(["twins"], 7, "vanilla on 14x14") if task.work.endswith("forward")]
    assert report.measure_one(other, 7, 2).samples == {"ours": [4] * 7}


def test_a_section_has_its_variables_and_the_user_has_the_last_word(monkeypatch):
    for name in KEEP_FREED:
        monkeypatch.delenv(name, raising=False)
    given, left = KEEP_FREED
    monkeypatch.setenv(given, "1")
    show = [sys.executable, "-c", f"import os; print(os.environ[{given!r}], os.environ[{left!r}])"]
    with set_unless_given(KEEP_FREED):
        shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["1", KEEP_FREED[left]]
    assert os.environ[given] == "1"
    assert left not in os.environ
