"""Pictures of predictions that lie in a results folder, as images of the report's page.

They may be another's files: a regular one in the folder of its cell, reached without a link, that begins as a PNG does
and is of a sensible size is shown, and any other is one line of warning.
"""

import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from runners.measures import Quantity, quality_of
from runners.store.files import read_bytes
from runners.store.names import is_name, visible
from runners.store.pictures import KINDS, MAX_BYTES, picture_path
from runners.store.store import Store, StoreError, open_store

MOST_PICTURES = 24
MOST_BYTES = 32 << 20
"""Of all pictures of a page."""
MOST_PIXELS = 50_000_000
"""Of a picture: few bytes can unfold to more than a browser can hold."""

SIGNATURE, HEADER = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\rIHDR"

HELP = {
    "predictions": "Predictions beside truth on a few validation images",
    "scores": "All validation images",
}
SCORES = {"segment": "what is taken for what", "detect": "precision over recall", "instance": "precision over recall"}


@dataclass
class Predictions:
    """What the page shows: of each cell its name, what it reached and its images; and what was left out, or nothing."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    left_out: str = ""


def read_predictions(rows: pd.DataFrame, folder: Path) -> Predictions:
    """Read the pictures of the first seed of each configuration, the best first; a table without a folder has none."""
    found = Predictions()
    if not folder.is_dir():
        return found
    store, left, number, size = open_store(folder, create=False), 0, 0, 0
    for row, metric, seeds in _chosen(rows):
        if number >= MOST_PICTURES or size >= MOST_BYTES:
            left += 1
            continue
        contents = {kind: content for kind in KINDS if (content := _content(store, row, kind))}
        if contents:
            number, size = number + len(contents), size + sum(map(len, contents.values()))
            found.cells.append(_cell(row, metric, seeds, contents))
    if left:
        more = "configurations" if left > 1 else "configuration"
        found.left_out = f"Pictures of {left} more {more} are left out; --study selects."
    return found


def _chosen(rows: pd.DataFrame) -> Iterator[tuple[dict[Any, Any], Quantity, int]]:
    """A row with pictures of each configuration under its conditions, its metric, and how many seeds have some."""
    drawn = rows[rows[[*KINDS]].notna().any(axis=1) & rows["device_id"].notna()]
    for _, part in drawn.groupby("conditions", sort=False):
        metric = quality_of(part["task"].iloc[0])
        ranked = part.sort_values(metric.column, ascending=False, na_position="last", kind="stable")
        for _, own in ranked.groupby("configuration", sort=False):
            yield own.sort_values("seed", kind="stable").iloc[0].to_dict(), metric, own["seed"].nunique()


def _content(store: Store, row: dict[Any, Any], kind: str) -> bytes | None:
    """Bytes of a picture, None where there is none that can be shown."""
    device_id = str(row["device_id"])
    if pd.isna(row[kind]) or not is_name(device_id):
        return None
    try:
        path = picture_path(store, str(row["cell_key"]), device_id, kind)
        content = read_bytes(str(path), MAX_BYTES)
        size_of(content)
    except StoreError as error:
        _warn(str(error))
    except (OSError, ValueError) as error:
        _warn(f"{path} is no picture that can be shown and is left out: {error}")
    else:
        return content
    return None


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of what is a PNG of a sensible size, so that a browser can be given it.

    Raises:
        ValueError: it is none.
    """
    if content[:16] != SIGNATURE + HEADER or len(content) < 33:
        raise ValueError("it does not begin as a PNG does")
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MOST_PIXELS:,} or none")
    return width, height


def _cell(row: dict[Any, Any], metric: Quantity, seeds: int, contents: dict[str, bytes]) -> dict[str, Any]:
    value, task = row[metric.column], str(row["task"])
    reached = "" if pd.isna(value) else f"{metric.name} {value:.4g} %"
    which = f"seed {row['seed']}" + (f", of {seeds} seeds with pictures" if seeds > 1 else "")
    images = []
    for kind, content in contents.items():
        text = HELP[kind] if kind != "scores" else f"{HELP[kind]}: {SCORES.get(task, 'scores')}"
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        width, height = size_of(content)
        looks = f"{kind} wide" if width > 1.5 * height else kind
        images.append({"looks": looks, "source": source, "help": text, "alt": f"{text}, {row['configuration']}"})
    about = ", ".join(filter(None, (reached, which)))
    return {"name": row["configuration"], "conditions": row["conditions"], "about": about, "images": images}


def _warn(text: str) -> None:
    print(f"warning: {visible(text)}", file=sys.stderr)
