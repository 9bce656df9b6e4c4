"""Compare two result sets, such as two versions of one's own mechanism: `python runners/compare.py A B`.

Cells of one key on one device are compared; MACs and parameters, which do not depend on the device, wherever they were
counted. Each configuration gets the ratio B / A of every metric, as the geometric mean over its seeds, with a 95 %
interval:
- two seeds or more: the t-interval of the logarithms of the ratios;
- one seed, timed in several processes: Welch's t-interval of the logarithms over the processes of both, of a speed-up
  over vanilla from its own interval, of a time from raw samples in both results folders;
- one seed of the earlier protocol 1, timed in one process: from the intervals of both medians (sign test, each at
  97.5 %, so that the ratio's holds with 95 %), which leave the luck of the process out;
- counts do not vary, and their ratio is exact.
A metric got worse if its ratio is beyond the limit and the interval lies wholly on the worse side of 1. Without an
interval it is not judged. A cell that was ok in A and failed in B got worse.
"""

import sys

if __name__ == "__main__":
    # as in sweep.py
    sys.path[0] = ""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ablations.values import Argument
from runners.cli.command import Parser, add_flag, command
from runners.cli.program import run_program
from runners.measures import MEASURES, NOT_FAILED, QUANTITIES, SPEED_UP, TRAINING_SPEED_UP, Quantity
from runners.rows.row_ratio import ReadSamples, raw_samples, row_interval
from runners.rows.selection import devices, read_rows
from runners.rows.stats import mean_interval

EXAMPLES = """examples:
  python runners/compare.py results/before results/after
  python runners/compare.py main.csv branch.csv --fail-above 5%"""

IDENTITY = ("cell_key", "device_id", "configuration", "conditions", "seed", "status")

COMPARED = (*QUANTITIES, SPEED_UP, TRAINING_SPEED_UP)


@dataclass(frozen=True)
class Change:
    """Ratio B / A of one metric of one configuration; without `low` and `high` it is known to no precision."""

    configuration: str
    conditions: str
    metric: Quantity
    before: float
    after: float
    ratio: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """`better` or `worse`, `tie` where the interval does not tell them apart, `not judged` without an interval."""
        if self.low is None or self.high is None:
            return "not judged"
        if self.low <= 1 <= self.high:
            return "tie"
        return "better" if (self.ratio > 1) == self.metric.higher_is_better else "worse"

    def is_worse_than(self, limit: float) -> bool:
        """Whether it got worse by more than a share, beyond noise."""
        loss = 1 - self.ratio if self.metric.higher_is_better else self.ratio - 1
        return self.verdict == "worse" and loss > limit


def percentage(text: str) -> float:
    """Read 5% or 5 as 0.05."""
    if not re.fullmatch(r"\d{1,4}(\.\d+)?%?", text):
        raise ValueError(f"{text!r} is not a percentage of at least 0, such as 5%")
    return float(text.removesuffix("%")) / 100


def make_parser() -> Parser:
    """Declare every flag."""
    parser = Parser("compare.py", "Compare two result sets: ratios B / A with 95 % intervals.", EXAMPLES)
    parser.add_argument("a", metavar="A", type=Path, help="results folder before, or a table saved as CSV")
    parser.add_argument("b", metavar="B", type=Path, help="the same after")
    add_flag(parser, Argument("study", str, "NAME", "rows of this study alone"))
    fail = "exit with 1 if a metric got worse by more than this, beyond noise, or a cell fails that did not"
    add_flag(parser, Argument("fail_above", percentage, "PERCENT", fail))
    return parser


def pair(a: pd.DataFrame, b: pd.DataFrame, exact: bool) -> pd.DataFrame:
    """Rows of both, side by side as `_a` and `_b`, by cell and device; without the device for `exact` metrics."""
    keys = ["cell_key"] if exact else ["cell_key", "device_id"]
    if exact:
        a, b = (rows.drop_duplicates("cell_key") for rows in (a, b))
    return a.merge(b, on=keys, suffixes=("_a", "_b"))


def changes(a: pd.DataFrame, b: pd.DataFrame, samples: ReadSamples) -> Iterator[Change]:
    """Every metric of every configuration that both have; `samples(side, row, metric)` are raw ones, if any."""
    for metric in COMPARED:
        both = pair(a, b, metric.is_exact)
        before, after = f"{metric.column}_a", f"{metric.column}_b"
        if before not in both or after not in both:
            continue
        both = both[(both[before] > 0).fillna(False) & (both[after] > 0).fillna(False) & _same_protocol(both, metric)]
        for (conditions, configuration), rows in both.groupby(["conditions_a", "configuration_a"], sort=False):
            logs = [math.log(y / x) for x, y in zip(rows[before], rows[after], strict=True)]
            low, high = _interval(metric, rows, logs, samples)
            yield Change(
                str(configuration),
                str(conditions),
                metric,
                float(rows[before].mean()),
                float(rows[after].mean()),
                math.exp(sum(logs) / len(logs)),
                low,
                high,
                len(logs),
            )


