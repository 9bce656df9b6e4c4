"""Run the whole contract on a mechanism: `python -m attention_zoo.check package.module:Class`.

Ends with 0 if every check passes, 1 if one fails, 2 with one line if it cannot be run at all.
"""

import argparse
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from attention_zoo.check.contract import CHECKS, Result, check_declaration, run
from attention_zoo.check.subject import MORE_SIZES, SIZES, Failed, Size, Subject
from attention_zoo.config import AttentionConfig, field_names, parse_field
from attention_zoo.registry import find, suggest

EXAMPLES = """examples:
  python -m attention_zoo.check mypackage.mymodule:MyAttention
  python -m attention_zoo.check mymodule:MyAttention --dim 96 --heads 3 --size 14x14 7x21 --set window=7 lepe=on
  python -m attention_zoo.check swin --set window=3 shift=1"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the process with code 2."""
        print(f"check: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def _size(text: str) -> Size:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, the sides of a map in tokens, such as 14x21")
    return int(match[1]), int(match[2])


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as window=7")
    return name, value


def make_parser() -> Parser:
    """Declare every argument."""
    parser = Parser(
        prog="python -m attention_zoo.check",
        description="Check a mechanism against everything that the zoo asks of one; see docs/adding_a_mechanism.md.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("mechanism", help="package.module:Class, importable from here, or a registered name")
    add("--dim", type=int, default=12, help="channels (default: 12)")
    add("--heads", type=int, default=2, help="heads (default: 2)")
    sizes = ", ".join(f"{height}x{width}" for height, width in SIZES)
    add("--size", type=_size, nargs="+", action="extend", metavar="HxW", help=f"maps, tokens (default: {sizes})")
    add("--set", type=_setting, nargs="+", action="extend", default=[], metavar="F=V", dest="settings",
        help="fields of its Config")  # fmt: skip
    return parser


def make_subject(options: argparse.Namespace) -> Subject:
    """Find the mechanism and build it once.

    Raises:
        ValueError: it cannot be found, imported or built, a field is unknown, or no map fits.
    """
    try:
        cls = check_declaration(find(options.mechanism))
    except Failed as reason:
        raise ValueError(f"{options.mechanism}: {reason}") from reason
    subject = Subject(cls, _config(cls.Config, options), options.dim, options.heads, tuple(options.size or SIZES))
    try:
        attention = subject.build()
    except Exception as error:
        raise ValueError(f"{options.mechanism} cannot be built: {type(error).__name__}: {error}") from error
    for size in options.size or ():
        try:
            attention.geometry(*size)
        except ValueError as error:
            raise ValueError(f"--size {size[0]}x{size[1]}: {error}") from error
    if options.size:
        return subject
    fitting = [size for size in (*SIZES, *MORE_SIZES) if min(size) > 1 and subject.fits(size)]
    if not fitting:
        raise ValueError(f"{options.mechanism} fits no map that is tried; give some that it fits by --size HxW")
    return Subject(cls, subject.config, options.dim, options.heads, fitting[: len(SIZES)])


def _config(config: type[AttentionConfig], options: argparse.Namespace) -> AttentionConfig:
    values: dict[str, Any] = {}
    for name, text in options.settings:
        if name not in field_names(config):
            raise ValueError(
                f"--set {name}={text}: {suggest(f'field of {options.mechanism}', name, field_names(config))}"
            )
        values[name] = parse_field(config, name, text)
    return config(**values)


def table(results: Iterable[Result]) -> Iterable[str]:
    """Lines of check, outcome and reason, one check at a time."""
    width = max(len(check.name) for check in CHECKS)
    indent = " " * (width + 8)
    for name, outcome, why in results:
        lines = textwrap.wrap(why, 120 - len(indent), break_long_words=False) or [""]
        yield f"{name:<{width}}  {outcome:<4}  {lines[0]}".rstrip()
        yield from (indent + line for line in lines[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Check a mechanism and print the table; 0, 1 if a check fails, or 2 with one line."""
    parser = make_parser()
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        subject = make_subject(options)
    except ValueError as error:
        parser.error(" ".join(str(error).split()))
    # what torch says of its own parts, such as the tracer that fvcore uses
    warnings.simplefilter("ignore")
    results: list[Result] = []

    def each() -> Iterable[Result]:
        for check in CHECKS:
            results.append(run(check, subject))
            yield results[-1]

    for line in table(each()):
        print(line, flush=True)
    failed = sum(result.outcome == "fail" for result in results)
    passed = sum(result.outcome == "pass" for result in results)
    sizes = ", ".join(f"{height}x{width}" for height, width in subject.sizes)
    print(f"{options.mechanism} on maps of {sizes}: {passed} checks pass, {failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
