"""The figures as a set: nothing outside or on top of another, what was disturbed is marked, and files for print."""

import re
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn_axes import inside, texts_of
from figure_rows import SAMPLE, frame, growing, settings, trained
from matplotlib.text import Annotation, Text

from runners.figures import KINDS, draw, save
from runners.figures.__main__ import main
from runners.figures.choices import FORMATS, SIZES
from runners.figures.looks import COLOURS
from runners.rows.selection import read_rows

TABLES = {
    "sample": lambda kind: read_rows(SAMPLE),
    "1 seed": lambda kind: frame(settings(2, 1, (64, 128))),
    "30 settings": lambda kind: frame(settings(30, 3, (64,) if kind == "pareto" else (64, 128))),
}


@pytest.fixture(scope="module")
def drawn():
    """Figures by kind, table and size, drawn once."""
    figures: dict[tuple[str, str, str], matplotlib.figure.Figure] = {}

    def figure(kind, table, size):
        key = kind, table, size
        if key not in figures:
            figures[key] = draw(kind, TABLES[table](kind), size=size)
        return figures[key]

    return figure


QUICK = ("pareto", "complexity", "learning")
# some kinds of the sample in the default run, the others in the slow one
CASES = [
    pytest.param(
        kind, table, size, marks=[pytest.mark.slow] * ((table, size) != ("sample", "page") or kind not in QUICK)
    )
    for kind in KINDS
    for table in TABLES
    for size in SIZES
    # some rows have one size of regions, or one batch
    if (kind, table) not in (("region_size", "1 seed"), ("batch", "1 seed"), ("batch", "30 settings"))
]
of_every_figure = pytest.mark.parametrize(("kind", "table", "size"), CASES)


# --- places


@of_every_figure
def test_no_text_leaves_the_picture_or_lies_on_another(drawn, kind, table, size):
    figure = drawn(kind, table, size)
    figure.draw_without_rendering()
    boxes = texts_of(figure)
    assert [text.get_text() for text, box in boxes.items() if not inside(figure.bbox, box)] == []
    overlaps = [
        (one.get_text(), other.get_text())
        for (one, box), (other, before) in combinations(boxes.items(), 2)
        if box.shrunk(0.95, 0.75).overlaps(before.shrunk(0.95, 0.75))
    ]
    assert overlaps == []


@of_every_figure
def test_what_is_drawn_stays_inside_its_axes(drawn, kind, table, size):
    figure = drawn(kind, table, size)
    figure.draw_without_rendering()
    for ax in figure.findobj(matplotlib.axes.Axes):
        frame = ax.get_window_extent()
        for bars in ax.collections:
            for segment in bars.get_segments() if hasattr(bars, "get_segments") else ():
                ends = ax.transData.transform(segment)
                assert np.all((ends >= frame.min - 0.5) & (ends <= frame.max + 0.5)), "an interval leaves the axes"
        for line in ax.lines:
            if line.get_label() == "_guide" or not line.get_label().startswith("_"):
                points = line.get_transform().transform(line.get_path().vertices)
                assert np.all((points >= frame.min - 0.5) & (points <= frame.max + 0.5)), line.get_label()
        for text in ax.texts:
            if isinstance(text, Annotation) and text.anncoords == "offset points":
                assert inside(frame, Text.get_window_extent(text)), text.get_text()


@of_every_figure
def test_the_width_is_that_of_the_print_and_fonts_are_read_at_it(drawn, kind, table, size):
    figure = drawn(kind, table, size)
    assert figure.get_figwidth() == SIZES[size].width
    assert min(text.get_fontsize() for text in texts_of(figure)) >= 6 * 0.7  # an exponent is 0.7 of its line
    assert min(text.get_fontsize() for text in texts_of(figure) if "$" not in text.get_text()) >= 6


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind != "pareto"))
        for kind in KINDS
        if kind not in ("region_size", "batch")
    ],
)
def test_one_seed_has_no_intervals_and_no_word_of_tests(drawn, kind):
    figure = drawn(kind, "1 seed", "page")
    (part,) = figure.subfigs
    words = part.get_supxlabel().lower()
    assert "one seed" in words
    assert not [
        word
        for word in ("1 seeds", "interval", "test,", "tests", "bonferroni", "mean over")
        if word in words.replace("95% interval.", "")
    ]
    for ax in figure.findobj(matplotlib.axes.Axes):
        assert not [
            segment for bars in ax.collections if hasattr(bars, "get_segments") for segment in bars.get_segments()
        ]


