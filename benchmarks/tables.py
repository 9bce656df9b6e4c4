"""Measurements as tables: on the screen, and in Markdown beside the saved file."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table

from benchmarks.claims import Measured, Row, judge
from benchmarks.scaling import slopes

HEADER = ("work", "subject", "beside", "median", "quartiles", "n", "wanted", "verdict")

TITLES = {
    "anchors": "Anchors: times as fast as a public model, and as the paper's own steps",
    "memory": "Peak memory as a share of that of the paper's own steps",
    "twins": "Times as fast as the same computation in timm, freed memory kept",
    "compiled": "Times as fast by torch.compile as without, freed memory kept",
    "floor": "Time as a multiple of that of the same matrix products and convolutions alone, freed memory kept",
    "scaling": "Exponent of a module's time over tokens, from 56x56 on, and its 50 % interval, freed memory kept",
    "harness": "Seconds of the harness around a measurement",
}


def rows_of(measured: Iterable[Measured]) -> dict[str, list[Row]]:
    """Judge what was measured, section by section."""
    found = {}
    for section, group in groupby(measured, key=lambda one: one.section):
        members = list(group)
        found[section] = [row for one in members for row in judge(one)] + slopes(members)
    return found


def cells(row: Row) -> tuple[str, ...]:
    """Write a row as text."""
    s = row.spread
    numbers = ("", "", "") if s is None else (f"{s.median:.3g}", f"{s.q25:.3g} to {s.q75:.3g}", str(s.n))
    return row.work, row.subject, row.against, *numbers, row.wanted, row.verdict


def screen_table(section: str, rows: Sequence[Row]) -> Table:
    """Make a table for the terminal."""
    table = Table(title=TITLES[section], title_justify="left")
    for name in HEADER:
        table.add_column(name, justify="right" if name in ("median", "n") else "left")
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(sections: dict[str, list[Row]], machines: Iterable[str]) -> str:
    """Write all tables, and where the numbers come from, in Markdown."""
    lines = ["# Benchmark report", "", *(f"- {machine}" for machine in machines)]
    for section, rows in sections.items():
        lines += ["", f"## {TITLES[section]}", "", _line(HEADER), _line("---" for _ in HEADER)]
        lines += [_line(cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
