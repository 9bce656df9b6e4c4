"""What a reader asks of a figure: mechanisms, names, size and format; and one line for a choice that is none."""

import matplotlib
import pandas as pd
import pytest
from figure_rows import SAMPLE, frame, growing, trained

from runners.figures import FIGURES, draw, save, sheet
from runners.figures.__main__ import main
from runners.figures.choices import Crowded
from runners.reporting import page
from runners.reporting.page import drawn_figures
from runners.rows.selection import read_rows


def test_mechanisms_are_chosen_and_named():
    figure = draw(
        "topk", frame(trained()), attn=["bra", "vanilla"], names={"bra": "BiFormer"}, size="column", caption=False
    )
    ax = figure.findobj(matplotlib.axes.Axes)[0]
    assert {text.get_text() for text in ax.texts} == {"BiFormer", "vanilla"}
    assert figure.get_figwidth() == 3.3
    assert not figure.subfigs[0].get_supxlabel()
    alone = draw("topk", frame(trained()), attn=["bra"])
    assert {
        line.get_label()
        for ax in alone.findobj(matplotlib.axes.Axes)
        for line in ax.lines
        if line.get_label()[0] != "_"
    } == {"bra"}


def test_a_class_is_shown_without_its_module_where_that_is_clear():
    rows = [
        {**row, "attention": {"swin": "mine.a:Mixer", "bra": "mine.b:Other"}.get(row["attention"], "vanilla")}
        for row in growing()
    ]
    texts = {text.get_text().partition("\n")[0] for ax in draw("complexity", frame(rows)).axes for text in ax.texts}
    assert {"Mixer", "Other", "vanilla"} <= texts
    twice = [{**row, "attention": row["attention"].replace("Other", "Mixer")} for row in rows]
    texts = {text.get_text().partition("\n")[0] for ax in draw("complexity", frame(twice)).axes for text in ax.texts}
    assert {"mine.a:Mixer", "mine.b:Mixer"} <= texts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attn", "swim"], ("--attn swim", "bra, vanilla")),
        (["--attn", "bra,"], ("--attn", "bra,")),
        (["--names", "swim=Swin"], ("--names swim", "bra, vanilla")),
        (["--names", "bra"], ("--names", "'bra'", "OLD=NEW")),
        (["--names", "bra=vanilla"], ("--names vanilla",)),
        (["--size", "poster"], ("--size", "poster", "column, page")),
        (["--format", "pdf,gif"], ("--format", "'gif'", "png, svg, pdf")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_choice_names_its_flag_and_what_is_allowed(tmp_path, capsys, arguments, words):
    table = tmp_path / "rows.csv"
    frame(trained()).to_csv(table, index=False)
    try:
        code = main(["topk", "--results", str(table), "--out", str(tmp_path / "p.png"), *arguments])
    except SystemExit as end:
        code = end.code
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1
    assert all(word in message for word in words), message
    assert [*tmp_path.iterdir()] == [table]


def test_more_panels_than_a_figure_holds_are_refused_by_their_number(monkeypatch):
    rows = read_rows(SAMPLE)
    panels = len(draw("pareto", rows).axes)
    assert panels > 1
    monkeypatch.setattr(sheet, "MOST_PANELS", panels)
    draw("pareto", rows)
    with pytest.raises(Crowded, match=rf"^{2 * panels} panels"):
        draw("pareto", pd.concat([rows, rows.assign(device_id="another")]), by_device=True)

    monkeypatch.setattr(sheet, "MOST_PANELS", panels - 1)
    drawn, reasons = drawn_figures(rows)
    assert [one["help"] for one in drawn] == [FIGURES["batch"], FIGURES["roofline"]], "they have few panels"
    reason = f"No figure pareto: {panels} panels are more than one figure holds ({panels - 1}); draw fewer rows."
    assert reason in reasons


def test_a_report_draws_nothing_of_more_points_than_a_figure_holds(monkeypatch):
    rows = read_rows(SAMPLE)
    points = len({*zip(rows["configuration"], rows["resolution"], rows["batch_size"], strict=True)})
    monkeypatch.setattr(page, "MOST_POINTS", points - 1)
    reason = f"No drawn figures: {points} points are more than one can hold ({points - 1}); use --study."
    assert drawn_figures(rows) == ([], [reason])
    monkeypatch.setattr(page, "MOST_POINTS", points)
    drawn, reasons = drawn_figures(rows)
    assert drawn and reasons == []


def test_a_bad_argument_from_python_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"size 'poster'.*column, page"):
        draw("topk", frame(trained()), size="poster")
    with pytest.raises(ValueError, match=r"gif.*png, svg, pdf"):
        save(draw("topk", frame(trained())), tmp_path / "p", ["gif"])
