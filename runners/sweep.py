"""Plan a sweep, run its cells or hand them to SLURM, and print the table: `python runners/sweep.py --help`."""

import sys

if __name__ == "__main__":
    # not the script's own folder, which would offer runners/table.py as `table`, but where the user's modules are
    sys.path[0] = ""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablations import Study, load_study, study_names
from ablations.study import ARGUMENTS
from runners.cli.command import command
from runners.cli.options import SETTINGS, given, read_command
from runners.cli.program import run_program
from runners.jobs.options import RunOptions

if TYPE_CHECKING:
    from runners.jobs.sweep import Sweep
    from runners.store.store import Store


def print_studies() -> None:
    """Print every declared study with its question."""
    for name in study_names():
        study = load_study(name)
        print(f"{name}\n  question: {study.question}\n  expected: {study.expectation}")


def make_sweep(options: Namespace, study: Study | None = None) -> "Sweep":
    """Plan what a command line asks for; what it gives takes the place of what the study says.

    Raises:
        ValueError: a value is unknown or does not fit; the message names flag, value and what is allowed.
    """
    # torch takes seconds to import; nothing before this line needs it
    from runners.cells.plan import as_flag
    from runners.jobs.sweep import Sweep

    names = [*ARGUMENTS, *(setting.name for setting in SETTINGS)]
    values = {name: value for name in names if (value := getattr(options, name))}
    return Sweep(study=study, measures=options.measure, spell=as_flag, **values, **dict(options.set or ()))


def run_here(sweep: "Sweep", store: "Store", options: RunOptions, arguments: Sequence[str]) -> int:
    """Run what is missing, print the rows, and say how to go on where some are not complete."""
    from runners.cli.screen import print_results

    run, code = sweep.local(store, options), 0
    try:
        run.run()
    except KeyboardInterrupt:
        code = 130
    complete = run.is_complete()
    print_results(store.out, sweep.rows(store), sweep.plan.cells)
    if not complete:
        again = shlex.join(argument for argument in arguments if argument != "--force")
        print(f"not complete; go on with: python runners/sweep.py {again}")
    return code or int(not complete)


@command("sweep.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 if every cell is done or submitted, 1 if some failed, 2 for bad input, 130 for Ctrl-C."""
    asked = read_command(argv)
    if asked.study == "list":
        print_studies()
        return 0
    try:
        study = load_study(asked.study) if asked.study else None
    except ValueError as error:
        raise ValueError(f"--study: {error}") from error
    options = RunOptions(**given(asked, RunOptions))
    sweep = make_sweep(asked, study)
    from runners.cli.screen import print_plan, print_unkept
    from runners.jobs.progress import print_submission

    sweep.check(options)
    if asked.dry_run:
        print_plan(sweep.plan, sweep.measures)
        return 0
    store = sweep.open(asked.out, options)
    if not options.force:
        kept = {"weights": options.save_weights, "predictions": options.save_predictions}
        for prefix in (prefix for prefix, is_wanted in kept.items() if is_wanted):
            print_unkept(store, sweep.plan, prefix)
    if options.cluster == "slurm":
        outcome, name = sweep.submit(store, options)
        print_submission(outcome, name, store.out)
        return 0
    return run_here(sweep, store, options, argv)


if __name__ == "__main__":
    run_program(main)
