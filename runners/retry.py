"""Submit again what failed or was lost: `python runners/retry.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablations.values import Argument, choice
from runners.cli.command import add_flag, command
from runners.cli.options import add_slurm_flags, given
from runners.cli.program import run_program
from runners.cli.verbs import open_study, verb_parser
from runners.jobs.options import SlurmOptions, minutes
from runners.measures import CAN_RETRY, MEASURES, STATUSES
from runners.store.store import Store

if TYPE_CHECKING:
    from ablations.study import Cell
    from runners.jobs.launch import Order

EXAMPLES = """  python runners/retry.py topk
  python runners/retry.py topk --status timeout --time 8:00:00
  python runners/retry.py topk --status oom --mem 64G"""

DEFAULT = tuple(name for name in CAN_RETRY if STATUSES[name].may_pass)


@command("retry.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 when everything is submitted or there is nothing to do; 2 with one line for bad input."""
    description = "Submit what is not ok again, with the settings of its last submission; flags change them."
    parser = verb_parser("retry", description, EXAMPLES)
    status = f"what to run again, of {', '.join(CAN_RETRY)}"
    add_flag(parser, Argument("status", choice(*CAN_RETRY), "S", status, True, ",".join(DEFAULT)), DEFAULT)
    modules = "modules that may be imported, package.module:Class, of cells whose mechanism or data is one"
    add_flag(parser, Argument("attn", str, "A", modules, True), ())
    add_flag(parser, Argument("time", minutes, "MIN", "another limit per job, minutes or H:MM:SS"))
    add_slurm_flags(parser)
    options = parser.parse_args(argv)

    from runners.jobs import slurm

    store, _ = open_study(options)
    slurm.require()

    from runners.jobs.launch import launch
    from runners.jobs.outcomes import look
    from runners.jobs.progress import print_submission

    look(store)  # what the dead left becomes records, by which the orders are chosen
    asked = SlurmOptions(**given(options, SlurmOptions))
    orders = list(_orders(store, options.study, options.status, asked, options.time))
    known, left = _split(orders, options.attn)
    for name in sorted(left):
        text = f"cells of {name!r} stay as they are: only a file names this module; --attn {name} imports it"
        print(f"warning: {text}", file=sys.stderr)
    if not orders:
        print(f"nothing that was submitted from {store.out} ended as {', '.join(options.status)}")
    for order in known:
        print_submission(launch(store, order, print), order.study, store.out)
    return int(bool(left))


def _split(orders: "Sequence[Order]", allowed: Sequence[str]) -> "tuple[list[Order], set[str]]":
    """Orders without cells whose mechanism or data only a file names, for importing runs its code; and those names."""
    names = {name for order in orders for cell, _ in order.cells.values() for name in _modules(cell)}
    left = names - {*allowed}
    found = []
    for order in orders:
        cells = {key: (cell, measures) for key, (cell, measures) in order.cells.items() if not _modules(cell) & left}
        if cells:
            found.append(replace(order, cells=cells))
    return found, left


def _modules(cell: "Cell") -> set[str]:
    """Classes by their modules, `package.module:Class`, that running a cell imports."""
    from runners.data.image_specs import own_class

    return {name for name in (cell.attn, own_class(cell.data)) if name and ":" in name}


def _orders(
    store: Store, study: str | None, statuses: Sequence[str], asked: SlurmOptions, time_min: float | None
) -> "Iterator[Order]":
    """One order per study: its cells that have such a status, and all measures that were ever asked of them."""
    from runners.jobs import submissions
    from runners.jobs.launch import Order
    from runners.jobs.request import make_request
    from runners.jobs.submission import Submission
    from runners.table import load

    table = load(store.out)
    columns = table[["status", *(f"{measure}_status" for measure in MEASURES)]]
    chosen = set(table.loc[columns.isin(list(statuses)).any(axis=1), "cell_key"])
    latest: dict[str, Submission] = {}
    measures: dict[str, dict[str, dict[str, None]]] = {}
    for submission in submissions.read_all(store, study):
        latest[submission.study] = submission
        for key, names in submission.measures.items():
            measures.setdefault(submission.study, {}).setdefault(key, {}).update(dict.fromkeys(names))
    for name, last in latest.items():
        cells = {
            key: (cell, tuple(measure for measure in names if measure in MEASURES))
            for key, names in measures[name].items()
            if key in chosen and MEASURES.keys() & names.keys() and (cell := store.cell(key))
        }
        if cells:
            yield Order(
                study=name,
                cells=cells,
                request=make_request(asked, time_min, before=last.request),
                device=last.device,
                memory_limit_mib=last.memory_limit_mib,
                patience_s=last.patience_s,
                workers=last.workers,
                checkpoint_every_s=last.checkpoint_every_s,
                save_weights=last.save_weights,
                tensorboard=last.tensorboard,
                save_predictions=last.save_predictions,
                retry=tuple(statuses),
            )


if __name__ == "__main__":
    run_program(main)
