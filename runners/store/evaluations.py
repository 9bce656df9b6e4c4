"""`evaluations.csv` of a results folder: a row for each evaluation, the latest last."""

import fcntl
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from runners.measures import ACCURACY
from runners.store.columns import COLUMNS, Column
from runners.store.csv import to_csv
from runners.store.files import StoreError, read_text, write_whole

NAME = "evaluations.csv"

EVALUATION_COLUMNS = {
    "model": Column("string", "", "layout or published model, or timm: and a name of timm's"),
    "attention": Column("string", "", "mechanism of a layout"),
    "settings": Column("string", "", "config fields of the mechanism, name=value joined by ;"),
    "checkpoint": Column("string", "", "file of the weights; empty for random ones"),
    "checkpoint_sha256": Column("string", "", "SHA-256 of that file"),
    "ema": Column("boolean", "", "the moving average of the weights was taken"),
    "params_m": COLUMNS["params_m"],
    "num_classes": Column("Int64", "", "classes of the model"),
    "data": Column("string", "", "images"),
    "resolution": COLUMNS["resolution"],
    "acc1": Column("Float64", ACCURACY.unit, "top-1 accuracy"),
    "acc5": Column("Float64", ACCURACY.unit, "top-5 accuracy"),
    "loss": Column("Float64", "nats", "mean cross-entropy; empty where it is not finite"),
    "n_eval": Column("Int64", "images", "images that count, each once"),
    "unread": Column("Int64", "images", "images that could not be read, and do not count"),
    "real_acc1": Column("Float64", ACCURACY.unit, "share of images whose best class is among their `--real-labels`"),
    "real_acc5": Column("Float64", ACCURACY.unit, "the same of the best five classes"),
    "real_n_eval": Column("Int64", "images", "images that have such labels"),
    "crop_pct": Column("Float64", "", "side of the crop over the shorter side of the resized image"),
    "interpolation": Column("string", "", "of resizing"),
    "mean": Column("string", "", "of the channels, joined by ;"),
    "std": Column("string", "", "standard deviation of the channels, joined by ;"),
    "precision": COLUMNS["precision"],
    "batch_size": Column("Int64", "images", "batch of each process"),
    "processes": Column("Int64", "", "processes that shared the images"),
    "device": COLUMNS["device"],
    "device_name": COLUMNS["device_name"],
    "host": Column("string", "", "machine"),
    "versions": COLUMNS["versions"],
    "git_sha": Column("string", "", "commit of this program"),
    "git_dirty": Column("boolean", "", "it had uncommitted changes"),
    "started_at": Column("string", "UTC", "start, ISO 8601"),
}


def check_evaluations(folder: Path) -> None:
    """Make sure that rows can be added to what there is.

    Raises:
        StoreError: the file is no table of text.
    """
    _read(folder / NAME)


def append_evaluations(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the table of a results folder, which appears whole or not at all; others may be adding theirs.

    What is there stays as it is, with columns that we do not know.

    Raises:
        StoreError: it cannot be written, or the file that is there is no table.
    """
    path = folder / NAME
    dtypes: dict[str, Any] = {name: column.dtype for name, column in EVALUATION_COLUMNS.items()}
    table = pd.DataFrame({name: pd.array([row.get(name) for row in rows], dtype=d) for name, d in dtypes.items()})
    with _locked(folder):
        # as text, so that no number is read and written again
        joined = pd.concat([_read(path), _as_text(to_csv(table))]).fillna("")
        write_whole(path, joined.to_csv(index=False))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for others that add rows to the same table."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"cannot write {folder / NAME}: {error.strerror or error}") from error
    try:
        # some file systems have no locks; a row that was measured is worth more than one
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> pd.DataFrame:
    try:
        return _as_text(read_text(str(path)))
    except FileNotFoundError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as a table, and nothing is added to it: {error}") from error


def _as_text(content: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False)
