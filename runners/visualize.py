"""Draw what one query of a model reads, block by block and head by head: `python runners/visualize.py --help`."""

import sys

if __name__ == "__main__":
    # not the script's own folder, which would offer runners/table.py as `table`, but where the user's modules are
    sys.path[0] = ""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.values import Argument, resolution
from runners.cli.command import Parser, add_flag, command
from runners.cli.program import run_program
from runners.pictures.photos import PHOTOGRAPHS, PROBES
from runners.pictures.request import MOST_BLOCKS, MOST_HEADS, PictureRequest, prepare, select

if TYPE_CHECKING:
    from runners.pictures.panels import Scene
    from runners.pictures.request import Selection

EXAMPLES = """examples:
  python runners/visualize.py --model biformer_tiny.pth --arch biformer_tiny --image dog.jpg --query 90,120 --out dog
  python runners/visualize.py --model stl --attn dat --stage 3 --block all --out points
  python runners/visualize.py --model small --attn bra --set topk=1-4-8-full --image digit-vote --out votes"""

DPI = 200


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text)
    if not match:
        raise ValueError(f"{text!r} is not Y,X: row and column of a pixel from 0, such as 112,80")
    return int(match[1]), int(match[2])


def _numbers(what: str) -> Callable[[str], tuple[int, ...]]:
    """Read `all` as nothing, or numbers from 1 separated by commas."""

    def read(text: str) -> tuple[int, ...]:
        if text == "all":
            return ()
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text) or not all(map(int, text.split(","))):
            raise ValueError(f"{text!r} is no {what}: numbers from 1, such as 1,3, or all")
        return tuple(sorted({int(part) for part in text.split(",")}))

    return read


def _setting(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"((?:.+\.)?\w+)=(.+)", text)
    if not match:
        raise ValueError(f"{text!r} is not FIELD=VALUE, such as topk=1-4-16-full")
    return match[1], match[2]


def make_parser() -> Parser:
    """Declare every flag."""
    parser = Parser(
        "visualize.py", "Draw what one query of a model reads, and measure each of its attention layers.", EXAMPLES
    )
    model = parser.add_argument_group("model")
    what = "a layout or published model by name, or a checkpoint"
    model.add_argument("--model", metavar="NAME|FILE", required=True, help=what)
    add_flag(model, Argument("arch", str, "NAME", "what a checkpoint is of, unless it says so itself"))
    attn = "mechanism of a layout: its name, or package.module:Class"
    add_flag(model, Argument("attn", str, "A", attn, default="bra"))
    add_flag(model, Argument("set", _setting, "F=V", "a config field, such as topk=1-4-16-full"), [], append=True)
    picture = parser.add_argument_group("picture")
    image = f"an image file, or built in: {', '.join((*PHOTOGRAPHS, *PROBES))}"
    add_flag(picture, Argument("image", str, "FILE", image, default="china"), "china")
    size = "scaled and cropped to this"
    add_flag(picture, Argument("resolution", resolution, "PX|HxW", size, default="the model's own"))
    query = "pixel of the image as it is shown, from 0,0"
    add_flag(picture, Argument("query", _place, "Y,X", query, default="the middle"))
    add_flag(picture, Argument("stage", _numbers("stage"), "N[,N]", "stages", default="all"), ())
    blocks, heads = f"at most {MOST_BLOCKS}", f"the mean of all, and at most {MOST_HEADS}"
    add_flag(picture, Argument("block", _numbers("block"), "N[,N]", "blocks of each stage, or all", default=blocks))
    add_flag(picture, Argument("head", _numbers("head"), "N[,N]", "heads, or all", default=heads))
    out = "folder for the pictures and layers.csv; made if missing"
    picture.add_argument("--out", metavar="DIR", type=Path, required=True, help=out)
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

    here = environment()
    sha = f", commit {here['git_sha'][:9]}{' (changed)' if here['git_dirty'] else ''}" if here["git_sha"] else ""
    return f"attention-zoo {here['versions']['attention-zoo']}{sha}, torch {here['versions']['torch']}"


@command("visualize.py")
def main(argv: Sequence[str]) -> int:
    """Draw pictures and measure layers; 0, or 2 with one line if that cannot be done."""
    options = vars(make_parser().parse_args(argv))
    settings = dict(options.pop("set"))
    request = PictureRequest(**options, settings=settings)
    model, label, image, query = prepare(request)
    selected = select(model, request)

    from attention_zoo.attention_maps import mixer_inputs
    from runners.pictures.layers import layer_numbers, summary
    from runners.pictures.panels import Scene

    scene = Scene(model, mixer_inputs(model, image.input), image, query, label, versions())
    layers = layer_numbers(model, scene.inputs)
    table_path = request.out / "layers.csv"
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        layers.to_csv(table_path, index=False)
        files = [*draw(scene, selected, request.out), table_path]
    except OSError as error:
        raise ValueError(f"--out {request.out} cannot be written: {error.strerror}") from error
    table = summary(layers).dropna(axis="columns", how="all")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-"))
    print(f"means over heads and {table['queries'].max()} queries at most; each head is in {table_path}")
    if "random weights" in label:
        print(f"note: {label}: what it reads means nothing; give a checkpoint as --model")
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    run_program(main)
