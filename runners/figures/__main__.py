"""Draw one figure into files: `python -m runners.figures KIND [--results DIR] [--out FILE]`."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.values import Argument, choice
from runners.cli.command import RESULTS, Parser, add_flag, command
from runners.cli.program import run_program
from runners.figures import CURVES, FIGURES, OF_ROWS, draw, save
from runners.figures.choices import ACCURACIES, FORMATS, SIZES, Refused, accuracy_file

if TYPE_CHECKING:
    from pandas import DataFrame


def read_command(argv: Sequence[str]) -> Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    kinds = [f"  {name:<13} {words}" for name, words in FIGURES.items()]
    parser = Parser("figures", "Draw one figure.", "\n".join(["figures:", *kinds]))
    parser.add_argument("figure", choices=FIGURES, metavar="KIND", help=f"one of {', '.join(FIGURES)}")
    add_flag(parser, Argument("out", Path, "FILE", "png, svg or pdf", default="results/<KIND>.png"))
    formats = f"of {', '.join(FORMATS)}: write these, and what --out ends in"
    add_flag(parser, Argument("format", choice(*FORMATS), "F", formats, several=True), ())
    results = "folder of a sweep, or a csv of its table"
    add_flag(parser, Argument("results", Path, "DIR", results, default=str(RESULTS)), RESULTS)
    add_flag(parser, Argument("attn", str, "NAME", "draw these mechanisms alone", several=True))
    names = "what to call mechanisms: bra=BiFormer"
    add_flag(parser, Argument("names", _name, "OLD=NEW", names, several=True), ())
    size = "; ".join(f"{name}: {size.width} inches wide" for name, size in SIZES.items())
    add_flag(parser, Argument("size", choice(*SIZES), "NAME", size, default="page"), "page")
    add_flag(parser, Argument("no_caption", help="leave out the lines below"))
    add_flag(parser, Argument("accuracy", accuracy_file, "WHICH", f"of pareto: {ACCURACIES}", default="measured"))
    add_flag(parser, Argument("device_id", str, "ID", "draw the rows of this device alone (column device_id)"))
    add_flag(parser, Argument("by_device", help="draw the rows of each device apart"))
    options = parser.parse_args(argv)
    options.out = options.out or Path("results") / (options.figure if options.format else f"{options.figure}.png")
    endings = [f".{name}" for name in FORMATS]
    if options.out.suffix not in endings and (options.out.suffix or not options.format or not options.out.name):
        parser.error(f"cannot write --out {options.out}: its name must end in {', '.join(endings)}")
    return options


def _name(text: str) -> tuple[str, str]:
    old, _, new = (part.strip() for part in text.partition("="))
    if not old or not new:
        raise ValueError(f"{text!r} is not OLD=NEW, such as bra=BiFormer")
    return old, new


@command("figures")
def main(argv: Sequence[str]) -> int:
    """Draw one figure and write it; 0, or 2 with one line if that cannot be done."""
    options = read_command(argv)
    published = read_accuracies(options.accuracy)
    try:
        table = read_table(options) if options.figure in OF_ROWS else None
        figure = draw(
            options.figure,
            table,
            by_device=options.by_device,
            attn=options.attn,
            names=dict(options.names),
            size=options.size,
            caption=not options.no_caption,
            published=published,
        )
    except Refused as error:
        raise ValueError(f"--{error}") from error
    except ValueError as error:
        raise ValueError(f"{options.results}: {error}" if options.figure in OF_ROWS else str(error)) from error
    try:
        files = save(figure, options.out, options.format)
    except OSError as error:
        raise ValueError(f"cannot write {error.filename or options.out}: {error.strerror}") from error
    print(*files, sep="\n")
    if table is not None and published is not None and options.no_caption:
        print_gaps(table, published)
    return 0


def read_accuracies(file: Path | None) -> "DataFrame | None":
    """Read published accuracies; None of no file.

    Raises:
        ValueError: from `read_published`.
    """
    if file is None:
        return None

    from runners.rows.published import read_published

    return read_published(file)


def print_gaps(table: "DataFrame", published: "DataFrame") -> None:
    """Say on the screen what the caption would: which rows have no published accuracy."""
    from runners.figures.published import gaps
    from runners.rows.published import with_published

    if said := gaps(with_published(table, published)):
        print(f"not drawn: {said}", file=sys.stderr)


def read_table(options: Namespace) -> "DataFrame":
    """Read the rows to draw.

    Raises:
        ValueError: from `read_rows`, or there is no row of the device.
    """
    from runners.rows.curves import with_curves
    from runners.rows.selection import read_rows

    rows = read_rows(options.results)
    if options.figure in CURVES:
        rows = with_curves(rows, options.results)
    if options.device_id is None:
        return rows
    of_device: DataFrame = rows[rows["device_id"] == options.device_id]
    if of_device.empty:
        known = ", ".join(sorted(rows["device_id"].dropna().unique()))
        raise ValueError(f"--device-id {options.device_id}: no such device in the table; it has: {known}")
    return of_device


if __name__ == "__main__":
    run_program(main)
