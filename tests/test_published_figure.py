"""The figure of published accuracies: values of papers at measured costs, and what its words say of them."""

import matplotlib
import pytest
from figure_rows import frame
from published_lines import MODEL, rows, table

from runners import report
from runners.figures import FIGURES, draw
from runners.figures import PUBLISHED as OF_PAPERS
from runners.figures.__main__ import main
from runners.figures.choices import PUBLISHED
from runners.reporting.page import drawn_figures
from runners.rows.published import read_published
from runners.store.csv import to_csv


def points(figure):
    """Centres of the points of the first panel by label, and the hollow ones."""
    ax = figure.axes[0]
    at = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    hollow = [zip(line.get_xdata(), line.get_ydata(), strict=True) for line in ax.lines if "dist" in line.get_label()]
    return {name: xy for name, xy in at.items() if not name.startswith("_")}, {xy for each in hollow for xy in each}


def caption(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text)).replace("\n", " ")


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
