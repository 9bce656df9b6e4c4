"""End the jobs of a study: `python runners/cancel.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

from collections.abc import Sequence

from runners.cli.command import command
from runners.cli.program import run_program
from runners.cli.verbs import open_study, verb_parser
from runners.jobs.progress import count

EXAMPLES = """  python runners/cancel.py topk
  python runners/cancel.py topk --pending     jobs that run go on"""


@command("cancel.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 when the jobs were told to end; 2 with one line for bad input."""
    description = "End sweeps of this machine, and jobs that wait or run; what they recorded stays."
    parser = verb_parser("cancel", description, EXAMPLES)
    parser.add_argument("--pending", action="store_true", help="only jobs that wait")
    options = parser.parse_args(argv)

    from runners.jobs import local_sweeps, slurm, submissions
    from runners.jobs.outcomes import look
    from runners.store.files import StoreError
    from runners.store.store import open_store

    store = open_store(options.out, create=False)
    sweeps = [] if options.pending else local_sweeps.alive(store, options.study)
    if not sweeps:
        open_study(options)
    for sweep in sweeps:
        what = f"sweep of pid {sweep.pid} on {sweep.host}"
        print(f"ended the {what}" if local_sweeps.end(sweep) else f"the {what} is not ours to end; end it there")
    jobs = look(store).jobs(options.study, pending_only=options.pending)
    try:
        for name, index in jobs:
            submissions.note_cancel(store, name, index)
    except StoreError as error:
        print(f"warning: {error}; the jobs are cancelled, status may call them lost", file=sys.stderr)
    slurm.cancel(list(jobs.values()))
    if jobs or not sweeps:
        print(f"cancelled {count(len(jobs), 'job')}" if jobs else "no sweep runs here, and no job waits or runs")
    return 0


if __name__ == "__main__":
    run_program(main)
