"""The command line of the sweep: flags and their values, read without importing torch."""

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ablations.study import ARGUMENTS
from ablations.values import Argument, arguments, choice, per_stage
from runners.jobs.options import RunOptions, SlurmOptions
from runners.measures import MEASURES

EXAMPLES = """examples:
  python runners/sweep.py --attn bra --topk 1,4,8,16
  python runners/sweep.py --attn bra,vanilla --resolution 64,96x128 --measure flops,memory --dry-run
  python runners/sweep.py --attn swin --set swin.window=2,4 --seeds 0,1,2
  python runners/sweep.py --attn all --topk 1,4,8,16 --cluster slurm --partition gpu --gpus-per-node 1 --time 2:00:00
  python runners/sweep.py --study list"""

SETTINGS = (
    Argument("topk", per_stage("a top-k"), "K", "regions that each region attends to (bra)", several=True),
    Argument("regions", per_stage("a number of regions"), "S", "regions per side (bra)", several=True),
    Argument(
        "region_size",
        per_stage("a region size", ("auto",)),
        "T",
        "tokens per side of a region, or auto: the cheapest (bra)",
        several=True,
    ),
    Argument("clip_topk", help="use all regions of a map that has fewer than top-k"),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message alone."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `parse` as argparse wants it, which drops the message of a ValueError."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def axis(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return a reader of a comma-separated axis, each of whose values `parse` reads."""

    def read(text: str) -> tuple[Any, ...]:
        parts = text.split(",")
        if not all(part.strip() for part in parts):
            raise ValueError(f"{text!r} has an empty value; separate values by single commas")
        return tuple(dict.fromkeys(parse(part.strip()) for part in parts))

    return reader(read)


class Once(argparse.Action):
    """Stores a list that is given by commas, and refuses a second one, of which argparse would drop the first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, flag: str | None = None) -> None:
        """Store the values, or end with an error that names the flag."""
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{flag} is given twice; give all of its values at once, separated by commas")
        setattr(namespace, self.dest, values)


def add_flag(group: Any, argument: Argument, *, help: str = "", append: bool = False) -> None:
    """Declare an argument as a flag; what is not given stays None, or False for a switch."""
    flag, text = f"--{argument.name.replace('_', '-')}", help or argument.help
    if argument.default:
        text += f" (default: {argument.default})"
    if argument.parse is None:
        group.add_argument(flag, action="store_true", help=text)
    elif append:
        group.add_argument(flag, metavar=argument.metavar, type=reader(argument.parse), action="append", help=text)
    elif argument.several:
        name = argument.metavar
        group.add_argument(flag, metavar=f"{name}[,{name}]", type=axis(argument.parse), action=Once, help=text)
    else:
        group.add_argument(flag, metavar=argument.metavar, type=reader(argument.parse), help=text)


def _setting(text: str) -> tuple[str, tuple[str, ...]]:
    match = re.fullmatch(r"(.+\.\w+)=(.*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not MECHANISM.FIELD=VALUE[,VALUE...], such as swin.window=2,4")
    return match[1], axis(str)(match[2])


def make_parser() -> Parser:
    """Declare every flag of the sweep."""
    parser = Parser(
        prog="sweep.py",
        description="Measure attention mechanisms in one shared pyramid: accuracy, MACs, memory, throughput.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cells = parser.add_argument_group("cells (a comma makes an axis; dashes give one value per stage)")
    for name, argument in ARGUMENTS.items():
        if name == "steps":
            duration = cells.add_mutually_exclusive_group()
            add_flag(duration, argument)
            add_flag(duration, ARGUMENTS["epochs"])
        elif name != "epochs":
            add_flag(cells, argument)
        if name == "attn":
            for setting in SETTINGS:
                add_flag(cells, setting)
            cells.add_argument(
                "--set",
                metavar="M.F=V[,V]",
                dest="settings",
                type=_setting,
                action="append",
                help="any other config field, such as swin.window=2,4 or bra.lepe=on,off",
            )
    run = parser.add_argument_group("run")
    add_flag(run, Argument("measure", choice(*MEASURES), "M", f"of {', '.join(MEASURES)}", True, "all"))
    run.add_argument(
        "--study", metavar="NAME", help="a declared study from ablations/; 'list' prints them; flags above override it"
    )
    add_results_folder(run)
    run.add_argument(
        "--dry-run", action="store_true", help="print the cells and an estimate; run nothing, write nothing"
    )
    for name, argument in arguments(RunOptions).items():
        if name not in arguments(SlurmOptions):
            add_flag(run, argument)
    add_slurm_flags(parser)
    return parser


def add_results_folder(group: Any) -> None:
    """Declare the results folder that a command writes to."""
    group.add_argument(
        *("--results", "--out"),
        dest="out",
        metavar="DIR",
        type=Path,
        default=Path("results/runs"),
        help="results folder (default: results/runs); both names mean the same",
    )


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what a job asks of SLURM and how cells become jobs."""
    group = parser.add_argument_group("jobs (--cluster slurm)")
    for name, argument in arguments(SlurmOptions).items():
        add_flag(group, argument, append=name == "slurm")


def given(options: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Values of a command line for a dataclass of options; what was not given is left to its defaults."""
    values = {field.name: getattr(options, field.name, None) for field in fields(cls)}
    return {name: value for name, value in values.items() if value is not None}


def read_command(argv: list[str]) -> argparse.Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.regions and options.region_size:
        parser.error(
            f"--regions {','.join(options.regions)} and --region-size {','.join(options.region_size)} "
            f"are two spellings of one thing; give --regions (per side) or --region-size (tokens per side)"
        )
    fields_given = [name for name, _ in options.settings or ()]
    if twice := next((name for name in fields_given if fields_given.count(name) > 1), None):
        parser.error(f"--set {twice} is given twice; give all of its values at once, separated by commas")
    run = RunOptions(**given(options, RunOptions))
    for name in run.without_slurm():
        parser.error(f"--{name.replace('_', '-')} needs --cluster slurm, got --cluster {run.cluster}")
    return options
