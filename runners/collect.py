"""Write the table of a results folder as it is now: `python runners/collect.py --help`."""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.getcwd()

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runners.cli.verbs import cells_of, run_verb, try_look, verb_parser
from runners.jobs.progress import count

EXAMPLES = """  python runners/collect.py topk
  python runners/collect.py --out results/runs --table night.parquet"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the table is written.

    Raises:
        ValueError: no results there, an unknown study, or a table that cannot be written.
    """
    parser = verb_parser("collect", "Write the table so far, at any time; jobs may be running.", EXAMPLES)
    parser.add_argument(
        "--table", metavar="FILE", type=Path, help="file to write, .csv or .parquet (default: table.csv in --out)"
    )
    options = parser.parse_args(argv)
    path = options.table or options.out / "table.csv"
    if path.suffix not in (".csv", ".parquet"):
        parser.error(f"--table {path}: a table is .csv or .parquet")

    from runners.store.store import open_store
    from runners.table import load, save

    store = open_store(options.out, create=False)
    keys = cells_of(store, options.study)
    _, problem = try_look(store)
    if problem:
        print(problem, file=sys.stderr)
    table = load(store.out)
    table = table[table["cell_key"].isin(keys)]
    try:
        save(table, path)
    except ImportError as error:
        raise ValueError(
            f"--table {path}: parquet needs pyarrow (pip install -e '.[parquet]'); or give a .csv"
        ) from error
    counts = Counter(table["status"])
    found = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    print(f"{count(len(table), 'row')} in {path}: {found}")
    return 0


if __name__ == "__main__":
    run_verb("collect", main)
