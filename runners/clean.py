"""Remove what jobs that have ended leave behind: `python runners/clean.py --help`."""

import contextlib
import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runners.cli.verbs import cells_of, run_verb, verb_parser
from runners.jobs.progress import count
from runners.measures import DONE

if TYPE_CHECKING:
    from runners.store.store import Store

EXAMPLES = """  python runners/clean.py topk --dry-run
  python runners/clean.py"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when everything is removed.

    Raises:
        ValueError: no results there, an unknown study, or SLURM does not answer.
    """
    parser = verb_parser(
        "clean",
        "Remove logs, pickles and scripts of jobs whose cells are done; records and what failed stay.",
        EXAMPLES,
    )
    parser.add_argument("--dry-run", action="store_true", help="name the files, remove nothing")
    options = parser.parse_args(argv)

    from runners.jobs import submissions
    from runners.store.files import remove
    from runners.store.names import visible
    from runners.store.store import open_store

    store = open_store(options.out, create=False)
    for file in submissions.foreign(store):
        print(f"warning: {file} cannot be read as a submission of this folder; its files stay", file=sys.stderr)
    files = sorted(_removable(store, options.study))
    for file in files:
        if options.dry_run:
            print(visible(str(file)))
        else:
            remove(file, root=store.out)
    print(f"{'would remove' if options.dry_run else 'removed'} {count(len(files), 'file')} of jobs")
    return 0


def _removable(store: "Store", study: str | None) -> Iterator[Path]:
    """Logs, pickles and scripts of arrays all of whose cells are done and whose jobs have ended, and local ones."""
    from runners.jobs import submissions
    from runners.jobs.outcomes import look
    from runners.store.files import StoreError, is_file_or_link, list_names
    from runners.table import load

    keys = cells_of(store, study)
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


if __name__ == "__main__":
    run_verb("clean", main)
