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

# paper, what a query reads, MACs: until the classes say so themselves
TEXTS = {
    "vanilla": ("1706.03762", "all tokens", "4NC² + 2N²C"),
    "swin": ("2103.14030", "a window of M x M tokens, shifted in every other block", "4NC² + 2M²NC"),
    "cswin": (
        "2107.00652",
        "a stripe, w tokens wide: down with half of the heads, across with the others",
        "4NC² + w(H+W)NC",
    ),
    "maxvit": (
        "2204.01697",
        "a window of M x M tokens; in every other block a dilated grid of M x M",
        "4NC² + 2M²NC",
    ),
    "crossformer": (
        "2108.00154",
        "a group of G x G neighbours; in every other block G x G tokens that lie an interval apart",
        "4NC² + 2G²NC",
    ),
    "dat": (
        "2201.00520",
        "N' sampled points (deformable), the same ones for all queries",
        "2(N+N')C² + 2NN'C + offset network",
    ),
    "bra": (
        "2303.08810",
        "the tokens of the top k of R regions, chosen by content (bi-level routing)",
        "4NC² + R²C + 2k(N/R)NC",
    ),
    "sliding": ("2204.07143", "its own neighbourhood of K x K tokens", "4NC² + 2K²NC"),
    "axial": ("1912.12180", "its row, then its column", "4NC² + 2(H+W)NC"),
    "crisscross": ("1811.11721", "its row and its column at once", "4NC² + 2(H+W)NC"),
    "pvt": ("2102.12122", "all of a map that is reduced by r x r", "3NC² + 2(N/r²)C² + 2(N²/r²)C"),
    "sep": (
        "2104.13840",
        "a window of M x M tokens; in every other block all of a map that is reduced by r x r",
        "as swin, then as pvt",
    ),
}


def row(name: str, mechanism: type[Attention]) -> tuple[str, ...]:
    """Cells of one mechanism, in the order of `HEAD`."""
    declared = (getattr(mechanism, attribute, "") for attribute in ("paper", "reads", "cost"))
    paper, reads, cost = (own or text for own, text in zip(declared, TEXTS.get(name, ("",) * 3), strict=True))
    module = mechanism.__module__
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
