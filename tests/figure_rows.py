"""Tables for the tests of figures, whose costs are powers of the tokens and whose accuracies are known."""

from pathlib import Path
from typing import Any

import pandas as pd

from runners.store.columns import COLUMNS

(SAMPLE,) = (Path(__file__).parents[1] / "results").glob("sample_*.csv")
"""A committed table of mechanisms at several sizes."""

COMMON = {
    "status": "ok",
    "layout": "small",
    "precision": "fp32",
    "compile": False,
    "sdpa": "auto",
    "memory_format": "contiguous",
    "deterministic": False,
    "cudnn_benchmark": False,
    "data": "digit-vote",
    "steps": 400,
    "batch_size": 8,
    "threads": 1,
    "device_id": "cpu-test-1t",
    "device_name": "Test Processor",
    "versions": "attention-zoo=0.1.0;torch=2.14.1",
}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table as `load` returns it, of rows that give what they have."""
    found = pd.DataFrame([{**COMMON, **row} for row in rows])
    data = {
        name: found[name].astype(c.dtype) if name in found else pd.array([None] * len(found), dtype=c.dtype)
        for name, c in COLUMNS.items()
    }
    return pd.DataFrame(data)


def growing(**changes) -> list[dict[str, Any]]:
    """Rows of vanilla, swin and bra at four sizes and three seeds, whose costs are powers of the tokens."""
    rows = []
    for attention, settings, exponent in (
        ("vanilla", None, 2.0),
        ("swin", None, 1.0),
        ("bra", "region_size=auto", 1.3),
    ):
        for side in (64, 128, 192, 256):
            for seed in range(3):
                tokens = (side / 4) ** 2
                # the same for each size, so that the means follow the power exactly
                noise = 1 + 0.05 * (seed - 1)
                rows.append(
                    {
                        "cell_key": f"{attention}{side}{seed}",
                        "attention": attention,
                        "settings": settings,
                        "height_px": side,
                        "width_px": side,
                        "resolution": f"{side}x{side}",
                        "seed": seed,
                        "first_core_gmacs": 1e-7 * tokens**exponent,
                        "gmacs": 1e-5 * tokens,
                        "executed_gmacs": 1e-5 * tokens,
                        "infer_latency_ms": 0.02 * tokens**exponent * noise,
                        "peak_infer_mib": 2 * tokens**0.8,
                        "traffic_mib": 0.05 * tokens,
                        "gemm_gflops": 100.0 + seed,
                        "copy_gb_s": 10.0,
                        "throughput_status": "ok",
                    }
                )
    return [{**row, **changes} for row in rows]


def trained() -> list[dict[str, Any]]:
    """Rows of bra at three top-k and of vanilla, three seeds each, with accuracies and costs."""
    settings = {("bra", 1): (55, 10), ("bra", 4): (85, 12), ("bra", 16): (95, 20), ("vanilla", None): (96, 15)}
    return [
        {
            "cell_key": f"{attention}{topk}{seed}",
            "attention": attention,
            "settings": f"topk={topk}" if topk else None,
            "topk": topk,
            "region_size": f"{topk or 4}x{topk or 4}-2x2",
            "resolution": "64x64",
            "height_px": 64,
            "width_px": 64,
            "seed": seed,
            "acc1": acc1 + spread,
            "gmacs": cost / 1000,
            "infer_latency_ms": cost + 0.3 * spread,
            "peak_infer_mib": 2.0 * cost,
            "train_step_ms": 3 * cost + 0.2 * spread,
            "accuracy_status": "ok",
            "throughput_status": "ok",
        }
        for (attention, topk), (acc1, cost) in settings.items()
        for seed, spread in enumerate((-1.0, 0.2, 1.1))
    ]


def settings(count: int, seeds: int = 3, sides: tuple[int, ...] = (64,)) -> list[dict[str, Any]]:
    """Rows of bra in that many settings of top-k and region size, and of swin and vanilla."""
    kinds: list[tuple[str, str | None, int | None]] = [("vanilla", None, None), ("swin", None, None)]
    kinds += [("bra", f"topk={2 ** (i % 5)};region_size={2 + i // 5}", 2 ** (i % 5)) for i in range(count)]
    return [
        {
            "cell_key": f"{attention}{text}{side}{seed}",
            "attention": attention,
            "settings": text,
            "topk": topk,
            "region_size": f"{2 + i // 5}x{2 + i // 5}-2x2",
            "height_px": side,
            "width_px": side,
            "resolution": f"{side}x{side}",
            "seed": seed,
            "acc1": 60 + 30 * (i % 7) / 7 + i / 10 + seed,
            "chance_percent": 10.0,
            "ceiling_percent": 61.1,
            "first_core_gmacs": 1e-7 * side**2 * (1 + i / 9),
            "gmacs": 1e-5 * side**2 * (1 + i / 9),
            "executed_gmacs": 1e-5 * side**2 * (1 + i / 9),
            "infer_latency_ms": 0.02 * side**2 * (1 + (i * 5 % 31) / 9) * (1 + seed / 50),
            "train_step_ms": 0.06 * side**2 * (1 + (i * 7 % 31) / 9) * (1 + seed / 50),
            "peak_infer_mib": 2.0 * side * (1 + i / 20),
            "traffic_mib": 0.05 * side**2 * (1 + i % 3),
            "gemm_gflops": 3000.0 + seed,
            "copy_gb_s": 30.0,
            "accuracy_status": "ok",
            "throughput_status": "ok",
        }
        for i, (attention, text, topk) in enumerate(kinds)
        for side in sides
        for seed in range(seeds)
    ]
