"""The benchmarks: the paper's steps compute what ours does, timing is in turns, and claims are judged or refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attention_zoo.published.classes import counterpart_model
from attention_zoo.published.models import PUBLISHED
from benchmarks import report, scaling
from benchmarks.claims import Claim, Measured, judge
from benchmarks.floor import floor, record
from benchmarks.models import OUR_SWIN, TIMM_SWIN, Work, build
from benchmarks.pairs import Spread, share, speed, take_turns
from benchmarks.paper_steps import PaperBiFormer
from benchmarks.report import KEEP_FREED, main, measure, plan, read_command, set_unless_given
from benchmarks.results import measured_in, read, save
from benchmarks.tables import rows_of

ROOT = Path(__file__).parents[1]
NARROW = {"depth": [1, 1, 2, 1], "embed_dim": [32, 64, 64, 64], "num_classes": 10}


@pytest.fixture(scope="module")
def paper_and_ours():
    """BiFormer of few channels with sharp routes: in the steps of the paper, and ours padded as published.

    In float64: outputs are in the thousands, and of one near 0 float32 keeps three digits.
    """
    arguments = {**PUBLISHED["biformer_tiny"].arguments, **NARROW, "qk_dims": NARROW["embed_dim"]}
    ours, _ = counterpart_model("models.BiFormer", {"ctor": {**arguments, "auto_pad": True}, "H": 112, "W": 112})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 2 * parameter[0].numel() ** -0.5, generator=generator)
    needed = ("mlp_ratios", "topks", "n_win", "head_dim")
    paper = PaperBiFormer(**NARROW, **{name: arguments[name] for name in needed})
    paper.load_ours(ours)
    return paper.double(), ours.double()


@pytest.mark.parametrize("size_px", [(112, 224), (96, 120)], ids=str)
def test_the_steps_of_the_paper_give_what_ours_gives(paper_and_ours, size_px):
    paper, ours = (model.eval() for model in paper_and_ours)
    images = torch.randn(2, 3, *size_px, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = paper(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


def test_so_do_their_gradients(paper_and_ours):
    paper, ours = (model.train() for model in paper_and_ours)
    gradients = []
    for model in (paper, ours):
        images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        images.requires_grad_()
        model(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients, atol=1e-4 * float(gradients[0].abs().max()), rtol=1e-3)


@pytest.mark.slow
def test_biformer_tiny_in_the_steps_of_the_paper():
    paper, ours = build("paper_steps").eval(), build("biformer_tiny").eval()
    paper.load_ours(ours)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), paper(images), atol=1e-4, rtol=1e-4)


def test_our_swin_is_the_size_of_timms():
    with torch.device("meta"):
        ours, theirs = build(OUR_SWIN), build(TIMM_SWIN)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


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


def test_the_exponent_of_a_power_law_is_found():
    tokens = [side**2 for side in scaling.SIDES]
    noise = np.random.default_rng(0).normal(1, 0.01, len(tokens))
    fit = scaling.fit_exponent(tokens, [3e-4 * n**1.37 * e for n, e in zip(tokens, noise, strict=True)])
    assert fit.slope == pytest.approx(1.37, abs=3 * fit.error)
    assert 0.001 < fit.error < 0.02


def test_exponents_are_those_of_large_maps():
    def point(side, milliseconds):
        samples = {"bra, region_size=auto": [milliseconds], "vanilla": [milliseconds]}
        return Measured(section="scaling", work=f"{side}x{side}", samples=samples, tokens=side**2)

    curve = [point(side, max(56.0, side) ** 3.0) for side in scaling.SIDES]
    routed, vanilla = scaling.slopes(curve)
    assert (routed.spread.median, routed.spread.n) == (pytest.approx(1.5), 6)
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
def test_nothing_is_said_against_a_stand_in_outside_its_range(paper_ms):
    ours, paper, refused = judge(anchor(paper_ms))
    assert ours.spread.median == 2.0
    assert paper.verdict == "OUT OF RANGE"
    assert refused.spread is None
    assert refused.verdict == "REFUSED: paper lies outside its range beside swin"


def test_few_rounds_and_failures_are_said():
    few = Measured(section="twins", work="w", samples={"a": [1.0], "b": [2.0]}, claims=(Claim("a", "b", 1.0),))
    assert judge(few)[0].verdict == "met, but n < 7"
    failed = Measured(section="twins", work="w", failed="RuntimeError: no compiler")
    assert judge(failed)[0].verdict == "NOT MEASURED: RuntimeError: no compiler"
    peak = Measured(section="memory", work="w", samples={"a": [4.0], "b": [9.0]}, unit="MiB")
    row = judge(Measured(**{**vars(peak), "claims": (Claim("a", "b", 0.4, kind="share"),)}))[0]
    assert (row.spread.median, row.wanted, row.verdict) == (pytest.approx(4 / 9), "at most 0.4", "SHORT")


def test_a_report_is_saved_and_added_to(tmp_path):
    save([anchor(220.0), Measured(section="twins", work="w", failed="x")], tmp_path)
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


def test_the_floor_holds_every_product():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    work = Work(2, side_px=8)
    names = [str(function) for function, _, _ in record(model, work)]
    assert names == ["aten.convolution.default", "aten.addmm.default"]
    training = Work(2, training=True, side_px=8)
    names = [str(function) for function, _, _ in record(model, training)]
    assert sorted(names[2:]) == ["aten.convolution_backward.default", "aten.mm.default", "aten.mm.default"]
    floor(model, training)()
    assert all(parameter.grad is None for parameter in model.parameters())


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


def test_a_saved_report_is_printed_from_any_folder(tmp_path, capsys):
    path = save([anchor(240.0)], tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--json", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "REFUSED" in done.stdout
    path.write_text(json.dumps({"runs": [{"measured": [{"section": "anchors"}]}]}))
    assert main(["--json", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"report.py: error: --json {path}: not a saved report (")
    assert error.count("\n") == 1


def test_each_comparison_has_a_process_of_its_own():
    (task,) = [task for task in plan(["twins"], 1, "vanilla on 14x14") if task.work.endswith("forward")]
    elsewhere = replace(task, work="nowhere planned")
    threads = torch.get_num_threads()
    found, lost = measure([task, elsewhere], rounds=1, threads=threads + 1)
    assert {name: len(samples) for name, samples in found.samples.items()} == {"ours": 1, "timm's": 1}
    assert found.failed is None
    assert lost.failed.startswith("ValueError")
    assert torch.get_num_threads() == threads


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
