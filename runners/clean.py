"""Remove what jobs that have ended leave behind: `python runners/clean.py --help`."""

import contextlib
import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

from collections.abc import Iterator, Sequence
from pathlib import Path

from runners.cli.command import command
from runners.cli.program import run_program
from runners.cli.verbs import open_study, verb_parser
from runners.jobs.progress import count
from runners.measures import DONE
from runners.store.store import Store

EXAMPLES = """  python runners/clean.py topk --dry-run
  python runners/clean.py"""


@command("clean.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 when everything is removed; 2 with one line for bad input."""
    description = "Remove logs, pickles, scripts and saved states of cells that are done; records and what failed stay."
    parser = verb_parser("clean", description, EXAMPLES)
    parser.add_argument("--dry-run", action="store_true", help="name the files, remove nothing")
    options = parser.parse_args(argv)

    from runners.jobs import submissions
    from runners.store.files import remove
    from runners.store.names import visible

    store, keys = open_study(options)
    for file in submissions.foreign(store):
        print(f"warning: {file} cannot be read as a submission of this folder; its files stay", file=sys.stderr)
    files = sorted(_removable(store, keys, options.study))
    for file in files:
        if options.dry_run:
            print(visible(str(file)))
        else:
            remove(file, root=store.out)
    print(f"{'would remove' if options.dry_run else 'removed'} {count(len(files), 'file')} of jobs")
    return 0


def _removable(store: Store, keys: Sequence[str], study: str | None) -> Iterator[Path]:
    """Logs, pickles and scripts of arrays all of whose cells are done and whose jobs have ended, and local ones.

    A process that was killed between a record and the end leaves saved states of a cell that is done.
    """
    from runners.jobs import submissions
    from runners.jobs.outcomes import look
    from runners.store.files import StoreError, is_file_or_link, list_names
    from runners.store.states import states
    from runners.table import load

    table = load(store.out)
    open_cells = set(table.loc[~table["status"].isin(DONE), "cell_key"])
    for submission in look(store).submissions:
        mine = study in (None, submission.study)
        if mine and not submissions.unsettled(store, submission) and not open_cells & submission.measures.keys():
            yield from submissions.leftovers(store, submission)
    for key in keys:
        if key not in open_cells and store.holder(key) is None:
            with contextlib.suppress(StoreError):  # behind a link, or just being made
                logs = store.log_folder(key)
                yield from (logs / name for name in list_names(str(logs)) if is_file_or_link(logs / name))
                yield from filter(is_file_or_link, states(store, key))


if __name__ == "__main__":
    run_program(main)