# --- disturbed rows and protocols


def test_a_disturbed_timing_is_hollow_and_the_caption_says_so():
    table = frame(trained()).assign(disturbed=pd.array([False] * 11 + [True], dtype="boolean"))
    figure = draw("pareto", table)
    hollow = {
        ax.get_xlabel(): [line for line in ax.lines if line.get_label() == "_disturbed"]
        for ax in figure.findobj(matplotlib.axes.Axes)
    }
    assert {label: len(lines) for label, lines in hollow.items()} == {
        "MACs of the network, one image (GMAC)": 0,
        "latency of a batch (ms)": 1,
        "peak memory of inference (MiB)": 0,
        "training step of a batch (ms)": 1,
    }
    (line,) = hollow["latency of a batch (ms)"]
    assert line.get_markerfacecolor() == "white" and line.get_markeredgecolor() == COLOURS["vanilla"][0]
    assert "hollow" in figure.subfigs[0].get_supxlabel().lower()
    assert "hollow" not in draw("pareto", frame(trained())).subfigs[0].get_supxlabel().lower()


def test_rows_of_two_protocols_share_no_line():
    old = [{**row, "cell_key": f"old{row['cell_key']}", "throughput_protocol": 1} for row in growing()]
    table = frame([*old, *({**row, "throughput_protocol": 2} for row in growing())])
    ax = draw("complexity", table).findobj(matplotlib.axes.Axes)[0]
    lines = [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
    assert {"vanilla throughput protocol 1", "vanilla throughput protocol 2"} <= {*lines} and len(lines) == 6


# --- files


def test_every_format_is_written_beside_the_named_file(tmp_path, capsys):
    table = tmp_path / "rows.csv"
    frame(trained()).to_csv(table, index=False)
    assert main(["pareto", "--results", str(table), "--out", str(tmp_path / "p.png"), "--format", "pdf,svg"]) == 0
    files = [tmp_path / f"p.{ending}" for ending in ("png", "pdf", "svg")]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert all(file.stat().st_size > 1000 for file in files)
    assert main(["pareto", "--results", str(table), "--out", str(tmp_path / "q"), "--format", "svg"]) == 0
    assert sorted(path.name for path in tmp_path.glob("q*")) == ["q.svg"]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "pareto")) for kind in KINDS])
def test_fonts_of_a_pdf_are_truetype_and_text_of_an_svg_is_text(drawn, kind, tmp_path):
    pdf, svg = save(drawn(kind, "sample", "page"), tmp_path / "p.pdf", ["svg"])
    types = re.findall(rb"/Subtype /(Type0|Type1|Type3|TrueType|CIDFontType2)", pdf.read_bytes())
    assert b"Type3" not in types and b"Type1" not in types
    assert {b"Type0", b"CIDFontType2"} <= {*types} or b"TrueType" in types
    assert b"/FontFile2" in pdf.read_bytes()
    text = svg.read_text()
    words = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert any(word.startswith("vanilla") for word in words)


def test_a_name_is_no_mathematics_and_no_markup(tmp_path):
    hostile = "a$b_{$<x>&"
    rows = [{**row, "attention": row["attention"].replace("swin", hostile)} for row in growing()]
    (svg,) = save(draw("complexity", frame(rows)), tmp_path / "p.svg")
    assert "a$b_{$&lt;x&gt;&amp;" in svg.read_text()


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first, second = (save(draw("topk", frame(trained())), tmp_path / f"{n}.png", FORMATS) for n in "ab")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
