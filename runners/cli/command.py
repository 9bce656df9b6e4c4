"""What every command shares: a parser, how its flags are declared, and how bad input and Ctrl-C end it."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ablations.values import Argument
from runners.store.names import visible

RESULTS = Path("results/runs")
"""Results folder of a command that is told no other."""

Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """A parser that takes flags in full only, shows its examples as they are written, and whose errors are one line."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message alone."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def command(prog: str) -> Callable[[Main], Callable[..., int]]:
    """Make a program of a function from arguments to an exit code: 2 and one line for bad input, 130 after Ctrl-C."""

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(sys.argv[1:] if argv is None else argv)
            except ValueError as error:
                print(f"{prog}: error: {visible(str(error))}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return run

    return decorate


def reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `parse` as argparse wants it, which drops the message of a ValueError."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def axis(
    parse: Callable[[str], Any], divide: Callable[[str], list[str]] | None = None
) -> Callable[[str], tuple[Any, ...]]:
    """Return a reader of a comma-separated axis, each of whose values `parse` reads; `divide` knows other commas."""

    def read(text: str) -> tuple[Any, ...]:
        parts = divide(text) if divide else text.split(",")
        if not all(part.strip() for part in parts):
            raise ValueError(f"{text!r} has an empty value; separate values by single commas")
        return tuple(dict.fromkeys(parse(part.strip()) for part in parts))

    return read


class Once(argparse.Action):
    """Stores a list that is given by commas, and refuses a second one, of which argparse would drop the first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, flag: str | None = None) -> None:
        """Store the values, or end with an error that names the flag."""
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{flag} is given twice; give all of its values at once, separated by commas")
        setattr(namespace, self.dest, values)


def add_flag(group: Any, argument: Argument, value: Any = None, *, append: bool = False) -> None:
    """Declare an argument as a flag; what is not given is `value`, or False for a switch."""
    flag, text = f"--{argument.name.replace('_', '-')}", argument.help
    if argument.default:
        text += f" (default: {argument.default})"
    if argument.parse is None:
        group.add_argument(flag, action="store_true", help=text)
        return
    several = argument.several and not append
    bare = {"nargs": "?", "const": argument.alone} if argument.alone is not None else {}
    group.add_argument(
        flag,
        metavar=f"{argument.metavar}[,{argument.metavar}]" if several else argument.metavar,
        type=reader(axis(argument.parse, argument.parts) if several else argument.parse),
        action="append" if append else Once if several else "store",
        default=value,
        help=text,
        **bare,
    )


def add_results_folder(group: Any) -> None:
    """Declare the results folder."""
    group.add_argument(
        *("--results", "--out"),
        dest="out",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help=f"results folder (default: {RESULTS}); both names mean the same",
    )
