"""Plan a sweep, run its cells or hand them to SLURM, and print the table: `python runners/sweep.py --help`."""

import os
import sys

if __name__ == "__main__":
    # not the script's own folder, which would offer runners/table.py as `table`, but where the user's modules are
    sys.path[0] = os.getcwd()

import dataclasses
import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ablations import Axes, Study, cell_key, load_study, study_names
from runners.cli.options import read_command
from runners.measures import MEASURES

if TYPE_CHECKING:
    from runners.cells.plan import Plan
    from runners.store.store import Store

NARROW = ("topk", "regions", "region_size")
"""Settings with a flag of their own; every other one is reached by --set."""


def fail(message: object) -> NoReturn:
    """End the process with code 2 and one line."""
    print(f"sweep.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def axes_of(options: Namespace, study: Study | None) -> list[Axes]:
    """Axes of the command line, or those of a study with what the command line gives in their place."""
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Axes)
        if field.name != "settings" and getattr(options, field.name)
    }
    settings = {name: getattr(options, name) for name in NARROW if getattr(options, name)}
    settings.update(dict(options.settings or ()))
    if options.clip_topk:
        settings["clip_topk"] = ("on",)
    return [
        dataclasses.replace(axes, **given, settings=tuple({**dict(axes.settings), **settings}.items()))
        for axes in (study.axes if study else (Axes(),))
    ]


def print_studies() -> None:
    """Print every declared study with its question."""
    for name in study_names():
        study = load_study(name)
        print(f"{name}\n  question: {study.question}\n  expected: {study.expectation}")


def submit(plan: "Plan", store: "Store", measures: tuple[str, ...], study: Study | None, options: Namespace) -> int:
    """Hand the missing cells to SLURM and say what to type next.

    Raises:
        ValueError: anything for which nothing was submitted.
    """
    from runners.cli.screen import print_submission
    from runners.jobs.launch import Order, launch
    from runners.jobs.request import make_request, study_name

    cells = {cell_key(cell): (cell, measures) for cell in plan.cells}
    order = Order(
        study=study_name(options.name or (study.name if study else None), cells, measures),
        cells=cells,
        request=make_request(options, study.slurm if study else ()),
        device=options.device,
        memory_limit_mib=options.memory_limit,
        save_weights=options.save_weights,
        retry=options.retry,
        force=options.force,
    )
    print_submission(launch(store, order, print), order.study, store.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every cell is done or submitted, 1 if some failed, 2 for bad input, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = read_command(arguments)
    if options.study == "list":
        print_studies()
        return 0
    try:
        study = load_study(options.study) if options.study else None
    except ValueError as error:
        fail(f"--study: {error}")
    measures = options.measure or (study.measures if study else MEASURES)
    measures = tuple(measure for measure in MEASURES if measure in measures)

    if options.save_weights and "accuracy" not in measures:
        fail(f"--save-weights: nothing is trained for --measure {','.join(measures)}; add accuracy")

    # torch takes seconds to import; nothing above this line needs it
    from runners.cells.plan import make_plan
    from runners.machine.environment import check_device, pick_device
    from runners.store.store import open_store

    try:
        plan = make_plan(axes_of(options, study))
        check_device(options.device)
        if options.cluster != "slurm":  # there the nodes decide
            pick_device(options.device)
        if options.dry_run:
            from runners.cli.screen import print_plan

            print_plan(plan, measures)
            return 0
        store = open_store(options.out, create=True)
        if options.save_weights and not options.force:
            from runners.cli.screen import print_unkept

            print_unkept(store, plan)
        if options.cluster == "slurm":
            return submit(plan, store, measures, study, options)
    except ValueError as error:
        fail(error)

    from runners.cli.screen import print_results
    from runners.jobs.local import Sweep

    sweep = Sweep(plan, store, measures, study.name if study else None, options)
    code = 0
    try:
        sweep.run()
    except KeyboardInterrupt:
        code = 130
    except ValueError as error:
        fail(error)
    complete = sweep.is_complete()
    print_results(store, plan)
    if not complete:
        again = shlex.join(argument for argument in arguments if argument != "--force")
        print(f"not complete; go on with: python runners/sweep.py {again}")
    return code or int(not complete)


if __name__ == "__main__":
    raise SystemExit(main())
