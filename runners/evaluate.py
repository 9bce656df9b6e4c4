"""Accuracy of a model with its weights on images in class folders: `python runners/evaluate.py --help`."""

import sys

if __name__ == "__main__":
    # not the script's own folder, which would offer runners/table.py as `table`, but where the user's modules are
    sys.path[0] = ""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.values import Argument, integer, precision, resolution
from runners.cli.command import Parser, add_flag, add_results_folder, command
from runners.cli.program import run_program
from runners.evaluation.request import EvaluationRequest
from runners.store.names import visible

if TYPE_CHECKING:
    from rich.progress import Progress

EXAMPLES = """examples:
  python runners/evaluate.py --model biformer_small --checkpoint biformer_small.pth --data imagefolder:imagenet
  python runners/evaluate.py --model timm:convnext_tiny --checkpoint best.pth --ema --data imagefolder:val.tar
  torchrun --nproc-per-node 2 runners/evaluate.py --checkpoint own.pth --data imagefolder:DIR --resolution 224,384"""

SHOWN = (
    *("model", "attention", "settings", "checkpoint", "resolution", "acc1", "acc5", "loss", "n_eval", "unread"),
    *("real_acc1", "real_acc5", "real_n_eval"),
)
"""Columns that are printed, of those that are not empty."""
NAMED = 10
"""Images that cannot be read, of which so many are named."""


def _setting(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\w+)=(.+)", text)
    if not match:
        raise ValueError(f"{text!r} is not FIELD=VALUE, such as topk=1-4-16-full")
    return match[1], match[2]


def _share(text: str) -> float:
    if not re.fullmatch(r"1(\.0*)?|0?\.\d{1,12}", text) or not float(text):
        raise ValueError(f"{text!r} is no share above 0 and up to 1, such as 0.875")
    return float(text)


def make_parser() -> Parser:
    """Declare every flag."""
    description = "Measure the accuracy of a model on images: top-1, top-5 and loss, each image counted once."
    parser = Parser("evaluate.py", description, EXAMPLES)
    model = parser.add_argument_group("model")
    what = "a layout or published model, or timm:NAME; a checkpoint of ours may say it itself"
    add_flag(model, Argument("model", str, "NAME", what))
    file = "weights: official ones, ours or timm's, also with what trainings put beside them"
    add_flag(model, Argument("checkpoint", Path, "FILE", file, default="random weights"))
    add_flag(model, Argument("ema", help="the moving average of the weights in the file"), False)
    attn = "mechanism of a layout: its name, or package.module:Class"
    add_flag(model, Argument("attn", str, "A", attn, default="bra"))
    add_flag(model, Argument("set", _setting, "F=V", "a config field, such as topk=1-4-16-full"), [], append=True)
    images = parser.add_argument_group("images")
    data = "imagefolder:PATH, a folder of class folders or a .tar of one; val/ or val.tar in it if there is one"
    images.add_argument("--data", metavar="SPEC", required=True, help=data)
    size = Argument("resolution", resolution, "PX|HxW", "sizes, each a row", several=True, default="the model's own")
    add_flag(images, size, ())
    crop = "side of the crop over the shorter side of the resized image"
    add_flag(images, Argument("crop_pct", _share, "S", crop, default="0.875, or as timm's model says"))
    order = "names of class folders in the order of the model's classes, one a line, in a .txt"
    add_flag(images, Argument("label_map", Path, "FILE", order))
    real = "ImageNet-ReaL's real.json: the right labels of each validation image"
    add_flag(images, Argument("real_labels", Path, "FILE", real))
    run = parser.add_argument_group("run")
    add_flag(run, Argument("batch_size", integer(1, "a batch"), "N", "images of a batch", default="64"), 64)
    workers = integer(0, "a number of processes")
    add_flag(run, Argument("workers", workers, "N", "processes that read images for each process", default="2"), 2)
    add_flag(run, Argument("precision", precision, "P", "fp32, tf32, amp-bf16 ...", default="fp32"), "fp32")
    add_flag(run, Argument("device", str, "D", "auto, cpu, cuda, cuda:N or mps", default="auto"), "auto")
    add_flag(run, Argument("threads", integer(1, "a number of threads"), "N", "CPU threads", default="torch's choice"))
    add_results_folder(run)
    return parser


@contextmanager
def _bar(total: int, is_first: bool) -> "Iterator[Progress]":
    """Show on a terminal how many images are done; the first process shows its own."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), TextColumn("images"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("", total=total)
    # earlier versions of rich end a bar that is not shown with an empty line
    with bar if is_first and console.is_terminal else nullcontext():
        yield bar


def _print(rows: Sequence[Mapping[str, Any]], unread: Sequence[str]) -> None:
    import pandas as pd

    table = pd.DataFrame([{name: row.get(name) for name in SHOWN} for row in rows]).dropna(axis="columns", how="all")
    if not table["unread"].any():
        table = table.drop(columns="unread")
    print(visible(table.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="-")))
    for name in unread[:NAMED]:
        print(f"cannot be read: {visible(name)}")
    if len(unread) > NAMED:
        print(f"and {len(unread) - NAMED} more images that cannot be read")
    if any(row["loss"] is None for row in rows):
        print("note: some logits are not finite; those images count as wrong")
    if rows[0]["checkpoint"] is None:
        print("note: random weights: the accuracy means nothing; give a --checkpoint")


@command("evaluate.py")
def main(argv: Sequence[str]) -> int:
    """Evaluate a model; 0, or 2 with one line if that cannot be done."""
    options = vars(make_parser().parse_args(argv))
    settings = dict(options.pop("set"))
    request = EvaluationRequest(**options, settings=settings)
    request.check()

    # torch takes seconds to import; nothing above this line needs it
    from runners.evaluation.images import check_spec
    from runners.evaluation.processes import joined
    from runners.evaluation.run import evaluate, prepare
    from runners.store.evaluations import NAME, append_evaluations, check_evaluations
    from runners.store.store import open_store

    check_spec(request.data)
    with joined() as place:
        is_first = place.rank == 0
        if is_first:
            open_store(request.out, create=True)
            check_evaluations(request.out)
        prepared = prepare(request, place)
        rows: list[dict[str, Any]] = []
        unread: list[str] = []
        share = len(range(place.rank, len(prepared.images), place.world_size))
        with _bar(share * len(prepared.resolutions), is_first) as bar:
            results = evaluate(request, prepared, place, lambda count: bar.advance(bar.task_ids[0], count))
            try:
                for row, names in results:
                    rows.append(row)
                    unread = names
                    append_evaluations(request.out, [row])
            finally:
                # also if the disk is full, or somebody ends it
                if rows:
                    if bar.live.is_started:
                        bar.stop()
                    _print(rows, unread)
    if is_first:
        print(f"table: {request.out / NAME}")
    return 0


if __name__ == "__main__":
    run_program(main)
