"""The command line of the sweep: flags and their values, read without importing torch."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ablations.study import ARGUMENTS
from ablations.values import Argument, arguments, choice, per_stage
from runners.cli.command import Parser, add_flag, add_results_folder, axis
from runners.jobs.options import RunOptions, SlurmOptions
from runners.measures import DEFAULT_MEASURES, MEASURES

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


def _setting(text: str) -> tuple[str, tuple[str, ...]]:
    match = re.fullmatch(r"(.+\.\w+)=(.*)", text)
    if not match:
        raise ValueError(f"{text!r} is not MECHANISM.FIELD=VALUE[,VALUE...], such as swin.window=2,4")
    return match[1], axis(str)(match[2])


def make_parser() -> Parser:
    """Declare every flag of the sweep."""
    description = "Measure attention mechanisms in one shared pyramid: accuracy, MACs, memory, throughput."
    parser = Parser("sweep.py", description, EXAMPLES)
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
            other = "any other field, of a mechanism or the recipe, such as swin.window=2,4 or recipe.lr=1e-3"
            add_flag(cells, Argument("set", _setting, "M.F=V[,V]", other), append=True)
    run = parser.add_argument_group("run")
    every, usual = ", ".join(MEASURES), ",".join(DEFAULT_MEASURES)
    add_flag(run, Argument("measure", choice(*MEASURES), "M", f"of {every}", True, usual))
    study = "a declared study from ablations/; 'list' prints them; flags above override it"
    add_flag(run, Argument("study", str, "NAME", study))
    add_results_folder(run)
    add_flag(run, Argument("dry_run", help="print the cells and an estimate; run nothing, write nothing"))
    for name, argument in arguments(RunOptions).items():
        if name not in arguments(SlurmOptions):
            add_flag(run, argument)
    add_slurm_flags(parser)
    return parser


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what a job asks of SLURM and how cells become jobs."""
    group = parser.add_argument_group("jobs (--cluster slurm)")
    for name, argument in arguments(SlurmOptions).items():
        add_flag(group, argument, append=name == "slurm")


def given(options: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Values of a command line for a dataclass of options; what was not given is left to its defaults."""
    values = {field.name: getattr(options, field.name, None) for field in fields(cls)}
    return {name: value for name, value in values.items() if value is not None}


def read_command(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.regions and options.region_size:
        parser.error(
            f"--regions {','.join(options.regions)} and --region-size {','.join(options.region_size)} "
            f"are two spellings of one thing; give --regions (per side) or --region-size (tokens per side)"
        )
    fields_given = [name for name, _ in options.set or ()]
    if twice := next((name for name in fields_given if fields_given.count(name) > 1), None):
        parser.error(f"--set {twice} is given twice; give all of its values at once, separated by commas")
    try:
        run = RunOptions(**given(options, RunOptions))
    except ValueError as error:
        parser.error(str(error))
    for name in run.without_slurm():
        parser.error(f"--{name.replace('_', '-')} needs --cluster slurm, got --cluster {run.cluster}")
    return options
