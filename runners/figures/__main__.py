"""Draw one figure into a file: `python -m runners.figures KIND [--results DIR] [--out FILE]`."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.values import Argument
from runners.cli.command import RESULTS, Parser, add_flag, command
from runners.cli.program import run_program
from runners.figures import FIGURES, KINDS, draw

if TYPE_CHECKING:
    from pandas import DataFrame

FORMATS = (".png", ".svg", ".pdf")
DPI = 160


def read_command(argv: Sequence[str]) -> Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    kinds = [f"  {name:<13} {words}" for name, words in FIGURES.items()]
    parser = Parser("figures", "Draw one figure.", "\n".join(["figures:", *kinds]))
    parser.add_argument("figure", choices=FIGURES, metavar="KIND", help=f"one of {', '.join(FIGURES)}")
    add_flag(parser, Argument("out", Path, "FILE", "png, svg or pdf", default="results/<KIND>.png"))
    results = "folder of a sweep, or a csv of its table"
    add_flag(parser, Argument("results", Path, "DIR", results, default=str(RESULTS)), RESULTS)
    add_flag(parser, Argument("device_id", str, "ID", "draw the rows of this device alone (column device_id)"))
    add_flag(parser, Argument("by_device", help="draw the rows of each device apart"))
    options = parser.parse_args(argv)
    options.out = options.out or Path("results") / f"{options.figure}.png"
    if options.out.suffix not in FORMATS:
        parser.error(f"cannot write --out {options.out}: its name must end in {', '.join(FORMATS)}")
    return options


@command("figures")
def main(argv: Sequence[str]) -> int:
    """Draw one figure and write it; 0, or 2 with one line if that cannot be done."""
    options = read_command(argv)
    if options.figure not in KINDS:
        figure = draw(options.figure)
    else:
        try:
            figure = draw(options.figure, read_table(options), by_device=options.by_device)
        except ValueError as error:
            raise ValueError(f"{options.results}: {error}") from error
    try:
        figure.savefig(options.out, dpi=DPI)
    except OSError as error:
        raise ValueError(f"cannot write {options.out}: {error.strerror}") from error
    print(options.out)
    return 0


def read_table(options: Namespace) -> "DataFrame":
    """Read the rows to draw.

    Raises:
        ValueError: from `read_rows`, or there is no row of the device.
    """
    from runners.rows.selection import read_rows

    rows = read_rows(options.results)
    if options.device_id is None:
        return rows
    of_device: DataFrame = rows[rows["device_id"] == options.device_id]
    if of_device.empty:
        known = ", ".join(sorted(rows["device_id"].dropna().unique()))
        raise ValueError(f"--device-id {options.device_id}: no such device in the table; it has: {known}")
    return of_device


if __name__ == "__main__":
    run_program(main)
