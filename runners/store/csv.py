"""The table as CSV that a spreadsheet opens without running anything, and that reads back as it was.

Spreadsheets run a field that begins with one of `SIGNS`, whoever wrote it. Such a text gets an apostrophe before it,
and loses it when it is read; control characters are written out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from runners.store.names import visible

SIGNS = ("=", "+", "-", "@", "\t", "\n")
MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "<NA>"]
"""What numbers are missing as, in tables that other programs wrote; text is missing only where it is empty."""


def to_csv(table: pd.DataFrame) -> str:
    """Write a table as CSV with a header."""
    return _each_text(table, _inert).to_csv(index=False)


def read_csv(path: Path, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Read a table that `to_csv` or another program wrote; `dtypes` are those of the columns that are known.

    Raises:
        OSError, ValueError, TypeError: it cannot be read as such.
    """
    # a header of its own pass, since pandas refuses dtypes of columns that are not there
    names = [str(name) for name in pd.read_csv(path, nrows=0)]
    known = {name: dtypes[name] for name in names if name in dtypes}
    missing = {name: MISSING if known.get(name, "string") != "string" else [""] for name in names}
    return _each_text(pd.read_csv(path, dtype=known, keep_default_na=False, na_values=missing), _active)


def _each_text(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    changed = table.copy(deep=False)
    for name, column in table.items():
        if column.dtype in ("string", "O"):
            changed[name] = column.map(change, na_action="ignore").astype(column.dtype)
    return changed.rename(columns=change)


def _would_run(text: str) -> bool:
    return text.lstrip("'").startswith(SIGNS)


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _would_run(text) else text


def _active(value: Any) -> Any:
    is_inert = isinstance(value, str) and value.startswith("'") and _would_run(value)
    return value[1:] if is_inert else value
