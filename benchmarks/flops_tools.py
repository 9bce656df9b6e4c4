"""One network as every counter counts it: `python -m benchmarks.flops_tools --save` writes the tables of docs/flops.md.

Needs `pip install -e '.[counters]'`. Each tool counts one image, as it comes; what it prints is brought to MACs.
"""

import argparse
import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_zoo import create_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flops.md"
MECHANISMS = ("vanilla", "bra")
SIDE = 224
SIZES = ((224, 224), (512, 512), (512, 2048))
BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


def by_ours(model: nn.Module, image: Tensor) -> float:
    """The closed form, which two counters confirm in every cell."""
    return float(model.macs(*image.shape[2:]).total)  # type: ignore[operator]


def by_fvcore(model: nn.Module, image: Tensor) -> float:
    """Its `FlopCountAnalysis`."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(analysis.total())


def by_torch(model: nn.Module, image: Tensor) -> float:
    """Its `FlopCounterMode`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops()) / 2


def by_ptflops(model: nn.Module, image: Tensor) -> float:
    """Its `get_model_complexity_info` with the default backend."""
    from ptflops import get_model_complexity_info

    macs, _ = get_model_complexity_info(
        model, tuple(image.shape[1:]), as_strings=False, print_per_layer_stat=False, verbose=False
    )
    return float(macs)


def by_thop(model: nn.Module, image: Tensor) -> float:
    """Its `profile`."""
    from thop import profile

    return float(profile(model, inputs=(image,), verbose=False)[0])


def by_torchinfo(model: nn.Module, image: Tensor) -> float:
    """Its `summary`."""
    from torchinfo import summary

    return float(summary(model, input_data=image, verbose=0).total_mult_adds)


TOOLS: dict[str, tuple[Callable[[nn.Module, Tensor], float], str]] = {
    "ours": (by_ours, "MACs"),
    "fvcore": (by_fvcore, "MACs, which it calls FLOPs"),
    "torch.utils.flop_counter, on a CPU": (by_torch, "FLOPs, 2 to a MAC"),
    "ptflops": (by_ptflops, "MACs"),
    "thop": (by_thop, "MACs"),
    "torchinfo": (by_torchinfo, "mult-adds"),
}


def count(tool: Callable[[nn.Module, Tensor], float], attention: str, side: int) -> float:
    """MACs of one image by a tool, which gets a model of its own, since some leave hooks and buffers in it."""
    torch.manual_seed(0)
    model, image = create_model("stl", attn=attention).eval(), torch.zeros(1, 3, side, side)
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return tool(model, image)
    finally:
        logging.disable(logging.NOTSET)


def tools_table(side: int = SIDE) -> str:
    """Markdown: a row for each tool, GMACs of the network with each mechanism and the share of ours."""
    lines = [f"| counter | it reports | {' | '.join(f'{name} (GMAC)' for name in MECHANISMS)} |", "| --- " * 4 + "|"]
    ours = {name: count(by_ours, name, side) for name in MECHANISMS}
    for label, (tool, unit) in TOOLS.items():
        found = {name: count(tool, name, side) for name in MECHANISMS}
        shown = (f"{found[name] / 1e9:.3f} ({found[name] / ours[name]:.1%} of ours)" for name in MECHANISMS)
        lines.append(f"| {label} | {unit} | {' | '.join(shown)} |")
    return "\n".join(lines)


def sizes_table() -> str:
    """Markdown: a row for each size, GMACs and GFLOPs of the network with each mechanism, by our closed form."""
    lines = [
        f"| image (px) | {' | '.join(f'{name} (GMAC) | {name} (GFLOP)' for name in MECHANISMS)} |",
        "| --- " * 5 + "|",
    ]
    for height, width in SIZES:
        found = [create_model("stl", attn=name).macs(height, width).total / 1e9 for name in MECHANISMS]
        lines.append(f"| {height} x {width} | {' | '.join(f'{macs:.2f} | {2 * macs:.2f}' for macs in found)} |")
    return "\n".join(lines)


def rewritten(page: str, name: str, table: str) -> str:
    """Return the page with another table between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = BEGIN.format(name), END.format(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{PAGE} must have {begin} and {end} once each")
    return re.sub(rf"(?s){re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="flops_tools.py", description=__doc__)
    parser.add_argument("--save", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args(argv)
    try:
        tables = {"tools": tools_table(), "sizes": sizes_table()}
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed: pip install -e '.[counters]'")
    print("\n\n".join(tables.values()))
    if options.save:
        page = PAGE.read_text()
        for name, table in tables.items():
            page = rewritten(page, name, table)
        PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
