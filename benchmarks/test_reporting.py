"""Building the report of 10,000 rows: `pytest benchmarks --benchmark-enable -k reporting`."""

from pathlib import Path

import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from runners.reporting.page import to_html
from runners.rows.selection import read_rows

ROWS = 10_000
(SAMPLE,) = (Path(__file__).resolve().parents[1] / "results").glob("sample_*.csv")


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """A table of that size: a committed one again and again, trained for other numbers of steps."""
    sample = pd.read_csv(SAMPLE)
    copies = range(-(-ROWS // len(sample)))
    parts = [sample.assign(steps=400 + copy, cell_key=sample["cell_key"] + str(copy)) for copy in copies]
    pd.concat(parts).head(ROWS).to_csv(tmp_path / "many.csv", index=False)
    return read_rows(tmp_path / "many.csv")


def test_page(benchmark: BenchmarkFixture, rows: pd.DataFrame) -> None:
    if benchmark.disabled:
        pytest.skip("10,000 rows are for --benchmark-enable")
    text = benchmark.pedantic(to_html, (rows, "many.csv"), rounds=3)  # type: ignore[no-untyped-call]
    benchmark.extra_info["megabytes"] = len(text) / 1e6
