"""The table in other formats: what is bold, what is escaped, and timm's columns."""

import csv
import io
import re
import shutil
import subprocess

import pandas as pd
import pytest
from sample_results import HOSTILE, values_of, write_sample

from ablations.study import Cell
from runners.measures import ACCURACY
from runners.reporting import export
from runners.rows import ranking
from runners.rows.selection import described, read_rows
from runners.rows.stats import Interval, mean_interval
from runners.store.store import open_store
from runners.table import load

INFER = ["infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size"]
TRAIN = ["train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_sample(folder)
    return read_rows(folder)


def markdown_tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells of each line by its first one, of each table by its title."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("### "):
            title = line[4:]
            found[title] = {}
        elif line.startswith("| ") and not line.startswith("| ---"):
            name, *cells = line.strip("| ").split(" | ")
            found[title][name] = cells
    return found


def test_the_best_and_its_ties_are_bold_in_markdown(rows):
    table = markdown_tables(export.to_markdown(rows))["topk: 64x64 px"]
    acc1 = {name: cells[0] for name, cells in table.items() if name != "configuration"}
    assert {name for name, text in acc1.items() if text.startswith("**")} == {"vanilla", "bra topk=8", "bra topk=16"}
    expected = mean_interval(rows.query("attention == 'swin' and height_px == 64")["acc1"])
    mean, half = map(float, acc1["swin"].split(" ± "))
    assert mean == pytest.approx(expected.mean, abs=0.05)
    assert half == pytest.approx(expected.high - expected.mean, rel=0.05)
    assert table["swin"][-1] == "3"


def test_a_failed_value_shows_its_status(rows):
    table = markdown_tables(export.to_markdown(rows))["topk: 128x128 px"]
    cells = dict(zip(table["configuration"], table["bra topk=16"], strict=True))
    assert cells["latency \\(ms\\)"] == "oom"
    assert cells["acc1 \\(%\\)"].startswith("**")


def test_nothing_is_bold_where_seeds_are_too_few(tmp_path):
    write_sample(tmp_path, seeds=1, sides=(64,))
    table = markdown_tables(export.to_markdown(described(load(tmp_path).query("status == 'ok'"))))["topk: all rows"]
    header = table.pop("configuration")
    bold = {name for cells in table.values() for name, cell in zip(header, cells, strict=True) if "**" in cell}
    assert bold == {"MACs \\(GMAC\\)", "parameters \\(millions\\)"}  # counts need no seeds


def test_intervals_of_all_groups_at_once_are_those_of_each(rows):
    found = ranking.mean_intervals(rows, ACCURACY, ["attention", "topk", "resolution"])
    assert len(found) == 8
    for (_, topk, resolution), interval in found.items():
        single = mean_interval(rows.loc[(rows["topk"] == topk) & (rows["resolution"] == resolution), "acc1"])
        assert (interval.mean, interval.low, interval.high, interval.n) == pytest.approx(
            (single.mean, single.low, single.high, single.n)
        )
    assert list(found.values()) == sorted(found.values(), key=lambda interval: -interval.mean)
    alone = ranking.mean_intervals(rows.query("seed == 0"), ACCURACY, ["attention", "resolution"])
    assert alone["swin", "64x64"] == Interval(alone["swin", "64x64"].mean, None, None, 1)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(97.123, 95.7, 98.546, 3), "97.1 ± 1.4"),
        (Interval(97.123, 97.1, 97.146, 3), "97.123 ± 0.023"),
        (Interval(1234.5, 1100.0, 1369.0, 3), "1234 ± 134"),
        (Interval(0.0123456, None, None, 1), "0.01235"),
        (Interval(2.0, 2.0, 2.0, 3), "2"),
    ],
    ids=["tenths", "thousandths", "hundreds", "one seed", "no spread"],
)
def test_values_are_written_to_the_digits_of_their_interval(interval, text):
    assert export.spell(interval) == text


def test_latex_is_escaped_and_balanced(rows):
    text = export.to_latex(rows.assign(study=HOSTILE, settings=HOSTILE.replace(";", "")))
    body = [line for line in text.splitlines() if line.endswith("\\\\") or "caption" in line]
    assert len(body) > 12
    assert not [line for line in body if re.search(r"(?<!\\)[#%_]|[<>|~]", line)]
    assert export.escape_latex("a_b & 50% #1 {x} ~^\\ [z]") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} {[}z]"
    )
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == len(ranking.groups(rows))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX: apt-get install texlive-latex-recommended")
def test_latex_compiles(tmp_path, rows):
    tables = export.to_latex(rows.assign(study=HOSTILE.replace("\x7f", ""), settings="[odd]"))
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + tables + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


def test_markdown_text_cannot_leave_its_cell():
    escaped = export.escape_markdown(HOSTILE + "\n")
    assert "\n" not in escaped
    assert "<" not in escaped
    assert " | " not in escaped.replace("\\|", "")


# --- timm


def test_timm_columns_are_those_of_its_benchmark(rows):
    lines = list(csv.DictReader(io.StringIO(export.to_timm(rows))))
    assert list(lines[0]) == ["model", *INFER, "infer_gmacs", *TRAIN, "param_count"]
    rates = [float(line["infer_samples_per_sec"]) for line in lines if line["infer_samples_per_sec"]]
    assert rates == sorted(rates, reverse=True)
    vanilla = next(line for line in lines if line["model"] == "zoo_small_vanilla" and line["infer_img_size"] == "64")
    latency = sum(values_of(Cell(attn="vanilla", seed=s))["throughput"]["infer_latency_ms"] for s in range(3)) / 3
    assert float(vanilla["infer_step_time"]) == pytest.approx(latency, abs=1e-3)
    assert float(vanilla["infer_samples_per_sec"]) == pytest.approx(64e3 / latency, abs=0.01)
    assert (vanilla["infer_batch_size"], vanilla["train_batch_size"], vanilla["param_count"]) == ("64", "64", "0.58")
    assert "zoo_small_bra.topk8" in {line["model"] for line in lines}


def test_timm_leaves_out_what_was_not_measured(rows):
    macs = rows.drop(columns=["infer_latency_ms", "train_step_ms"]).assign(infer_latency_ms=pd.NA, train_step_ms=pd.NA)
    header = export.to_timm(macs).splitlines()[0]
    assert header == "model,infer_img_size,infer_gmacs,param_count"


def test_timm_needs_something_to_show(tmp_path):
    open_store(tmp_path, create=True).add_cell(Cell())
    with pytest.raises(ValueError, match="throughput and MACs"):
        export.to_timm(read_rows(tmp_path))
