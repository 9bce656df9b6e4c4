"""Draw what one query of a model reads, block by block and head by head: `python runners/visualize.py --help`."""

import os
import sys

if __name__ == "__main__":
    # not the script's own folder, which would offer runners/table.py as `table`, but where the user's modules are
    sys.path[0] = os.getcwd()

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ablations.values import resolution
from runners.cli.options import Once, Parser, reader
from runners.cli.program import run_program
from runners.pictures.photos import PHOTOGRAPHS, PROBES
from runners.pictures.request import MOST_BLOCKS, MOST_HEADS, PictureRequest, prepare, select

if TYPE_CHECKING:
    from runners.pictures.draw import Scene
    from runners.pictures.request import Selection

EXAMPLES = """examples:
  python runners/visualize.py --model biformer_tiny.pth --arch biformer_tiny --image dog.jpg --query 90,120 --out dog
  python runners/visualize.py --model stl --attn dat --stage 3 --block all --out points
  python runners/visualize.py --model small --attn bra --set topk=1-4-8-full --image digit-vote --out votes"""

DPI = 200


def fail(message: object) -> NoReturn:
    """End the process with code 2 and one line."""
    # the names of all weights of a wrong checkpoint would fill the screen
    print(f"visualize.py: error: {textwrap.shorten(str(message), 600, placeholder=' ...')}", file=sys.stderr)
    raise SystemExit(2)


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not Y,X: row and column of a pixel from 0, such as 112,80")
    return int(match[1]), int(match[2])


def _numbers(what: str) -> Callable[[str], tuple[int, ...]]:
    """Read `all` as nothing, or numbers from 1 separated by commas."""

    def read(text: str) -> tuple[int, ...]:
        if text == "all":
            return ()
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text) or not all(map(int, text.split(","))):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: numbers from 1, such as 1,3, or all")
        return tuple(sorted({int(part) for part in text.split(",")}))

    return read


def _setting(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"((?:.+\.)?\w+)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as topk=1-4-16-full")
    return match[1], match[2]


def make_parser() -> Parser:
    """Declare every flag."""
    parser = Parser(
        prog="visualize.py",
        description="Draw what one query of a model reads, and measure each of its attention layers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME|FILE", required=True, help="a layout or published model by name, or a checkpoint")
    add("--arch", metavar="NAME", help="what a checkpoint is of, unless it says so itself")
    add("--attn", metavar="A", help="mechanism of a layout: its name, or package.module:Class (default: bra)")
    add(
        "--set",
        metavar="F=V",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        help="a config field, such as topk=1-4-16-full",
    )
    built_in = ", ".join((*PHOTOGRAPHS, *PROBES))
    add = parser.add_argument_group("picture").add_argument
    add("--image", metavar="FILE", default="china", help=f"an image file, or built in: {built_in} (default: china)")
    add(
        "--resolution",
        metavar="PX|HxW",
        type=reader(resolution),
        help="scaled and cropped to this (default: the model's own)",
    )
    add("--query", metavar="Y,X", type=_place, help="pixel of the image as it is shown, from 0,0 (default: the middle)")
    add("--stage", metavar="N[,N]", type=_numbers("stage"), action=Once, default=(), help="stages (default: all)")
    add(
        "--block",
        metavar="N[,N]",
        type=_numbers("block"),
        action=Once,
        help=f"blocks of each stage, or all (default: at most {MOST_BLOCKS})",
    )
    add(
        "--head",
        metavar="N[,N]",
        type=_numbers("head"),
        action=Once,
        help=f"heads, or all (default: the mean of all, and at most {MOST_HEADS})",
    )
    add(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the pictures and layers.csv; made if missing"
    )
    return parser


def draw(scene: "Scene", selected: "Selection", out: Path) -> list[Path]:
    """Draw the overview and a figure for each stage into a folder; return the files."""
    from runners.pictures.draw import overview, stage_figure

    figures = {"overview.png": overview(scene, [(stage, blocks[-1]) for stage, (blocks, _) in selected.items()])}
    for stage, (blocks, heads) in selected.items():
        figures[f"stage{stage}.png"] = stage_figure(scene, stage, blocks, heads)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=DPI)
    return [out / name for name in figures]


def versions() -> str:
    """Versions that a picture depends on, in words."""
    from runners.machine.environment import environment

    found = environment()
    sha = f", commit {found['git_sha'][:9]}{' (changed)' if found['git_dirty'] else ''}" if found["git_sha"] else ""
    return f"attention-zoo {found['versions']['attention-zoo']}{sha}, torch {found['versions']['torch']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw pictures and measure layers; 0, or 2 with one line if that cannot be done."""
    options = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    request = PictureRequest(**{**vars(options), "settings": dict(options.settings)})
    try:
        model, label, image, query = prepare(request)
        selected = select(model, request)
    except ValueError as error:
        fail(error)

    import pandas as pd

    from attention_zoo.attention_maps import mixer_inputs
    from runners.pictures.draw import Scene
    from runners.pictures.layers import layer_numbers, summary

    scene = Scene(model, mixer_inputs(model, image.input), image, query, label, versions())
    try:
        numbers = layer_numbers(model, scene.inputs)
        options.out.mkdir(parents=True, exist_ok=True)
        numbers.to_csv(options.out / "layers.csv", index=False)
        files = [*draw(scene, selected, options.out), options.out / "layers.csv"]
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"--out {options.out} cannot be written: {error.strerror}")
    table = summary(numbers).dropna(axis="columns", how="all")
    with pd.option_context("display.width", None, "display.max_columns", None):
        print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-"))
    print(
        f"means over heads and {table['queries'].max()} queries at most; each head is in {options.out / 'layers.csv'}"
    )
    if "random weights" in label:
        print(f"note: {label}: what it reads means nothing; give a checkpoint as --model")
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    run_program(main)
