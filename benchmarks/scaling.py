"""How the time of one module grows with the tokens of its map."""

from collections.abc import Sequence
from typing import Any

import torch

from attention_zoo import create, names
from benchmarks.claims import Measured, Row
from benchmarks.pairs import Spread
from benchmarks.sections import Run, Task, timed
from runners.rows.stats import fit_exponent

SIDES = (14, 28, 42, 56, 70, 84, 98, 112, 126)
FROM_TOKENS = 56**2
MIN_POINTS = 4
DIM, HEADS, BATCH = 64, 2, 1

# what a mechanism is called here: its name, its configuration, and the exponent that is wanted, at most
CURVES: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "bra, 7 regions per side": ("bra", {"regions": 7, "topk": 4}, None),
    "bra, region_size=auto": ("bra", {"region_size": "auto", "topk": 4}, 1.4),
    **{name: (name, {}, None) for name in names() if name != "bra"},
}

EXPECTED = {"bra, 7 regions per side": "about 1.7", "vanilla": "about 1.9"}
MAX_TOKENS = {"dat": 98**2}
"""Curves that end earlier: DAT interpolates a bias for every pair of tokens, gigabytes of it on the largest maps."""


def scaling(rounds: int) -> list[Task]:
    """Forward passes of every curve on every map."""

    def task(side: int) -> Task:
        def contenders() -> dict[str, Run]:
            x = torch.randn(BATCH, side, side, DIM)
            return {
                curve: _forward(name, config, x)
                for curve, (name, config, _) in CURVES.items()
                if side * side <= MAX_TOKENS.get(curve, side * side)
            }

        return timed("scaling", f"{side}x{side}", rounds, contenders, tokens=side * side)

    return [task(side) for side in SIDES]


def _forward(name: str, config: dict[str, Any], x: torch.Tensor) -> Run:
    attention = create(name, dim=DIM, num_heads=HEADS, **config).eval()

    def run() -> object:
        with torch.inference_mode():
            return attention(x)

    return run


def slopes(measured: Sequence[Measured]) -> list[Row]:
    """Fit each curve whose points are among these measurements, on large maps alone; quartiles are a 50 % interval."""
    points = [one for one in measured if one.tokens is not None and one.tokens >= FROM_TOKENS and one.failed is None]
    rows = []
    for curve, (_, _, limit) in CURVES.items():
        known = {one.tokens or 0: Spread.of(one.samples[curve]).median for one in points if curve in one.samples}
        if len(known) < MIN_POINTS:
            continue
        fit = fit_exponent(known.keys(), known.values(), confidence=0.5)
        assert fit.low is not None
        assert fit.high is not None
        spread = Spread(fit.exponent, fit.low, fit.high, fit.n)
        wanted = EXPECTED.get(curve, "") if limit is None else f"below {limit:g}"
        verdict = "" if limit is None else "met" if fit.exponent < limit else "SHORT"
        rows.append(Row("scaling", f"{len(known)} maps", curve, "", spread, wanted, verdict))
    return rows
