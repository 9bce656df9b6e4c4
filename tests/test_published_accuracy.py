"""Published accuracies: what the committed table holds, what its reader refuses, what is joined, and what is drawn."""

import csv
import io
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import timm
import torch
from figure_rows import frame

import attention_zoo
from runners import report
from runners.figures import FIGURES, draw
from runners.figures import PUBLISHED as OF_PAPERS
from runners.figures.__main__ import main
from runners.figures.choices import PUBLISHED
from runners.reporting.page import drawn_figures
from runners.rows.published import read_published, with_published
from runners.rows.selection import described
from runners.store.csv import to_csv

ROOT = Path(__file__).parents[1]
LINE = {
    "name": "swin",
    "kind": "mechanism",
    "layout": "stl",
    "settings": "",
    "task": "classification",
    "dataset": "ImageNet-1K",
    "metric": "top1",
    "value": "81.3",
    "resolution": "224x224",
    "source": "A paper",
    "table": "Table 9",
    "verified": "true",
    "confirmed_in": "its text",
}
MODEL = {"kind": "model", "layout": ""}


def table(path, *lines, drop=()):
    """Write lines that differ from LINE in what they give; returns the path."""
    columns = [name for name in LINE if name not in drop] + ["gflops"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**LINE, **line} for line in lines)
    path.write_text(text.getvalue())
    return path


def rows(*given):
    """Measured costs of mechanisms in stl at 224 px, as `read_rows` returns them."""
    common = {"layout": "stl", "resolution": "224x224", "seed": 0, "flops_status": "ok", "gmacs": 4.5}
    found = [{**common, "cell_key": str(number), **row} for number, row in enumerate(given)]
    whole = frame(found)
    models = pd.array([row.get("model") for row in found], dtype="string")
    return described(whole.assign(model=models))


def points(figure):
    """Centres of the points of the first panel by label, and the hollow ones."""
    ax = figure.axes[0]
    at = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    hollow = [zip(line.get_xdata(), line.get_ydata(), strict=True) for line in ax.lines if "dist" in line.get_label()]
    return {name: xy for name, xy in at.items() if not name.startswith("_")}, {xy for each in hollow for xy in each}


def caption(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text)).replace("\n", " ")


# --- the committed table


@pytest.fixture(scope="module")
def committed():
    return read_published(PUBLISHED)


def test_the_committed_table_names_mechanisms_of_the_zoo(committed):
    mechanisms = committed[committed["kind"] == "mechanism"]
    assert {*mechanisms["name"]} <= {*attention_zoo.names()}
    assert {*mechanisms["layout"]} == {"stl"}
    assert not committed["confirmed_in"].str.startswith(("/", "file:")).any()


def test_the_committed_table_has_the_ablation_of_mechanisms(committed):
    ablation = committed[committed["kind"] == "mechanism"].pivot(index="name", columns="metric", values="value")
    assert ablation.astype(object).where(ablation.notna(), None).to_dict("index") == {
        "sliding": {"top1": 81.4, "miou": None},
        "swin": {"top1": 81.3, "miou": 41.5},
        "sep": {"top1": 81.5, "miou": 42.9},
        "axial": {"top1": 81.5, "miou": 39.8},
        "crisscross": {"top1": 81.7, "miou": 43.0},
        "cswin": {"top1": 82.2, "miou": 43.4},
        "dat": {"top1": 82.0, "miou": 42.6},
        "maxvit": {"top1": 81.8, "miou": 42.8},
        "bra": {"top1": 82.7, "miou": 44.8},
    }
    doubtful = committed[~committed["verified"]]
    assert {*zip(doubtful["name"], doubtful["metric"], strict=True)} == {
        *(("dat", metric) for metric in ("top1", "miou")),
        *(("maxvit", metric) for metric in ("top1", "miou")),
        ("bra", "miou"),
        ("maxvit_stl", "top1"),
    }


def test_the_committed_table_names_models_of_timm(committed):
    models = committed.loc[committed["kind"] == "model", "name"]
    named = {name.removeprefix("timm:") for name in models if name.startswith("timm:")}
    assert named and named <= {*timm.list_models()}


