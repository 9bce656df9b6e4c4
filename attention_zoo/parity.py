"""Compare the zoo with stored results of the published codes: `python -m attention_zoo.parity DIR [DIR ...]`.

A case is a `*.safetensors` file anywhere below DIR: `input`, `output`, `weights/<official name>`, and if stored `probe`
with `grad_input` (the gradient of sum(output * probe)) and `extra/r_idx` or `extra/r_idx_<i>` (routes, compared as
sets). Its header says `kind` (family.Class), `layout` (NHWC, NCHW or BLC), `config` (JSON: the constructor's arguments,
H and W) and, for the page that `--write` makes, `repo` and `commit`. A case passes if max|a - b| <= rtol * max|b| +
atol for the output, five times that for the gradient, and the routes are the same; regions whose affinities tie may
stand for one another. A case whose class changes the map or its channels is listed and left out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attention_zoo import mechanisms
from attention_zoo.published.cases import FUNCTION, Case, Result, check, implementations, read_case
from attention_zoo.published.classes import MODELS
from attention_zoo.published.reader import NotAMixer
from attention_zoo.registry import resolve

__all__ = ["FUNCTION", "Case", "Result", "check", "implementations", "main", "page", "read_case", "table"]

PAGE = """\
# Check that `swin` is Swin

```sh
python -m attention_zoo.parity DIR [DIR ...] --write docs/parity.md
```

That command wrote this page; do not edit it. DIR holds results of the published codes: inputs, random weights, outputs,
gradients of the input, and routes. They are not part of this repository; to make some, run a published code and store
them in the format that the docstring of [parity.py](../attention_zoo/parity.py) describes. For each case the zoo builds
its counterpart from the arguments of the official constructor, loads the official weights by name, every one of which
must be used, and computes the stored input.

An error is the largest difference from the stored result over its largest value, to one digit. Routes are the regions
that bi-level routing chose, compared as sets. Sizes are in tokens, those of models in pixels. Arguments that do not
change the output, such as dropout, are left out.

