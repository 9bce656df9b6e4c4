"""Roofline: how fast a forward pass computes, against how much it computes for each byte that it moves."""

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame

from runners.figures.frames import disturbed, failures, intervals, labels, seeds_of
from runners.figures.lines import CROWD, colour_key, crowd_note, point_names, reach_of
from runners.figures.looks import LINES, Look, looks
from runners.figures.marks import (
    DISTURBED,
    GUIDE,
    Failed,
    draw_disturbed,
    draw_intervals,
    limit,
    mark_failures,
    plain_log,
)
from runners.figures.placing import Tag
from runners.figures.sheet import Sheet
from runners.measures import LATENCY
from runners.rows.selection import models

COLUMNS = (
    *("height_px", "width_px", "executed_gmacs", "infer_latency_ms"),
    *("traffic_mib", "gemm_gflops", "copy_gb_s"),
)

HEIGHT = 3.2
"""Of the panel, inches."""


def draw_roofline(sheet: Sheet, rows: DataFrame) -> None:
    """Draw achieved GFLOP/s against FLOP per byte under the measured ceilings, a line for each mechanism.

    Raises:
        ValueError: no row has MACs, latency, traffic and both ceilings.
    """
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    gflop = 2 * rows["executed_gmacs"] * rows["batch_size"]
    rows = rows.assign(
        intensity=(gflop * 1e9 / (rows["traffic_mib"] * 2**20)).astype("Float64"),
        achieved=(gflop / rows["infer_latency_ms"] * 1e3).astype("Float64"),
        pixels=rows["height_px"] * rows["width_px"],
    )
    complete = rows[rows[["achieved", "intensity", "gemm_gflops", "copy_gb_s"]].notna().all(axis=1)]
    if complete.empty:
        raise ValueError(
            "no row has executed_gmacs, infer_latency_ms, traffic_mib, gemm_gflops and copy_gb_s together; "
            "measure flops and throughput (tables of earlier versions lack the ceilings)"
        )
    styles = looks(rows["line"], models(rows))
    (ax,) = sheet.panels(1, HEIGHT)
    ax.set(xscale="log", yscale="log", xlabel="FLOP per byte that operators move", ylabel="achieved (GFLOP/s)")
    _draw_roofs(sheet, ax, complete)
    for axis in (ax.xaxis, ax.yaxis):
        plain_log(axis)
    is_crowded = len(styles) > CROWD * sheet.size.columns
    names = point_names(sheet, styles, is_crowded)
    for line, look in styles.items():
        own = complete[complete["line"] == line]
        if len(own):
            sheet.tag(Tag(ax, names[line], _draw_line(ax, own, line, look), look.ink, farthest=reach_of(names)))
    sheet.key(colour_key(sheet, styles) if is_crowded else [])
    lines, sizes = rows["line"].to_dict(), rows["resolution"].to_dict()
    failed = [Failed(None, lines[i], f"{sizes[i]} {status}") for i, status in failures(rows, LATENCY).items()]
    mark_failures(sheet, ax, failed, styles)
    high, seeds = seeds_of(complete, ("line", "pixels"))
    notes = [
        f"One forward of a batch: 2 x executed MACs over its median latency; {'mean over ' * (high > 1)}{seeds}"
        f"{', with 95% intervals' * (high > 1)}. Lines join the maps of a mechanism. Bytes: what its operators read "
        "and write, each tensor once per operator, no cache assumed, so a point above the slope kept data in a cache. "
        "Ceilings: median of what the cells' own processes measured (band: lowest to highest), a large matrix product "
        "and a large copy.",
    ]
    if is_crowded:
        notes.append(crowd_note(sheet, styles))
    if disturbed(complete, LATENCY).any():
        notes.append(DISTURBED)
    sheet.caption(complete, notes)


def _draw_line(ax: Axes, rows: DataFrame, line: str, look: Look) -> list[tuple[float, float]]:
    """Draw the maps of a line by their size, and return its points, the largest first."""
    speeds = intervals(rows, "achieved", "pixels")
    # repeats of a cell do the same work, and have one intensity
    intensities = rows.groupby("pixels")["intensity"].mean()
    points = [(float(intensities[pixels]), speed.mean, speed) for pixels, speed in speeds.items()]
    means = [(x, mean) for x, mean, _ in points]
    ax.plot(*zip(*means, strict=True), label=line, zorder=3, **look.style())
    draw_intervals(ax, points, look)
    hollow = set(rows.loc[disturbed(rows, LATENCY), "pixels"])
    draw_disturbed(ax, [at for at, pixels in zip(means, speeds, strict=True) if pixels in hollow], look)
    return means[::-1]


def _draw_roofs(sheet: Sheet, ax: Axes, rows: DataFrame) -> None:
    """Draw min(copy x intensity, GEMM) for each precision, with the band of what the rows' processes measured."""
    gemm, copy = rows["gemm_gflops"].astype(float), rows["copy_gb_s"].astype(float)
    limit(ax, [*rows["achieved"], gemm.max(), (copy * rows["intensity"].astype(float)).min()], log=True)
    limit(ax, [*rows["intensity"], float((gemm / copy).max()) * 2], log=True, axis="x")
    xs = np.geomspace(*ax.get_xlim(), 200)
    for (precision, own), line in zip(rows.groupby("precision"), ("-", *LINES[1:]), strict=False):
        gemm, copy = own["gemm_gflops"].astype(float), own["copy_gb_s"].astype(float)
        lowest, roof, highest = (np.minimum(float(copy.quantile(q)) * xs, float(gemm.quantile(q))) for q in (0, 0.5, 1))
        ax.fill_between(xs, lowest, highest, color=GUIDE, alpha=0.15, linewidth=0, zorder=1)
        ax.plot(xs, roof, color=GUIDE, linestyle=line, linewidth=1.0, zorder=2, label="_roof")
        top = float(gemm.median())
        flat, slope = roof >= top * 0.999, (roof < top * 0.999) & (roof > ax.get_ylim()[0])
        for texts, where in (
            ((f"matrix product {_spell(top)} GFLOP/s, {precision}", f"{_spell(top)} GFLOP/s, {precision}"), flat),
            ((f"copy {_spell(copy.median())} GB/s",), slope),
        ):
            points = [(float(xs[i]), float(roof[i])) for i in np.flatnonzero(where)[::12]]
            if points:
                sheet.tag(Tag(ax, texts, points, GUIDE, rank=0))


def _spell(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"
