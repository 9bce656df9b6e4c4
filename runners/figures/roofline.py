"""Roofline: how fast a forward pass computes, against how much it computes for each byte that it moves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from pandas import DataFrame

from runners.figures import style
from runners.figures.frames import failures, intervals, labels
from runners.measures import LATENCY

COLUMNS = (
    *("height_px", "width_px", "executed_gmacs", "infer_latency_ms"),
    *("traffic_mib", "gemm_gflops", "copy_gb_s"),
)
SIZE = (9.5, 5.6)


def draw_roofline(figure: SubFigure, rows: DataFrame, unmeasured: Mapping[str, int]) -> None:
    """Draw achieved GFLOP/s against FLOP per byte under the measured ceilings, a line for each mechanism.

    Raises:
        ValueError: no row has MACs, latency, traffic and both ceilings.
    """
    rows = rows.assign(line=labels(rows, apart=("resolution",)))
    gflop = 2 * rows["executed_gmacs"] * rows["batch_size"]
    rows = rows.assign(
        intensity=(gflop * 1e9 / (rows["traffic_mib"] * 2**20)).astype("Float64"),
        achieved=(gflop / rows["infer_latency_ms"] * 1e3).astype("Float64"),
    )
    complete = rows[rows[["achieved", "intensity", "gemm_gflops", "copy_gb_s"]].notna().all(axis=1)]
    if complete.empty:
        raise ValueError(
            "no row has executed_gmacs, infer_latency_ms, traffic_mib, gemm_gflops and copy_gb_s together; "
            "measure flops and throughput (tables of earlier versions lack the ceilings)"
        )
    ax = figure.subplots()
    styles = style.looks(rows["line"])
    for line, look in styles.items():
        own = complete[complete["line"] == line]
        if len(own):
            # repeats of a cell have one intensity: their seeds do the same work
            style.plot_repeats(ax, intervals(own, "achieved", "intensity"), look, style.wrapped(line), bars=True)
    lines, sizes = rows["line"].to_dict(), rows["resolution"].to_dict()
    marks = [
        (None, f"{lines[index]} {sizes[index]}", status, styles[lines[index]])
        for index, status in failures(rows, LATENCY).items()
    ]
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="arithmetic intensity (FLOP per byte that operators move)", ylabel="achieved (GFLOP/s)")
    draw_roofs(ax, complete)
    for axis in (ax.xaxis, ax.yaxis):
        style.plain_log(axis)
    style.mark_failures(ax, marks)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3.2)
    note = (
        "One forward of a batch: 2 x executed MACs over its median latency; mean and 95% interval over seeds. Lines "
        "join the maps of a mechanism. Bytes: what its operators read and write, each tensor once per operator, no "
        "cache assumed, so a point above the slope kept data in a cache. Ceilings: median of what the cells' own "
        "processes measured (band: lowest to highest), a large matrix product and a large copy."
    )
    style.caption(figure, complete, note, unmeasured)


def draw_roofs(ax: Axes, rows: DataFrame) -> None:
    """Draw min(copy x intensity, GEMM) for each precision, with the band of what the rows' processes measured."""
    gemm, copy = rows["gemm_gflops"].astype(float), rows["copy_gb_s"].astype(float)
    style.limit(ax, [*rows["achieved"], gemm.max(), (copy * rows["intensity"].astype(float)).min()], log=True)
    style.limit(ax, [*rows["intensity"], float((gemm / copy).max()) * 2], log=True, axis="x")
    xs = np.geomspace(*ax.get_xlim(), 200)
    for (precision, own), line in zip(rows.groupby("precision"), ("-", *style.LINES[1:]), strict=False):
        gemm, copy = own["gemm_gflops"].astype(float), own["copy_gb_s"].astype(float)

        lowest, roof, highest = (np.minimum(float(copy.quantile(q)) * xs, float(gemm.quantile(q))) for q in (0, 0.5, 1))
        ax.fill_between(xs, lowest, highest, color=style.GUIDE, alpha=0.15, linewidth=0, zorder=1)
        ax.plot(xs, roof, color="black", linestyle=line, linewidth=1.2, zorder=2, scalex=False, scaley=False)
        peak, rate = float(np.median(gemm)), float(np.median(copy))
        middle = (xs[0] * peak / rate) ** 0.5
        text: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
        ax.annotate(f"matrix product {peak:.3g} GFLOP/s, {precision}", (xs[-1], peak), xytext=(-2, 3), **text)
        ax.annotate(f"copy {rate:.3g} GB/s", (middle, rate * middle), xytext=(-8, 8), **text)
