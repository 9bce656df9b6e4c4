"""The figures as a set: one colour for each mechanism, nothing outside or on top of another, and files for print."""

import re
import zlib
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figure_rows import frame, growing, settings, trained
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text

from runners.figures import FIGURES, KINDS, draw, save, sheet
from runners.figures.__main__ import main
from runners.figures.choices import FORMATS, SIZES, Crowded
from runners.figures.looks import COLOURS, OTHERS, colour_and_marker, ink, looks, luminance, short_names
from runners.reporting.page import drawn_figures
from runners.rows.selection import read_rows

ROOT = Path(__file__).parents[1]
(SAMPLE,) = (ROOT / "results").glob("sample_*.csv")

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


# --- colours


def test_every_mechanism_has_a_colour_and_a_marker_that_no_other_has():
    colours, markers = zip(*COLOURS.values(), strict=True)
    assert len({*colours, *OTHERS}) == len(COLOURS) + len(OTHERS) >= 16
    assert len({*markers}) == len(COLOURS)


# what protanopes and deuteranopes see of linear RGB: Machado et al., 2009, table 1
SEEN = {
    "normal": np.eye(3),
    "deuteranope": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanope": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
}


def lab(colour, seen):
    """OKLab of a colour as it is seen, in which equal distances look equal."""
    rgb = np.array(to_rgb(colour))
    linear = SEEN[seen] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]] @ linear.clip(0)
    return [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]] @ np.cbrt(lms)


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart_by_colour_blind_readers(seen):
    colours = [lab(colour, seen) for colour in (*(colour for colour, _ in COLOURS.values()), *OTHERS)]
    # 0.02 is just noticeable side by side
    assert min(np.linalg.norm(one - other) for one, other in combinations(colours, 2)) > 0.06


def test_a_name_can_be_read_and_a_mechanism_of_ones_own_keeps_its_colour():
    for colour in (*(colour for colour, _ in COLOURS.values()), *OTHERS):
        assert 1.05 / (luminance(ink(colour)) + 0.05) > 4.5
    mine = "mine.module:Mixer"
    assert colour_and_marker(mine)[0] == OTHERS[zlib.crc32(mine.encode()) % len(OTHERS)]
    assert looks([mine])[mine].colour == looks([mine, "yours:B", "bra", "vanilla"])[mine].colour


def test_strangers_never_share_both_colour_and_marker():
    found = looks([f"stranger{number}:A" for number in range(30)])
    assert len({(look.colour, look.marker) for look in found.values()}) == 30


def test_settings_are_shades_of_their_mechanism_from_light_to_dark():
    found = looks([*(f"bra topk={k}" for k in (16, 1, 4)), "vanilla"])
    assert [*found] == ["vanilla", "bra topk=1", "bra topk=4", "bra topk=16"]
    light = [luminance(found[f"bra topk={k}"].colour) for k in (1, 4, 16)]
    assert light == sorted(light, reverse=True) and len({*light}) == 3
    assert {look.marker for label, look in found.items() if label != "vanilla"} == {COLOURS["bra"][1]}
    assert looks(["bra topk=4", "swin"])["bra topk=4"].colour == COLOURS["bra"][0]


def test_a_legend_lists_numbers_by_their_value():
    settings = ["bra topk=16", "bra topk=4", "bra topk=1", "bra topk=8", "bra topk=4 128x128", "bra topk=4 64x64"]
    ordered = ["topk=1", "topk=4", "topk=4 64x64", "topk=4 128x128", "topk=8", "topk=16"]
    assert [*looks(settings)] == [f"bra {words}" for words in ordered]


def test_short_names_are_values_in_the_order_of_the_fields():
    names, fields = short_names(["bra topk=4", "bra topk=4 regions=2", "bra regions=2 batch 8", "swin batch 8", "swin"])
    assert names == {
        "bra topk=4": "4",
        "bra topk=4 regions=2": "4·2",
        "bra regions=2 batch 8": "-·2 batch 8",
        "swin batch 8": "swin batch 8",
        "swin": "swin",
    }
    assert fields == {"bra": ["topk", "regions"]}


def test_a_mechanism_has_one_colour_in_every_figure():
    """Of growing and trained rows, with one setting of each mechanism."""
    tables = {
        "complexity": growing(),
        "roofline": growing(),
        "pareto": [r for r in trained() if r["topk"] in (None, 4)],
    }
    tables["topk"] = trained()
    for kind, rows in tables.items():
        for ax in draw(kind, frame(rows)).findobj(matplotlib.axes.Axes):
            for line in ax.lines:
                if not line.get_label().startswith("_"):
                    assert line.get_color() == COLOURS[line.get_label().partition(" ")[0]][0], kind


# --- places


def texts_of(figure) -> dict[Text, object]:
    """Every text that is seen, and its box without leaders."""
    hidden = {tick for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for tick in unseen(axis)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return {text: Text.get_window_extent(text) for text in texts if text not in hidden}


def unseen(axis) -> list[Text]:
    """Labels of ticks beyond the limits, which matplotlib keeps but does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [t for tick in ticks for t in (tick.label1, tick.label2) if not low <= tick.get_loc() <= high]


def inside(outer, box, slack=0.5) -> bool:
    return (
        outer.x0 - slack <= box.x0
        and box.x1 <= outer.x1 + slack
        and outer.y0 - slack <= box.y0
        and box.y1 <= outer.y1 + slack
    )


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


# --- what a reader asks for


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


def test_a_bad_argument_from_python_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"size 'poster'.*column, page"):
        draw("topk", frame(trained()), size="poster")
    with pytest.raises(ValueError, match=r"gif.*png, svg, pdf"):
        save(draw("topk", frame(trained())), tmp_path / "p", ["gif"])


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
