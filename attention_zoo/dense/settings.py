"""Which heads a dense task has, and what mechanisms are set to there: plain data."""

from typing import Any

from attention_zoo.config import field_names
from attention_zoo.registry import resolve, suggest

HEADS: dict[str, tuple[str, ...]] = {
    "segment": ("semantic_fpn", "upernet"),
    "detect": ("retinanet",),
    "instance": ("mask_rcnn",),
}
"""Heads of each task; the first is its default."""

REGIONS = {"segment": 8, "detect": 16, "instance": 16}
"""Regions per side of bi-level routing, as BiFormer's released configurations have them (rayleizhu/BiFormer).

semantic_segmentation/configs/ade20k/*.py say `n_win=8`, "training resolution is 512", and keep 8 in tests of whole
images; object_detection/configs/coco/*.py say `n_win=16`. Top-k stays what it is for classification.
"""


def check_head(task: str, head: str) -> None:
    """Check that a task has a head.

    Raises:
        ValueError: no such dense task, or not its head; the known ones are listed.
    """
    if task not in HEADS:
        raise ValueError(suggest("dense task", task, sorted(HEADS)))
    if head not in HEADS[task]:
        raise ValueError(f"task={task} has head={'|'.join(HEADS[task])}, got head={head!r}")


def dense_settings(task: str, attn: str, **given: Any) -> dict[str, Any]:
    """Return the settings of a mechanism for a dense task: the published ones, then those that are `given`.

    What has `regions` per side (bra) takes 8 for segmentation and 16 for detection, and the same top-k as ever.
    Windows, stripes and points keep the sizes of the layout.

    Raises:
        ValueError: no such task or mechanism.
    """
    if task not in HEADS:
        raise ValueError(suggest("dense task", task, sorted(HEADS)))
    # the size of a region is the other spelling of their number
    has_regions = "regions" in field_names(resolve(attn).Config) and given.get("region_size") is None
    return {**({"regions": REGIONS[task]} if has_regions else {}), **given}