@pytest.mark.parametrize("name", ["bra", "biformer_tiny", "biformer_small", "biformer_base"])
def test_published_flops_are_macs(committed, name):
    (line,) = committed[(committed["name"] == name) & (committed["metric"] == "top1")].to_dict("records")
    is_model = line["kind"] == "model"
    config = {} if is_model else {"attn": name, "topk": line["settings"].partition("=")[2]}
    with torch.device("meta"):
        model = attention_zoo.create_model(name if is_model else line["layout"], **config)
    assert model.macs(224, 224).total / 1e9 == pytest.approx(line["gflops"], abs=0.06)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(line["params_m"], abs=0.06)


def test_every_column_of_the_committed_table_is_described(committed):
    section = (ROOT / "results" / "README.md").read_text().partition("| column of it |")[2].partition("\n\n")[0]
    described_columns = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert described_columns == [*committed]


# --- the reader


def test_the_reader_gives_types_and_columns_that_a_file_lacks(tmp_path):
    found = read_published(table(tmp_path / "a.csv", {}, {**MODEL, "name": "swin_tiny", "gflops": "4.5"}))
    assert found["value"].tolist() == [81.3, 81.3] and found["verified"].tolist() == [True, True]
    assert found["gflops"].isna().tolist() == [True, False] and found["params_m"].isna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "name is empty"),
        ({"source": " "}, "source is empty"),
        ({"kind": "layer"}, "'layer'"),
        ({"metric": "top5"}, "'top5'"),
        ({"metric": "miou"}, "'classification'"),
        ({"resolution": "224"}, "'224'"),
        ({"value": "0.813e3"}, "813"),
        ({"value": "inf"}, "inf"),
        ({"value": ""}, "value is empty"),
        ({"gflops": "-1"}, "gflops"),
        ({"layout": ""}, "layout is empty"),
        ({"kind": "model"}, "layout is stl"),
        ({"verified": ""}, "verified"),
        ({"confirmed_in": ""}, "confirmed_in"),
        ({"verified": "false"}, "confirmed_in"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, words):
    path = table(tmp_path / "a.csv", {"name": "bra"}, change)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: ") as error:
        read_published(path)
    assert words in str(error.value)


def test_one_name_has_one_value_of_a_metric(tmp_path):
    with pytest.raises(ValueError, match="lines 2 and 4: the same top1"):
        read_published(table(tmp_path / "a.csv", {}, {"name": "bra"}, {"value": "81.5"}))
    other_settings = {"settings": "window=4", "value": "81.5"}
    assert len(read_published(table(tmp_path / "b.csv", {}, other_settings))) == 2


