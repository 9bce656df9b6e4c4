"""End the jobs of a study: `python runners/cancel.py --help`."""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

from collections.abc import Sequence

from runners.cli.command import command
from runners.cli.verbs import open_study, verb_parser
from runners.jobs.progress import count

EXAMPLES = """  python runners/cancel.py topk
  python runners/cancel.py topk --pending     jobs that run go on"""


@command("cancel.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 when the jobs were told to end; 2 with one line for bad input."""
    parser = verb_parser("cancel", "End the jobs that wait or run; what they recorded stays, retry goes on.", EXAMPLES)
    parser.add_argument("--pending", action="store_true", help="only jobs that wait")
    options = parser.parse_args(argv)

    from runners.jobs import slurm, submissions
    from runners.jobs.outcomes import look
    from runners.store.files import StoreError

    store, _ = open_study(options)
    jobs = look(store).jobs(options.study, pending_only=options.pending)
    try:
        for name, index in jobs:
            submissions.note_cancel(store, name, index)
    except StoreError as error:
        print(f"warning: {error}; the jobs are cancelled, status may call them lost", file=sys.stderr)
    slurm.cancel(list(jobs.values()))
    print(f"cancelled {count(len(jobs), 'job')}" if jobs else "no job waits or runs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
