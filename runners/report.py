"""Write what a sweep found: an HTML page for a browser, or a table for a paper: `python runners/report.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.values import Argument
from runners.cli.command import RESULTS, Parser, add_flag, command
from runners.cli.program import run_program
from runners.figures.choices import ACCURACIES, accuracy_file
from runners.measures import MARGIN
from runners.store.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("html", "markdown", "latex", "timm", "csv")
COMPARING = ("html", "markdown", "latex")

EXAMPLES = """examples:
  python runners/report.py --out report.html
  python runners/report.py --study topk --format latex
  python runners/report.py --results results/table.csv --format timm --out benchmark.csv"""


def read_command(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    parser = Parser("report.py", "Write what a sweep found as one HTML page, or as a table.", EXAMPLES)
    results = "results folder, or a table saved as CSV"
    add_flag(parser, Argument("results", Path, "PATH", results, default=str(RESULTS)), RESULTS)
    add_flag(parser, Argument("study", str, "NAME", "rows of this study alone"))
    timm = "timm: the columns of its benchmark.py (default: html)"
    parser.add_argument("--format", choices=FORMATS, default="html", help=timm)
    add_flag(parser, Argument("out", Path, "FILE", "default: report.html; other formats: standard output"))
    add_flag(parser, Argument("mixed_devices", help="take rows of several devices, and keep them apart"))
    margin = (
        "points of acc1, miou or ap within which accuracies are called equal, if the 95 %% interval of their gap is"
    )
    add_flag(parser, Argument("margin", points, "POINTS", margin, default=str(MARGIN)), MARGIN)
    accuracies = f"html: draw also the front of accuracies that are {ACCURACIES}"
    add_flag(parser, Argument("accuracy", accuracy_file, "WHICH", accuracies, default="measured"))
    options = parser.parse_args(argv)
    if options.accuracy and options.format != "html":
        parser.error(f"--accuracy is for a figure of the html page; --format {options.format} has none")
    if options.out is None and options.format == "html":
        options.out = Path("report.html")
    return options


def points(text: str) -> float:
    """Read a margin in percentage points.

    Raises:
        ValueError: not a number above 0 and up to 100.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise ValueError(f"{text!r} is not a number of points above 0 and up to 100, such as {MARGIN}")
    return value


def check_writable(path: Path) -> None:
    """Make sure that a file can be written, and leave an older one alone.

    Raises:
        ValueError: a folder has its name, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"--out {path} cannot be written: {error.strerror or error}") from error


def write(options: argparse.Namespace) -> str:
    """Return the report that the command line asks for.

    Raises:
        ValueError: rows that cannot be read or shown; the message says what would do.
    """
    from runners.reporting import export
    from runners.reporting.page import to_html
    from runners.reporting.predictions import read_predictions
    from runners.rows import selection
    from runners.rows.curves import with_curves
    from runners.rows.published import read_published

    published = read_published(options.accuracy) if options.accuracy else None
    rows = selection.read_rows(options.results, options.study)
    selection.check_devices(rows, options.mixed_devices)
    if options.format in COMPARING:
        selection.check_comparable(rows)
    if options.format == "html":
        seen = read_predictions(rows, options.results)
        rows = with_curves(rows, options.results)
        where, study = str(options.results), options.study
        return to_html(rows, where, study, margin=options.margin, published=published, predictions=seen)
    writers: dict[str, Callable[[pd.DataFrame], str]] = {
        "markdown": export.to_markdown,
        "latex": export.to_latex,
        "timm": export.to_timm,
        "csv": export.to_csv,
    }
    return writers[options.format](rows)


@command("report.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0, or 2 with one line for bad input."""
    options = read_command(argv)
    if not options.out:
        sys.stdout.write(write(options))
        return 0
    check_writable(options.out)
    write_whole(options.out, write(options))
    print(options.out)
    return 0


if __name__ == "__main__":
    run_program(main)