@pytest.mark.parametrize("text", ["", "name,kind\nswin", "\x00\x00", "name,value\n\xff"])
def test_a_file_of_something_else_is_one_line(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv") as error:
        read_published(path)
    assert "\n" not in str(error.value)


def test_a_word_where_a_number_belongs_and_a_missing_column_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as published accuracies"):
        read_published(table(tmp_path / "a.csv", {"value": "high"}))
    with pytest.raises(ValueError, match="lacks the columns confirmed_in"):
        read_published(table(tmp_path / "a.csv", {}, drop=["confirmed_in"]))


# --- the join


def joined(tmp_path, lines, *given):
    found = with_published(rows(*given), read_published(table(tmp_path / "published.csv", *lines)))
    values = found["published"].astype(object).where(found["published"].notna(), None)
    return [*zip(values, found["doubt"], found["gap"], strict=True)]


def test_rows_are_joined_by_mechanism_and_layout_or_by_model(tmp_path):
    lines = [{}, {**MODEL, "name": "swin_tiny", "value": "81.2"}, {**MODEL, "name": "swin", "value": "1"}]
    assert joined(
        tmp_path,
        [*lines, {"metric": "miou", "task": "segmentation", "name": "bra"}],
        {"attention": "swin"},
        {"model": "swin_tiny"},
        # the mechanism of a model is not what was published of the mechanism
        {"model": "swin_small", "attention": "swin"},
        {"attention": "swin", "layout": "small"},
        {"attention": "swin", "resolution": "64x64"},
        {"attention": "bra"},
    ) == [
        (81.3, "", ""),
        (81.2, "", ""),
        (None, "", "nothing published"),
        (None, "", "published in layout stl"),
        (None, "", "published at 224x224, measured at 64x64"),
        (None, "", "nothing published"),
    ]


def test_what_is_unverified_is_in_doubt(tmp_path):
    lines = [{"verified": "false", "confirmed_in": ""}]
    assert joined(tmp_path, lines, {"attention": "swin"}) == [(81.3, "not confirmed", "")]


def test_settings_are_joined_to_equal_settings(tmp_path):
    lines = [{"name": "bra", "settings": "topk=1-4-16-full;lepe=false"}]
    published = {"attention": "bra", "settings": "lepe=false;topk=1-4-16-full", "topk_schedule": "1-4-16-full"}
    words = "published with topk=1-4-16-full;lepe=false"
    default, others = {"attention": "bra", "topk": 4}, {"attention": "bra", "settings": "topk=8", "topk": 8}
    assert joined(tmp_path, lines, published, default, others) == [
        (81.3, "", ""),
        (None, "", words),
        (None, "", words),
    ]
    # without a row of these settings the default stands in, in doubt
    assert joined(tmp_path, lines, default, others) == [(81.3, words, ""), (None, "", words)]
    # and not where it was published with several
    two = [*lines, {"name": "bra", "settings": "topk=2", "value": "82"}]
    assert joined(tmp_path, two, default)[0][0] is None


def test_a_row_of_settings_does_not_take_the_value_of_defaults(tmp_path):
    given = {"attention": "swin", "settings": "window=4"}
    assert joined(tmp_path, [{}], given) == [(None, "", "published with default settings")]


# --- the figure

FOUR = [
    {},
    {"name": "bra", "value": "82.7", "verified": "false", "confirmed_in": "", "source": "Another"},
    {"name": "cswin", "value": "82.2"},
    {**MODEL, "name": "biformer_tiny", "value": "81.4"},
]
MEASURED = [
    {"attention": "swin", "gmacs": 4.4},
    {"attention": "bra", "gmacs": 4.6},
    {"attention": "cswin", "gmacs": 4.7},
    {"model": "biformer_tiny", "gmacs": 2.2, "layout": "biformer_tiny"},
    {"attention": "vanilla", "gmacs": 8.8},
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return read_published(table(tmp_path_factory.mktemp("published") / "published.csv", *FOUR))


@pytest.fixture(scope="module")
def figure(published):
    """Of costs beside which accuracies on another task were measured."""
    other = {"acc1": 50.0, "data": "digit-vote", "accuracy_status": "ok"}
    return draw("pareto", rows(*({**row, **other} for row in MEASURED)), published=published)


@pytest.fixture(scope="module")
def repeated(published):
    """Of two seeds, and of timings one of which was disturbed."""
    seeds = [
        {**row, "seed": seed, "infer_latency_ms": 9.0 + seed + at, "disturbed": row.get("attention") == "swin"}
        for at, row in enumerate(MEASURED)
        for seed in (0, 1)
    ]
    return draw("pareto", rows(*seeds), published=published)


def test_the_figure_shows_published_values_at_measured_costs(figure):
    drawn, hollow = points(figure)
    assert drawn == {"swin": (4.4, 81.3), "bra": (4.6, 82.7), "cswin": (4.7, 82.2), "biformer_tiny": (2.2, 81.4)}
    assert hollow == {(4.6, 82.7)}
    assert len(figure.axes) == 1


def test_the_front_is_that_of_the_published_values(figure):
    (front,) = (line for line in figure.axes[0].lines if line.get_label() == "_front")
    assert [*zip(front.get_xdata(), front.get_ydata(), strict=True)] == [(2.2, 81.4), (4.6, 82.7)]


def test_the_figure_says_that_nothing_of_its_accuracy_was_measured(figure):
    assert figure.axes[0].get_ylabel() == "published ImageNet top-1 (%)"
    text = caption(figure)
    assert "A paper, Table 9 (biformer_tiny, cswin, swin); Another, Table 9 (bra)" in text
    assert "nothing published (vanilla)" in text and "Hollow: not confirmed (bra)" in text
    assert "digit-vote" not in text and "400 steps" not in text


def test_repeats_of_a_cost_are_no_repeats_of_a_published_accuracy(repeated):
    (part,) = repeated.subfigs
    labels = {text.get_text() for text in part.legends[0].get_texts()}
    assert {"on the front", "off the front", "not confirmed"} == labels - {"models", "mechanisms in a host"}


def test_a_disturbed_timing_is_named_and_not_hollow(repeated):
    assert points(repeated)[1] == {(4.6, 82.7)}
    assert "disturbed the timing of swin." in caption(repeated)


def test_a_cost_that_is_not_measured_is_named_and_one_that_failed_is_a_cross(published):
    given = [
        *MEASURED[:2],
        {"attention": "cswin", "gmacs": None, "flops_status": None, "status": "pending"},
        {"model": "biformer_tiny", "gmacs": None, "flops_status": "oom", "status": "oom"},
    ]
    figure = draw("pareto", rows(*given), published=published)
    assert {*points(figure)[0]} == {"swin", "bra"}
    assert "Not drawn: no cost measured (cswin)." in caption(figure)
    assert "biformer_tiny: MACs oom" in caption(figure)


def test_a_front_needs_two_published_accuracies(published):
    with pytest.raises(ValueError, match=r"the rows have 1; others: nothing published \(vanilla\)"):
        draw("pareto", rows(MEASURED[0], MEASURED[4]), published=published)
    with pytest.raises(ValueError, match="pareto shows it, not topk"):
        draw("topk", rows(*MEASURED), published=published)


def test_the_report_adds_the_figure_or_says_why_not(published):
    drawn, said = drawn_figures(rows(*MEASURED[:2]), published)
    assert [figure["help"] for figure in drawn if figure["help"] not in FIGURES.values()] == [OF_PAPERS] and said == []
    drawn, said = drawn_figures(rows({"attention": "vanilla"}, {"attention": "pvt"}), published)
    assert (
        PUBLISHED not in [figure["help"] for figure in drawn]
        and len(said) == 1
        and "nothing published (pvt, vanilla)" in said[0]
    )


# --- the commands


def test_the_command_draws_the_committed_table(tmp_path, capsys):
    """Of swin and bra with default settings; what is not drawn is said where there is no caption."""
    given = [{"attention": name, "gmacs": 4.5 + number} for number, name in enumerate(("swin", "bra", "pvt"))]
    results, out = tmp_path / "rows.csv", tmp_path / "a.svg"
    results.write_text(
        to_csv(
            frame(
                [{**r, "layout": "stl", "resolution": "224x224", "seed": 0, "cell_key": r["attention"]} for r in given]
            )
        )
    )
    command = ["pareto", "--results", str(results), "--accuracy", "published", "--out", str(out)]
    assert main(command) == 0
    assert "published with topk=1-4-16-full (bra)" in " ".join(out.read_text().split())
    assert capsys.readouterr().err == ""
    assert main([*command, "--no-caption"]) == 0
    assert "not drawn: nothing published (pvt)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pareto", "--accuracy", "guessed"], "argument --accuracy: 'guessed' is not measured, published, or a .csv"),
        (["pareto", "--accuracy", "no.csv"], "no published accuracies in no.csv: No such file or directory"),
        (["connectivity", "--accuracy", "published"], "--accuracy published: the figure pareto shows it"),
    ],
)
def test_bad_input_of_the_figures_is_one_line(capsys, arguments, words):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


def test_a_table_of_the_report_has_no_figure(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--accuracy", "published", "--format", "latex"])
    assert end.value.code == 2 and "--format latex has none" in capsys.readouterr().err