def _same_protocol(both: pd.DataFrame, metric: Quantity) -> "pd.Series[bool]":
    column = f"{metric.measure}_protocol"
    return (both[f"{column}_a"] == both[f"{column}_b"]).fillna(True).astype(bool)


def _interval(
    metric: Quantity, rows: pd.DataFrame, logs: Sequence[float], samples: ReadSamples
) -> tuple[float | None, float | None]:
    if metric.is_exact:
        ratio = math.exp(sum(logs) / len(logs))
        return ratio, ratio
    if len(logs) > 1:
        mean = mean_interval(logs)
        return math.exp(mean.low or 0.0), math.exp(mean.high or 0.0)
    return row_interval(metric, rows.iloc[0], samples)


def failed_since(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Cells that were ok in A and failed in B, each with its status."""
    both = pair(a, b, exact=False)
    now = both[(both["status_a"] == "ok") & ~both["status_b"].isin(NOT_FAILED)]
    return [
        f"{name} seed {seed} ({status})"
        for name, seed, status in zip(now["configuration_b"], now["seed_b"], now["status_b"], strict=True)
    ]


def notes(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
    """What was not compared, and why."""
    keys_a, keys_b = set(a["cell_key"]), set(b["cell_key"])
    for only, where in ((keys_a - keys_b, "A"), (keys_b - keys_a, "B")):
        if only:
            yield f"{len(only)} {'cell is' if len(only) == 1 else 'cells are'} in {where} alone"
    apart = keys_a & keys_b - set(pair(a, b, exact=False)["cell_key"])
    if apart:
        on_a, on_b = (", ".join(devices(rows[rows["cell_key"].isin(apart)])) or "none" for rows in (a, b))
        yield (
            f"{len(apart)} {'cell was' if len(apart) == 1 else 'cells were'} measured on different devices "
            f"(A: {on_a}; B: {on_b}); only MACs and parameters are compared"
        )
    both = pair(a, b, exact=False)
    for name in sorted(MEASURES):
        differing = (both[f"{name}_protocol_a"] != both[f"{name}_protocol_b"]).fillna(False)
        if differing.any():
            yield f"{name} of {int(differing.sum())} cells has another protocol version in B and is not compared"
    for side in "ab":
        marked = both.get(f"disturbed_{side}", pd.Series(dtype="boolean")).fillna(False)
        if marked.any():
            yield f"other work disturbed the timing of {int(marked.sum())} cells in {side.upper()}, see `disturbance`"


def show(compared: Iterable[Change]) -> str:
    """A line for each change, those that got worse first."""
    order = ("worse", "not judged", "better", "tie")
    lines = [
        {
            "configuration": change.configuration,
            "conditions": change.conditions,
            "metric": change.metric.heading,
            "A": f"{change.before:.4g}",
            "B": f"{change.after:.4g}",
            "B / A": f"{change.ratio:.3f}",
            "95 % interval": "-" if change.low is None else f"{change.low:.3f} to {change.high:.3f}",
            "seeds": change.pairs,
            "": change.verdict,
        }
        for change in sorted(compared, key=lambda change: order.index(change.verdict))
    ]
    table = pd.DataFrame(lines)
    if (table["conditions"] == "all rows").all():
        table = table.drop(columns="conditions")
    return table.to_string(index=False)


def read(path: Path, study: str | None) -> pd.DataFrame:
    """Rows of one side, with their configuration.

    Raises:
        ValueError: from `read_rows`.
    """
    rows = read_rows(path, study)
    ends = [name for metric in COMPARED for name in metric.interval or ()]
    protocols = [f"{measure}_protocol" for measure in MEASURES]
    columns = [*IDENTITY, "timing_processes", "disturbed", *ends, *protocols, *(metric.column for metric in COMPARED)]
    return rows[[name for name in columns if name in rows]]


@command("compare.py")
def main(argv: Sequence[str]) -> int:
    """Run the command line; 0, 1 if a metric got worse beyond `--fail-above`, 2 with one line for bad input."""
    options = make_parser().parse_args(argv)
    a, b = read(options.a, options.study), read(options.b, options.study)
    compared = list(changes(a, b, raw_samples(options.a, options.b)))
    failed = failed_since(a, b)
    if not compared and not failed:
        reasons = "; ".join(notes(a, b)) or "no metric was measured in both"
        raise ValueError(f"nothing to compare in {options.a} and {options.b}: {reasons}")
    if compared:
        print(show(compared))
    for note in notes(a, b):
        print(f"note: {note}")
    for cell in failed:
        print(f"failed in B: {cell}")
    unjudged = sum(change.verdict == "not judged" for change in compared)
    if unjudged:
        print(f"note: {unjudged} not judged: one seed without raw samples tells no noise; measure with --seeds 0,1,2")
    if options.fail_above is None:
        return 0
    worse = [change for change in compared if change.is_worse_than(options.fail_above)]
    for change in worse:
        name = f"{change.configuration} ({change.conditions}) {change.metric.name}"
        print(f"worse by more than {options.fail_above:.3g}: {name}, {change.ratio:.3f} times A")
    return int(bool(worse or failed))


if __name__ == "__main__":
    run_program(main)
