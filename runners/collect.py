"""Write the table of a results folder as it is now: `python runners/collect.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ablations.values import Argument
from runners.cli.command import add_flag, command
from runners.cli.program import run_program
from runners.cli.verbs import open_study, try_look, verb_parser
from runners.jobs.progress import count

EXAMPLES = """  python runners/collect.py topk
  python runners/collect.py --out results/runs --table night.parquet"""


@command("collect.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 when the table is written; 2 with one line for bad input."""
    parser = verb_parser("collect", "Write the table so far, at any time; jobs may be running.", EXAMPLES)
    add_flag(parser, Argument("table", Path, "FILE", "file to write, .csv or .parquet", default="table.csv in --out"))
    options = parser.parse_args(argv)
    path = options.table or options.out / "table.csv"
    if path.suffix not in (".csv", ".parquet"):
        parser.error(f"--table {path}: a table is .csv or .parquet")

    from runners.table import load, save

    store, keys = open_study(options)
    _, problem = try_look(store)
    if problem:
        print(problem, file=sys.stderr)
    table = load(store.out)
    table = table[table["cell_key"].isin(keys)]
    try:
        save(table, path)
    except ImportError as error:
        needed = "parquet needs pyarrow (pip install -e '.[parquet]'); or give a .csv"
        raise ValueError(f"--table {path}: {needed}") from error
    counts = ", ".join(f"{number} {status}" for status, number in Counter(table["status"]).most_common())
    print(f"{count(len(table), 'row')} in {path}: {counts}")
    return 0


if __name__ == "__main__":
    run_program(main)
