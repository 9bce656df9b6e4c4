"""Complexity curves: cost against the size of the map, the fitted exponents, and what theory says."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from matplotlib.axes import Axes
from pandas import DataFrame

import attention_zoo
from runners.figures.frames import conditions, disturbed, failures, labels, seeds_of, shown
from runners.figures.lines import line_panels, name_lines, shade_notes
from runners.figures.looks import Look, looks
from runners.figures.marks import (
    DISTURBED,
    GUIDE,
    Failed,
    draw_disturbed,
    draw_intervals,
    draw_means,
    draw_seeds,
    failed_rows,
    limit,
    mark_failures,
    plain_log,
    plain_ticks,
)
from runners.figures.mechanisms import exponent
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet, titled
from runners.measures import FIRST_CORE_MACS, LATENCY, MACS, MEMORY, Quantity
from runners.rows.selection import models
from runners.rows.stats import Fit, Interval, fit_exponent, mean_interval

QUANTITIES = (FIRST_CORE_MACS, MACS, LATENCY, MEMORY)
COLUMNS = ("height_px", "width_px", *(quantity.column for quantity in QUANTITIES))

STEM_PX = 4
"""Pixels along the side of a token of the first stage, in every layout."""


def draw_complexity(sheet: Sheet, rows: DataFrame) -> None:
    """Draw MACs, latency and peak memory against tokens, a line for each mechanism and setting.

    What was measured at one size is a point.

    Raises:
        ValueError: no line has two sizes, or nothing was measured.
    """
    rows = rows.assign(tokens=(rows["height_px"] * rows["width_px"] / STEM_PX**2).astype(float))
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    sizes = rows.groupby("line")["tokens"].nunique()
    if sizes.max() < 2:
        raise ValueError("no mechanism was measured at two resolutions: a curve needs --resolution with two values")
    # one size under the conditions of a curve is a point; under conditions without a curve it is no part of the figure
    under = conditions(rows, ("resolution",))
    with_curve = under.isin(set(under[rows["line"].isin(sizes[sizes > 1].index)]))
    left_out = sorted(set(under[~with_curve]))
    rows = rows[with_curve]
    # named again, since what tells lines apart may have been left out with the others
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    styles = looks(rows["line"], models(rows))
    quantities = shown(rows, QUANTITIES)
    for ax, quantity in zip(line_panels(sheet, len(quantities), styles), quantities, strict=True):
        complexity_curve(sheet, ax, rows, quantity, styles)
    high, seeds = seeds_of(rows, ("line", "tokens"))
    notes = [f"Geometric mean over {seeds}, with 95% intervals." if high > 1 else "One seed."]
    notes.append(
        "Beside a name: the exponent of its line (least squares on logarithms of the "
        f"{'means' if high > 1 else 'values'}), ± half of its 95% interval. Dashed: slopes of the core's closed "
        "form; the network around it is linear in tokens."
    )
    if left_out:
        notes.append(f"Left out, since measured at one size: {'; '.join(left_out)}.")
    notes += shade_notes(sheet, styles)
    if any(disturbed(rows, quantity).any() for quantity in quantities):
        notes.append(DISTURBED)
    sheet.caption(rows, notes)


def complexity_curve(sheet: Sheet, ax: Axes, rows: DataFrame, quantity: Quantity, styles: Mapping[str, Look]) -> None:
    """Draw one quantity against tokens, both logarithmic; `rows` has the columns `tokens` and `line` too."""
    points = {line: geometric_intervals(rows[rows["line"] == line], quantity.column) for line in styles}
    points = {line: found for line, found in points.items() if found}
    failed = _failed(rows, quantity)
    ax.set(xscale="log", yscale="log", xlabel="tokens of the first stage", ylabel=quantity.unit)
    ax.set_title(titled(quantity.title), loc="left")
    means = [point for found in points.values() for point in found.values()]
    ends = [end for point in means for end in (point.low, point.high)]
    limit(ax, [point.mean for point in means], ends, log=True, room=0.07 * failed_rows(failed))
    limit(ax, rows["tokens"], log=True, axis="x")
    plain_ticks(ax, rows["tokens"])
    plain_log(ax.yaxis)
    unsteady = rows[disturbed(rows, quantity)]
    for line, found in points.items():
        look = styles[line]
        draw_means(ax, found, look, line)
        draw_seeds(ax, rows[(rows["line"] == line) & (rows[quantity.column] > 0)], "tokens", quantity.column, look)
        draw_intervals(ax, [(x, point.mean, point) for x, point in found.items()], look)
        hollow = set(unsteady.loc[unsteady["line"] == line, "tokens"])
        draw_disturbed(ax, [(x, point.mean) for x, point in found.items() if x in hollow], look)
    if quantity is FIRST_CORE_MACS and means:
        _draw_guides(sheet, ax, rows, min(point.mean for point in means))
    lasts = {line: (max(found), found[max(found)].mean) for line, found in points.items()}
    name_lines(sheet, ax, lasts, styles, lambda own: spell_fits([fit_points(points[line]) for line in own]))
    mark_failures(sheet, ax, failed, styles)


def _failed(rows: DataFrame, quantity: Quantity) -> list[Failed]:
    """A failure for each line and size that lost a row."""
    why = failures(rows, quantity)
    lost = rows[rows.index.isin(list(why))].drop_duplicates(["line", "tokens"])
    return [Failed(float(t), line, why[i]) for i, t, line in zip(lost.index, lost["tokens"], lost["line"], strict=True)]


def geometric_intervals(rows: DataFrame, column: str) -> dict[float, Interval]:
    """Geometric mean of the repeats at each number of tokens, and its t-interval on the logarithms."""
    found = {}
    for tokens, values in rows.loc[rows[column] > 0, ["tokens", column]].groupby("tokens")[column]:
        logs = mean_interval(np.log(values.astype(float)))
        low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
        found[float(tokens)] = Interval(float(np.exp(logs.mean)), low, high, logs.n)  # type: ignore[arg-type]
    return found


def fit_points(points: Mapping[float, Interval]) -> Fit | None:
    """Fit the exponent of a line to its means, since repeats of one size say nothing of growth; None for one size."""
    return fit_exponent(points, [point.mean for point in points.values()]) if len(points) > 1 else None


def spell_fits(fits: Sequence[Fit | None]) -> str:
    """The exponent of a line, with half of its interval where more than two sizes give one; of several, their range."""
    known = [fit for fit in fits if fit is not None]
    if len(known) > 1:
        exponents = sorted(fit.exponent for fit in known)
        return f"{exponents[0]:.2f} to {exponents[-1]:.2f}"
    return "".join(f"{fit.exponent:.2f}" + (f" ± {fit.high - fit.exponent:.2f}" if fit.high else "") for fit in known)


def _draw_guides(sheet: Sheet, ax: Axes, rows: DataFrame, y: float) -> None:
    """Draw the slopes of the rows' closed forms from the lowest point on, dashed, with their powers beside them."""
    kinds = rows.drop_duplicates(["subject", "configuration"])
    found = {exponent(name, own) for name, own in zip(kinds["subject"], kinds["settings"], strict=True)}
    x, right, top = float(rows["tokens"].min()), ax.get_xlim()[1], ax.get_ylim()[1]
    for slope in sorted(slope for slope in found if slope):
        # where the line leaves the axes, on the right or on top
        end = min(right, x * (top / y) ** (1 / float(slope)))
        xs = np.geomspace(x, end, 21)
        ys = y * (xs / x) ** float(slope)
        ax.plot(xs[[0, -1]], ys[[0, -1]], color=GUIDE, ls=(0, (4, 3)), lw=0.7, zorder=1.5, label="_guide")
        along = [(float(xs[i]), float(ys[i])) for i in (18, 16, 14, 12, 10, 8)]
        sheet.tag(Tag(ax, (power(slope),), along, GUIDE, rank=5, is_on_line=True, is_math=True))


def power(slope: Fraction) -> str:
    """N to that power, in matplotlib's mathematics."""
    return "$N$" if slope == 1 else f"$N^{{{slope}}}$"


def core_macs(name: str, sides: Iterable[int], dim: int = 96, heads: int = 3, **config: object) -> dict[float, float]:
    """MACs of one attention core, routing included, against tokens, for square maps of these sides.

    The projections and position terms, which every mechanism has and which are linear in tokens, are left out.
    """
    with torch.device("meta"):
        attention = attention_zoo.create(name, dim=dim, num_heads=heads, **config)
    parts = {side * side: attention.macs(side, side) for side in sides}
    return {float(tokens): float(macs.core + macs.routing) for tokens, macs in parts.items()}
