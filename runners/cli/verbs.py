"""What status, collect, retry, cancel and clean share: their command line, and the study they are about."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from runners.cli.command import Parser, add_results_folder
from runners.store.store import Store, open_store

if TYPE_CHECKING:
    from runners.jobs.outcomes import Look


def verb_parser(name: str, description: str, examples: str) -> Parser:
    """Declare a verb with the study and the results folder it is about."""
    parser = Parser(f"{name}.py", description, f"examples:\n{examples}")
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", help="name that the sweep gave (default: the whole folder)"
    )
    add_results_folder(parser)
    return parser


def open_study(options: Namespace) -> tuple[Store, list[str]]:
    """Open the results folder that a verb is about; the keys of the cells of its study, of all if none is named.

    Raises:
        ValueError: no results there, or no cell belongs to the study; the known studies are listed.
    """
    store, study = open_store(options.out, create=False), options.study
    if store.is_linked:
        print(f"warning: {store.out / 'cells'} is a link, which is not followed: no cells", file=sys.stderr)
    keys = store.cell_keys()
    if study is None:
        return store, keys
    studies = {key: store.studies(key) for key in keys}
    chosen = [key for key in keys if study in studies[key]]
    if not chosen:
        known = sorted({name for names in studies.values() for name in names})
        listed = f"there are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"no study {study!r} in {store.out}; {listed}")
    return store, chosen


def try_look(store: Store) -> "tuple[Look, str | None]":
    """Look after the jobs; where SLURM does not answer go by the disk alone, and say so."""
    from runners.jobs import submissions
    from runners.jobs.outcomes import Look, look
    from runners.jobs.slurm import SlurmError

    try:
        return look(store), None
    except SlurmError as error:
        return Look(submissions.read_all(store)), f"SLURM does not answer ({error}); this is what the disk says"
