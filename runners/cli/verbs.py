"""What status, collect, retry, cancel and clean share: their command line, and the study they are about."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from runners.cli.options import Parser, add_results_folder
from runners.cli.program import run_program
from runners.store.names import visible

if TYPE_CHECKING:
    from runners.jobs.outcomes import Look
    from runners.store.store import Store


def verb_parser(name: str, description: str, examples: str) -> Parser:
    """Declare a verb with the study and the results folder it is about."""
    parser = Parser(
        prog=f"{name}.py",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", help="name that the sweep gave (default: the whole folder)"
    )
    add_results_folder(parser)
    return parser


def run_verb(name: str, main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a verb as a program: 2 and one line for bad input, 130 after Ctrl-C."""

    def run() -> int:
        try:
            return main(None)
        except ValueError as error:
            print(f"{name}.py: error: {visible(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    run_program(run)


def cells_of(store: "Store", study: str | None) -> list[str]:
    """Keys of the cells of a study, of all where it is None.

    Raises:
        ValueError: no cell belongs to it; the known studies are listed.
    """
    if store.is_linked:
        print(f"warning: {store.out / 'cells'} is a link, which is not followed: no cells", file=sys.stderr)
    keys = store.cell_keys()
    if study is None:
        return keys
    studies = {key: store.studies(key) for key in keys}
    found = [key for key in keys if study in studies[key]]
    if not found:
        known = sorted({name for names in studies.values() for name in names})
        listed = f"there are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"no study {study!r} in {store.out}; {listed}")
    return found


def try_look(store: "Store") -> "tuple[Look, str | None]":
    """Look after the jobs; where SLURM does not answer go by the disk alone, and say so."""
    from runners.jobs import submissions
    from runners.jobs.outcomes import Look, look
    from runners.jobs.slurm import SlurmError

    try:
        return look(store), None
    except SlurmError as error:
        return Look(submissions.read_all(store)), f"SLURM does not answer ({error}); this is what the disk says"
