"""What is set where a dense task is run at the resolutions for which it was published."""

from typing import Any

from attention_zoo.config import field_names
from attention_zoo.registry import resolve
from runners.cells.task_data import CLASSIFY

PUBLISHED_PX = 512
"""From this side on, bi-level routing has the regions that were published for a dense task."""

Fields = tuple[tuple[str, Any], ...]


def published_number(task: str, height_px: int, width_px: int) -> int | None:
    """Regions per side that bi-level routing was published with, None where the layout says how many there are."""
    if task == CLASSIFY or min(height_px, width_px) < PUBLISHED_PX:
        return None
    from attention_zoo.dense.settings import REGIONS  # a second of torchvision, which classification does without

    return REGIONS[task]


def published_regions(attn: str, settings: Fields, task: str, height_px: int, width_px: int) -> Fields:
    """Settings of a mechanism for a task: those that are given, and the published number of regions if it has any."""
    named, number = dict(settings), published_number(task, height_px, width_px)
    if number is None or named.keys() & {"regions", "region_size"}:
        return settings
    if "regions" not in field_names(resolve(attn).Config):
        return settings
    return tuple(sorted({**named, "regions": number}.items()))
