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

from runners.cli.options import Parser, resolution
from runners.pictures.photos import PHOTOGRAPHS, PROBES, Shown, open_image

if TYPE_CHECKING:
    from attention_zoo.hosts.pyramid import Pyramid
    from runners.pictures.draw import Scene

EXAMPLES = """examples:
  python runners/visualize.py --model biformer_tiny.pth --arch biformer_tiny --image dog.jpg --query 90,120 --out dog
  python runners/visualize.py --model stl --attn dat --stage 3 --block all --out points
  python runners/visualize.py --model small --attn bra --set topk=1-4-8-full --image digit-vote --out votes"""

DPI = 200
MOST_BLOCKS, MOST_HEADS = 4, 4
"""Rows and heads of a figure unless they are asked for; evenly spaced, first and last among them."""

Numbers = tuple[int, ...] | None
"""Stages, blocks or heads, from 1; none for all."""


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


def _setting(text: str) -> tuple[str | None, str, str]:
    match = re.fullmatch(r"(?:(.+)\.)?(\w+)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as topk=1-4-16-full")
    return match[1], match[2], match[3]


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
    add("--resolution", metavar="PX|HxW", type=resolution, help="scaled and cropped to this (default: the model's own)")
    add("--query", metavar="Y,X", type=_place, help="pixel of the image as it is shown, from 0,0 (default: the middle)")
    add("--stage", metavar="N[,N]", type=_numbers("stage"), default=(), help="stages (default: all)")
    add(
        "--block",
        metavar="N[,N]",
        type=_numbers("block"),
        help=f"blocks of each stage, or all (default: at most {MOST_BLOCKS})",
    )
    add(
        "--head",
        metavar="N[,N]",
        type=_numbers("head"),
        help=f"heads, or all (default: the mean of all, and at most {MOST_HEADS})",
    )
    add(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the pictures and layers.csv; made if missing"
    )
    return parser


def evenly(count: int, most: int) -> tuple[int, ...]:
    """Choose at most `most` of the numbers 1 to `count`, the first and the last among them."""
    if count <= most:
        return tuple(range(1, count + 1))
    return tuple(1 + round(i * (count - 1) / (most - 1)) for i in range(most))


def choose(flag: str, asked: Numbers, counts: dict[int, int], most: int) -> dict[int, tuple[int, ...]]:
    """Numbers to draw at each stage, those that it has; `counts` says how many that are.

    Raises:
        ValueError: a number that no stage has.
    """
    if asked is None:
        return {stage: evenly(count, most) for stage, count in counts.items()}
    absent = [number for number in asked if number > max(counts.values())]
    if absent:
        have = ", ".join(f"1 to {count} at stage {stage}" for stage, count in counts.items())
        raise ValueError(f"{flag} {','.join(map(str, absent))}: there are {have}")
    return {stage: tuple(n for n in asked or range(1, count + 1) if n <= count) for stage, count in counts.items()}


def select(model: "Pyramid", options: argparse.Namespace) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Blocks and heads to draw at each stage; a stage that has none of them is left out.

    Raises:
        ValueError: a stage, block or head that is not there.
    """
    from runners.pictures.draw import MEAN

    mixers = dict(enumerate(model.mixers(), start=1))
    absent = [stage for stage in options.stage if stage not in mixers]
    if absent:
        raise ValueError(f"--stage {','.join(map(str, absent))}: there are stages 1 to {len(mixers)}")
    mixers = {stage: mixers[stage] for stage in options.stage or mixers}
    blocks = choose("--block", options.block, {stage: len(here) for stage, here in mixers.items()}, MOST_BLOCKS)
    heads = choose("--head", options.head, {s: here[0].num_heads for s, here in mixers.items()}, MOST_HEADS)
    selected = {}
    for stage, here in mixers.items():
        mean = (MEAN,) if not options.head and here[0].num_heads > 1 else ()
        if blocks[stage] and heads[stage]:
            selected[stage] = (blocks[stage], (*mean, *heads[stage]))
    if not selected:
        raise ValueError("no stage has both such a --block and such a --head")
    return selected


def prepare(options: argparse.Namespace) -> "tuple[Pyramid, str, Shown]":
    """Check everything that was asked for, and return model, its name and the image.

    Raises:
        ValueError: it cannot be done; one message that names the flag.
    """
    try:
        source = open_image(options.image)
    except ValueError as error:
        raise ValueError(f"--image: {error}") from error
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; give a folder")
    attn = options.attn or "bra"
    for owner, field, value in options.settings:
        if owner not in (None, attn, attn.partition(":")[2]):
            raise ValueError(f"--set {owner}.{field}={value}: the mechanism is {attn}, not {owner}")

    # torch takes seconds to import; nothing above this line needs it
    from runners.cells.weights import load_model

    config = {field: value for _, field, value in options.settings}
    try:
        model, label = load_model(options.model, arch=options.arch, attn=options.attn, config=config)
    except ValueError as error:
        raise ValueError(f"--model: {error}") from error
    height, width = options.resolution or (
        model.layout.resolution_px,
        model.layout.width_px or model.layout.resolution_px,
    )
    model.describe(height, width)
    options.query = options.query or (height // 2, width // 2)
    if options.query[0] >= height or options.query[1] >= width:
        y, x = options.query
        raise ValueError(
            f"--query {y},{x} is outside the image, which is {height}x{width} px (H x W) as shown: "
            f"Y is 0 to {height - 1}, X is 0 to {width - 1}"
        )
    return model, label, source.at(height, width)


def draw(scene: "Scene", selected: dict[int, tuple[tuple[int, ...], tuple[int, ...]]], out: Path) -> list[Path]:
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
    try:
        model, label, image = prepare(options)
        selected = select(model, options)
    except ValueError as error:
        fail(error)

    import pandas as pd

    from attention_zoo.attention_maps import mixer_inputs
    from runners.pictures.draw import Scene
    from runners.pictures.layers import layer_numbers, summary

    scene = Scene(model, mixer_inputs(model, image.input), image, options.query, label, versions())
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
    raise SystemExit(main())
