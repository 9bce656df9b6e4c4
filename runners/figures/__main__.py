"""Draw one figure into a file: `python -m runners.figures KIND [--results DIR] [--out FILE]`."""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from runners.cli.options import Parser
from runners.cli.program import run_program
from runners.figures import FIGURES, KINDS, draw

FORMATS = (".png", ".svg", ".pdf")
DPI = 160


def read_command(argv: Sequence[str]) -> Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    parser = Parser(
        prog="figures",
        description="Draw one figure.",
        epilog="\n".join(["figures:", *(f"  {name:<13} {words}" for name, words in FIGURES.items())]),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("figure", choices=FIGURES, metavar="KIND", help=f"one of {', '.join(FIGURES)}")
    parser.add_argument("--out", metavar="FILE", type=Path, help="png, svg or pdf (default: results/<KIND>.png)")
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=Path("results/runs"),
        help="folder of a sweep, or a csv of its table (default: results/runs)",
    )
    parser.add_argument("--device-id", metavar="ID", help="draw the rows of this device alone (column device_id)")
    parser.add_argument("--by-device", action="store_true", help="draw the rows of each device apart")
    options = parser.parse_args(argv)
    options.out = options.out or Path("results") / f"{options.figure}.png"
    if options.out.suffix not in FORMATS:
        parser.error(f"cannot write --out {options.out}: its name must end in {', '.join(FORMATS)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure and write it; 0, or 2 with one line if that cannot be done."""
    options = read_command(sys.argv[1:] if argv is None else argv)
    try:
        frame = None
        if options.figure in KINDS:
            from runners.rows.selection import read_rows

            frame = read_rows(options.results)
            if options.device_id is not None:
                known = ", ".join(sorted(frame["device_id"].dropna().unique()))
                frame = frame[frame["device_id"] == options.device_id]
                if frame.empty:
                    raise ValueError(f"--device-id {options.device_id}: no such device in the table; it has: {known}")
        figure = draw(options.figure, frame, by_device=options.by_device)
    except ValueError as error:
        return _fail(f"{options.results}: {error}" if options.figure in KINDS else str(error))
    try:
        figure.savefig(options.out, dpi=DPI)
    except OSError as error:
        return _fail(f"cannot write {options.out}: {error.strerror}")
    print(options.out)
    return 0


def _fail(message: str) -> int:
    print(f"figures: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run_program(main)
