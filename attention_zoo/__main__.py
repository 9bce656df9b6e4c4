"""Print the table of mechanisms in Markdown: `python -m attention_zoo [NAME ...]`.

Without names: every mechanism that is built in or that an installed package offers, in the order of their papers.
A name may also be `package.module:Class`.
"""

import argparse
import sys
from collections.abc import Sequence

from attention_zoo.base import Attention
from attention_zoo.registry import names, resolve

HEAD = ("name", "a query reads", "paper", "file", "MACs of one map")


def row(name: str, mechanism: type[Attention]) -> tuple[str, ...]:
    """Cells of one mechanism, in the order of `HEAD`."""
    paper, reads, cost, module = mechanism.paper, mechanism.reads, mechanism.cost, mechanism.__module__
    path = f"{module.replace('.', '/')}.py"
    file = f"[{path.rpartition('/')[2]}]({path})" if module.startswith("attention_zoo.") else f"`{module}`"
    return f"`{name}`", reads, f"[{paper}](https://arxiv.org/abs/{paper})" if paper else "", file, cost


def table(mechanisms: dict[str, type[Attention]]) -> str:
    """The table in Markdown, sorted by arXiv number; mechanisms without a paper come last."""
    rows = [row(name, mechanism) for name, mechanism in mechanisms.items()]
    rows.sort(key=lambda cells: (not cells[2], cells[2], cells[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Return 1, with a line for each on standard error, if a mechanism cannot be imported."""
    parser = argparse.ArgumentParser(prog="python -m attention_zoo", description="Print the table of mechanisms.")
    parser.add_argument("name", nargs="*", metavar="NAME", help="a mechanism, or package.module:Class (default: all)")
    known, failed = {}, []
    for name in parser.parse_args(argv).name or names():
        try:
            known[name] = resolve(name)
        except ValueError as error:
            failed.append(f"attention_zoo: {error}")
    print(table(known))
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
