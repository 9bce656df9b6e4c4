"""Pictures of a dense task beside its records, `<kind>.<device_id>.png` in the folder of its cell.

`predictions` shows what the trained model says of a few validation images beside what is true, `scores` how it does on
all of them: what it confuses, or how precisely it finds objects.
"""

from pathlib import Path

from runners.store.store import Store

KINDS = ("predictions", "scores")
"""Also the columns with their files."""

MOST_IMAGES = 16
"""Of a picture; each is a row of it."""
MAX_BYTES = 4 << 20
"""A larger one is not shown: a page would be slow to open."""


def picture_path(store: Store, key: str, device_id: str, kind: str) -> Path:
    """Where a picture of a cell's training on a device lies, if it was asked for.

    Raises:
        StoreError: the folder of the cell would be reached through a link.
    """
    return store.folder(key) / f"{kind}.{device_id}.png"
