"""The committed measurements hold what the documents say of them."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
(PROBE,) = (ROOT / "results").glob("digit_vote_cpu-*.csv")
(JITTER,) = (ROOT / "results").glob("digit_vote_jitter_*.csv")


def rows(path: Path = PROBE) -> pd.DataFrame:
    table = pd.read_csv(path)
    return table.assign(name=table["attention"] + table["topk"].map(lambda k: "" if pd.isna(k) else f" {k:.0f}"))


def test_every_cell_was_measured_with_three_seeds() -> None:
    table = rows()
    assert set(table["status"]) == {"ok"}
    assert table.groupby("name")["seed"].agg(set).map(lambda seeds: seeds == {0, 1, 2}).all()


def test_the_page_about_probes_shows_that_table() -> None:
    page = (ROOT / "docs" / "probes.md").read_text()
    shown = re.findall(r"^\| `(\w+)`,? ?(?:top-k (\d+))? \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", page, re.MULTILINE)
    found = {f"{name} {topk}".strip(): tuple(map(float, figures)) for name, topk, *figures in shown}
    expected = rows().groupby("name")["acc1"].agg(["mean", "min", "max"])
    assert set(found) == set(expected.index)
    for name, figures in found.items():
        assert figures == pytest.approx(tuple(expected.loc[name]), abs=0.051)


def test_the_page_about_probes_shows_the_table_of_the_longer_run() -> None:
    acc1 = rows(JITTER).set_index("name")["acc1"]
    page = (ROOT / "docs" / "probes.md").read_text()
    shown = re.findall(r"^\| `(\w+)`,? ?(?:top-k (\d+))? \| ([\d.]+) \|$", page, re.MULTILINE)
    found = {f"{name} {topk}".strip(): float(figure) for name, topk, figure in shown}
    assert found == {name: pytest.approx(value, abs=0.051) for name, value in acc1.items()}


def test_the_jitter_study_is_what_was_measured() -> None:
    from ablations.digit_vote_jitter import STUDY

    (steps,) = set(rows(JITTER)["steps"])
    assert all(axes.steps == (steps,) for axes in STUDY.axes)
    assert set(rows(JITTER)["data"]) == {"digit-vote:jitter=3"}