{passed} of {count} cases pass at rtol={rtol:g}, atol={atol:g}, implementation {impl}, torch {torch}.
"""


def table(results: Sequence[Result]) -> str:
    """Lay out results as text, a line each."""
    width = max([len(result.case.name) for result in results] + [4])
    lines = [f"{'case':{width}}  {'output':>8}  {'gradient':>8}  {'routes':>6}  pass"]
    for result in results:
        gradient = "" if result.gradient is None else f"{result.gradient:.1e}"
        figures = f"{result.output:8.1e}  {gradient:>8}  {_routes(result):>6}"
        lines.append(f"{result.case.name:{width}}  {figures}  {_verdict(result)}")
    return "\n".join(lines)


def page(results: Sequence[Result], rtol: float, atol: float, impl: str | None, left_out: Sequence[str] = ()) -> str:
    """Lay out results as a page to be compared with an older one: errors to one digit, and no paths of a machine."""
    passed, version = sum(result.passed for result in results), torch.__version__.partition("+")[0]
    text = PAGE.format(passed=passed, count=len(results), rtol=rtol, atol=atol, impl=impl or "as built", torch=version)
    sources = sorted({result.case.source for result in results if result.case.source})
    lines = [text, "| repository | commit |", "| --- | --- |"]
    lines += ["| " + " | ".join(source.split(" ", 1)) + " |" for source in sources]
    lines += ["", "| case | class | arguments | size | output | gradient | routes | pass |", "| --- " * 8 + "|"]
    for result in results:
        case, (height, width) = result.case, result.case.size
        size = f"{height}x{width}" + (" px" if case.kind in MODELS else "")
        row = [case.name, f"`{case.kind}`", f"`{case.settings}`", size, _one_digit(result.output)]
        row += [_one_digit(result.gradient), _routes(result), _verdict(result)]
        lines.append(f"| {' | '.join(row)} |")
    if left_out:
        lines += ["", "Left out:", "", *(f"- {reason}" for reason in left_out)]
    return "\n".join(lines) + "\n"


def _one_digit(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}" if error else "0"


def _routes(result: Result) -> str:
    return "" if result.routes is None else "same" if result.routes == 0 else f"{result.routes} off"


def _verdict(result: Result) -> str:
    return "yes" if result.passed else "NO"


def known_impls() -> list[str]:
    """Ways in which some mechanism of the zoo can be computed."""
    return ["reference", *sorted({impl for name in mechanisms.__all__ for impl in resolve(name).impls})]


@dataclass(frozen=True)
class Comparison:
    """Results of the cases that could be compared; why others could not be built, and why others are left out."""

    results: list[Result]
    refused: list[str]
    left_out: list[str]


def compare(cases: Mapping[str, Path], rtol: float, atol: float, impl: str | None) -> Comparison:
    """Compare cases, files by their names."""
    found = Comparison([], [], [])
    for name, path in cases.items():
        try:
            found.results.append(check(read_case(path, name), rtol, atol, impl))
        except NotAMixer as reason:
            found.left_out.append(f"{name}: {reason}")
        except ValueError as error:
            found.refused.append(f"{name}: {error}")
        except Exception as error:  # one broken case must not hide the others
            found.refused.append(f"{name}: {type(error).__name__}: {error}")
    return found


def cases_below(folder: Path, *, with_folder: bool = False) -> dict[str, Path]:
    """Files of the cases below a folder by their names, which are their paths in it.

    `with_folder`: a case right inside it is named folder/case, as from the folder above.
    """
    cases = {}
    for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []:
        name = path.relative_to(folder).with_suffix("")
        cases[str(Path(folder.resolve().name, name) if with_folder and len(name.parts) == 1 else name)] = path
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if all pass, 1 if one fails, 2 if one cannot be built or there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m attention_zoo.parity", description="Compare the zoo with stored results of the published codes."
    )
    dir_help = "cases: every *.safetensors below it; of several DIR, a case right inside one is named DIR/case"
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help=dir_help)
    parser.add_argument("--rtol", type=float, default=1e-4, help="over the largest stored value (default: %(default)s)")
    parser.add_argument("--atol", type=float, default=0.0, help="added to it (default: %(default)s)")
    impl_help = "compute this way where a mechanism can (default: as built)"
    parser.add_argument("--impl", choices=known_impls(), help=impl_help)
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the table as a page too (docs/parity.md)")
    options = parser.parse_args(arguments)
    for name in ("rtol", "atol"):
        if not getattr(options, name) >= 0:
            parser.error(f"--{name} must be 0 or more, got {getattr(options, name)}")
    if options.write and not options.write.parent.is_dir():
        parser.error(f"--write {options.write}: no folder {options.write.parent}")
    cases: dict[str, Path] = {}
    for folder in options.folders:
        found = cases_below(folder, with_folder=len(options.folders) > 1)
        if not found:
            parser.error(f"DIR {folder} holds no *.safetensors")
        if twice := sorted(found.keys() & cases):
            parser.error(f"DIR {folder} holds cases of the same name as another DIR: {', '.join(twice)}")
        cases |= found
    return report(compare(cases, options.rtol, options.atol, options.impl), options)


def report(found: Comparison, options: argparse.Namespace) -> int:
    """Print what was found, and write the page if all could be built; returns what `main` does."""
    if found.results:
        print(table(found.results))
    for reason in found.left_out:
        print(f"left out: {reason}")
    if options.write and not found.refused:
        text = page(found.results, options.rtol, options.atol, options.impl, found.left_out)
        options.write.write_text(text, encoding="utf-8")
    for reason in found.refused:
        print(f"cannot be built: {reason}", file=sys.stderr)
    if options.write and found.refused:
        print(f"not written: {options.write}, which needs every case", file=sys.stderr)
    failed = sum(not result.passed for result in found.results)
    skipped = f", {len(found.left_out)} left out" if found.left_out else ""
    print(f"{len(found.results) - failed} passed, {failed} failed, {len(found.refused)} could not be built{skipped}")
    return 2 if found.refused else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
