"""Curves of trainings beside their rows: read from the CSV of each cell, while it runs too, else from its record.

They may be another's files: what is no curve is one line of warning, and as if it were not there.
"""

import csv
import io
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runners.rows.selection import LEARNING
from runners.store.curve import HEADER, MAX_BYTES, Point, curve_path, device_of
from runners.store.files import list_names, read_bytes
from runners.store.names import is_name, visible
from runners.store.store import Store, StoreError, open_store

LARGEST = 1e30
"""Beyond it no axis can show a number."""


@dataclass(frozen=True)
class CurveSource:
    """Where the curve of a cell on a device is to be found; nothing is read before it is asked for."""

    store: Store
    key: str
    device_id: str

    @cached_property
    def curve(self) -> pd.DataFrame | None:
        """What `read_curve` returns, or the step and the loss of a record; None where there is neither, or no step."""
        try:
            path = curve_path(self.store, self.key, self.device_id)
            found = read_curve(path)
            return None if found.empty else found
        except FileNotFoundError:
            return self._recorded()
        except StoreError as error:
            _warn(str(error))
        except (OSError, ValueError) as error:
            _warn(f"{path} is no curve and is left out: {error}")
        return self._recorded()

    def _recorded(self) -> pd.DataFrame | None:
        """Losses that the latest record of a training holds."""
        names = [name for name in self.store.record_names(self.key) if name.measure == "accuracy"]
        own = [name for name in names if name.device_id == self.device_id]
        losses = self.store.read_record(self.key, own[-1]).samples.get("loss") if own else None
        if not isinstance(losses, list) or not losses or not {*map(type, losses)} <= {int, float}:
            return None
        curve = pd.DataFrame(dict.fromkeys(Point._fields, np.nan), index=range(len(losses)))
        curve = curve.assign(step=np.arange(1.0, len(losses) + 1), loss=np.array(losses, dtype=float))
        return curve if (curve["loss"].abs() <= LARGEST).all() else None


def read_curve(path: Path) -> pd.DataFrame:
    """Read the file of a curve: a row for each step, its columns those of `Point`, NaN where a field is empty.

    A last line that is cut off is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, has another header, or holds what no training writes.
    """
    text, _, _ = read_bytes(str(path), MAX_BYTES).decode().rpartition("\n")
    header, _, lines = text.partition("\n")
    if header != HEADER.strip():
        raise ValueError(f"its first line is not {HEADER.strip()}")
    options: dict[str, Any] = {"dtype": "object", "keep_default_na": False, "na_values": [""], "index_col": False}
    # as text first: earlier versions of pandas lose the last digit of a number
    texts: pd.DataFrame = pd.read_csv(io.StringIO(f"{HEADER}{lines}"), quoting=csv.QUOTE_NONE, engine="c", **options)
    rows = texts.astype("float64")
    if not np.array_equal(rows["step"], np.arange(1.0, len(rows) + 1)):
        raise ValueError("its steps are not 1, 2, 3 and so on")
    if rows[["loss", "lr"]].isna().to_numpy().any() or (rows.abs() > LARGEST).to_numpy().any():
        raise ValueError("a number is missing, or not finite")
    return rows


def with_curves(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Attach to each row what reads its curve, as the column `LEARNING`; of a table without a folder there are none.

    A training that runs before anything is recorded has no device in its row; the name of its file says it.
    """
    if not folder.is_dir():
        return rows
    store = open_store(folder, create=False)
    recorded = rows["device_id"].astype("object").where(rows["device_id"].notna(), None)
    cells = [
        (str(key), device or _device(store, str(key))) for key, device in zip(rows["cell_key"], recorded, strict=True)
    ]
    sources = [CurveSource(store, key, device) if device else None for key, device in cells]
    devices = pd.array([device for _, device in cells], dtype="string")
    return rows.assign(device_id=devices, **{LEARNING: pd.Series(sources, rows.index, dtype="object")})


def _device(store: Store, key: str) -> str | None:
    """The device on which a cell without a record is trained, None where its files name none or several."""
    try:
        names = list_names(str(store.folder(key)))
    except StoreError:
        return None
    devices = [device for name in names if (device := device_of(name)) and is_name(device)]
    return devices[0] if len(devices) == 1 else None


def _warn(text: str) -> None:
    print(f"warning: {visible(text)}", file=sys.stderr)
