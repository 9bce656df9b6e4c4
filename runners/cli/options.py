"""The command line of the sweep: flags and their values, read without importing torch."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from runners.measures import CAN_RETRY, MEASURES, RECORDED

MIN_PX, MAX_PX = 32, 16384

EXAMPLES = """examples:
  python runners/sweep.py --attn bra --topk 1,4,8,16
  python runners/sweep.py --attn bra,vanilla --resolution 64,96x128 --measure flops,memory --dry-run
  python runners/sweep.py --attn swin --set swin.window=2,4 --seeds 0,1,2
  python runners/sweep.py --attn all --topk 1,4,8,16 --cluster slurm --partition gpu --gpus-per-node 1 --time 2:00:00
  python runners/sweep.py --study list"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message alone."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _axis(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Read a comma-separated axis; each value by `parse`."""

    def read(text: str) -> tuple[Any, ...]:
        parts = text.split(",")
        if not all(part.strip() for part in parts):
            raise argparse.ArgumentTypeError(f"{text!r} has an empty value; separate values by single commas")
        return tuple(dict.fromkeys(parse(part.strip()) for part in parts))

    return read


def _integer(low: int, what: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,12}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}, an integer of at least {low}")
        return int(text)

    return read


def _per_stage(what: str, words: tuple[str, ...] = ()) -> Callable[[str], str]:
    """Read one value, or one per stage separated by dashes, as text; `full` only in a schedule."""

    def read(text: str) -> str:
        parts = text.split("-")
        allowed = (*words, "full") if len(parts) > 1 else words
        for part in parts:
            if not (re.fullmatch(r"[0-9]{1,9}", part) and int(part) >= 1) and part not in allowed:
                alternatives = "".join(f" or {word!r}" for word in words)
                raise argparse.ArgumentTypeError(
                    f"{text!r} is not {what}: an integer of at least 1{alternatives}, or one per stage by dashes, "
                    f"such as 1-4-16-full"
                )
        return text

    return read


def resolution(text: str) -> tuple[int, int]:
    """Read the sides of an input of a command line, in pixels."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(MIN_PX <= side <= MAX_PX for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not PX or HxW with sides of {MIN_PX} to {MAX_PX} pixels")
    return sides


def _choice(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
        return text

    return read


def _setting(text: str) -> tuple[str, tuple[str, ...]]:
    match = re.fullmatch(r"(.+\.\w+)=(.*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not MECHANISM.FIELD=VALUE[,VALUE...], such as swin.window=2,4")
    return match[1], _axis(str)(match[2])


def minutes(text: str) -> float:
    """Read a time limit of a command line."""
    try:
        return read_minutes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_minutes(text: str) -> float:
    """Read a time limit: minutes, or H:MM:SS as SLURM writes it.

    Raises:
        ValueError: it is neither.
    """
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text)
    if clock:
        limit = int(clock[1]) * 60 + int(clock[2]) + int(clock[3]) / 60
    else:
        limit = float(text) if re.fullmatch(r"\d{1,7}(\.\d+)?", text) else 0
    if not limit > 0:
        raise ValueError(f"{text!r} is not a time: minutes above 0, or H:MM:SS")
    return limit


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
    add = cells.add_argument
    add("--attn", metavar="A[,B]", type=_axis(str), help="mechanisms, 'all', or package.module:Class (default: bra)")
    add("--topk", metavar="K[,K]", type=_axis(_per_stage("a top-k")), help="regions that each region attends to (bra)")
    add("--regions", metavar="S[,S]", type=_axis(_per_stage("a number of regions")), help="regions per side (bra)")
    add(
        "--region-size",
        metavar="T[,T]",
        type=_axis(_per_stage("a region size", ("auto",))),
        help="tokens per side of a region, or auto: the cheapest (bra)",
    )
    add("--clip-topk", action="store_true", help="use all regions of a map that has fewer than top-k")
    add(
        "--set",
        metavar="M.F=V[,V]",
        dest="settings",
        type=_setting,
        action="append",
        help="any other config field, such as swin.window=2,4 or bra.lepe=on,off",
    )
    add("--layout", metavar="L[,L]", type=_axis(str), help="shared host: small, stl (default: small)")
    add("--resolution", metavar="PX|HxW", type=_axis(resolution), help="input in pixels (default: the layout's own)")
    add("--seeds", metavar="N[,N]", type=_axis(_integer(0, "a seed")), help="seeds, each a cell (default: 0)")
    add(
        "--data", metavar="D[,D]", type=_axis(str), help="digit-vote, digit-recall, fashion-mnist (default: digit-vote)"
    )
    duration = cells.add_mutually_exclusive_group()
    duration.add_argument(
        "--steps", metavar="N[,N]", type=_axis(_integer(1, "a number of steps")), help="training steps (default: 400)"
    )
    duration.add_argument(
        "--epochs", metavar="N", type=_integer(1, "a number of epochs"), help="instead of steps, where data has an end"
    )
    add("--batch-size", metavar="N[,N]", type=_axis(_integer(1, "a batch size")), help="images (default: 64)")
    add("--precision", metavar="P[,P]", type=_axis(_choice("fp32", "bf16")), help="fp32 or bf16 (default: fp32)")
    add("--compile", action="store_true", help="through torch.compile")
    add("--threads", metavar="N[,N]", type=_axis(_integer(1, "a number of threads")), help="CPU threads (default: all)")
    run = parser.add_argument_group("run")
    add = run.add_argument
    add(
        "--measure",
        metavar="M[,M]",
        type=_axis(_choice(*MEASURES)),
        help=f"of {', '.join(MEASURES)} (default: all)",
    )
    add("--study", metavar="NAME", help="a declared study from ablations/; 'list' prints them; flags above override it")
    add("--device", metavar="D", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add(
        "--cluster",
        type=_choice("local", "slurm", "debug"),
        default="local",
        help="local: a process per cell; slurm: job arrays, returns at once; debug: in this process",
    )
    add(
        "--time",
        metavar="MIN",
        type=minutes,
        help="limit per cell, with slurm per job: minutes or H:MM:SS (default: none; slurm: 60)",
    )
    add("--memory-limit", metavar="MIB", type=_integer(64, "a limit in MiB"), help="data memory of a measured process")
    add("--save-weights", action="store_true", help="keep the trained weights beside the records, for visualize.py")
    add("--out", metavar="DIR", type=Path, default=Path("results/runs"), help="results folder (default: results/runs)")
    # what is lost runs again by itself
    retried = [name for name in CAN_RETRY if name in RECORDED]
    add("--dry-run", action="store_true", help="print the cells and an estimate; run nothing, write nothing")
    add(
        "--retry",
        metavar="STATUS[,STATUS]",
        type=_axis(_choice(*retried)),
        default=(),
        help=f"run again what ended as {', '.join(retried)}",
    )
    add("--force", action="store_true", help="run everything again as a further attempt; older ones stay on disk")
    add_slurm_flags(parser)
    return parser


SLURM_FLAGS = ("partition", "account", "qos", "constraint", "mem", "nodes", "gpus_per_node", "cpus_per_task")
"""Flags that are options of sbatch under the same name."""

JOB_FLAGS = ("name", "slurm", "exclusive", "max_parallel", "cells_per_job", "max_requeues")
"""Other flags that mean something to `--cluster slurm` alone."""


def add_slurm_flags(parser: argparse.ArgumentParser, *, name: bool = True) -> None:
    """Declare what a job asks of SLURM, how cells become jobs and, with `name`, what the study is called."""
    group = parser.add_argument_group("jobs (--cluster slurm)")
    add = group.add_argument
    if name:
        add("--name", metavar="N", type=_name, help="name of the study in status, retry, ... (default: from the cells)")
    add("--partition", metavar="P", type=_word, help="as in sbatch, like the seven below")
    add("--account", metavar="A", type=_word, help="who pays")
    add("--qos", metavar="Q", type=_word, help="quality of service")
    add("--constraint", metavar="C", type=_word, help="features that a node must have")
    add("--mem", metavar="SIZE", type=_memory, help="memory per node, such as 16G")
    add("--nodes", metavar="N", type=_integer(1, "a number of nodes"), help="nodes that train one cell (default: 1)")
    add("--gpus-per-node", metavar="N", type=_integer(1, "a number of GPUs"), help="GPUs, with a process each")
    add(
        "--cpus-per-task",
        metavar="N",
        type=_integer(1, "a number of processors"),
        help="processors of each process (default: --threads)",
    )
    add(
        "--slurm",
        metavar="K[=V]",
        type=_sbatch_option,
        action="append",
        help="any other option of sbatch, such as reservation=night or comment=mine",
    )
    add("--exclusive", action="store_true", help="measure throughput in jobs of its own, alone on their node")
    add("--max-parallel", metavar="N", type=_integer(1, "a number of jobs"), help="jobs at the same time")
    add(
        "--cells-per-job",
        metavar="N",
        type=_integer(1, "a number of cells"),
        help="cells one after another (default: 1)",
    )
    add(
        "--max-requeues",
        metavar="N",
        type=_integer(0, "a number of times"),
        help="time limits after which a training goes on in a further run of its job (default: while it gets further)",
    )


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: up to 64 letters, digits and _ . + -")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s'\"]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: it has spaces or quotes, or is empty")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d{1,9}[KMGT]?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: a number, in MB or with K, M, G or T behind it")
    return text


def _sbatch_option(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z][a-z0-9-]*)(?:=([^\n]+))?", text.replace("_", "-", text.partition("=")[0].count("_")))
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not OPTION or OPTION=VALUE with a long name, such as comment=mine"
        )
    if match[1] in RESERVED:
        raise argparse.ArgumentTypeError(f"{text!r}: {match[1]} {RESERVED[match[1]]}")
    return match[1], match[2] or ""


RESERVED = {
    **dict.fromkeys(("time", "exclusive"), "has a flag of its own"),
    **{name.replace("_", "-"): "has a flag of its own" for name in SLURM_FLAGS},
    **dict.fromkeys(("array", "job-name", "output", "error", "signal", "open-mode", "requeue"), "is set by the sweep"),
    **dict.fromkeys(("wait", "test-only", "wrap", "no-requeue", "ntasks-per-node", "ntasks"), "is set by the sweep"),
}
"""Options of sbatch that `--slurm` does not take, and why."""


def read_command(argv: list[str]) -> argparse.Namespace:
    """Parse a command line; a malformed one ends the process with code 2 and one line."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.regions and options.region_size:
        parser.error(
            f"--regions {','.join(options.regions)} and --region-size {','.join(options.region_size)} "
            f"are two spellings of one thing; give --regions (per side) or --region-size (tokens per side)"
        )
    if options.cluster != "slurm":
        for name in (*SLURM_FLAGS, *JOB_FLAGS):
            if getattr(options, name) not in (None, False):
                parser.error(f"--{name.replace('_', '-')} needs --cluster slurm, got --cluster {options.cluster}")
    return options
