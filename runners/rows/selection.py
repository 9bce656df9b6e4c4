"""Rows for figures, reports and comparisons: read from a folder or a CSV, checked, and named.

A configuration is a mechanism with its settings, or a model; its seeds are repeats. Its conditions are everything else
that moves a number: host, image size, data, training, precision, device. Only configurations under equal conditions are
compared.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ablations.values import precision_today
from runners.measures import depends_on_device
from runners.store.columns import COLUMNS, COMPUTED, RETIRED, impl_today
from runners.store.csv import read_csv
from runners.store.names import configuration_name
from runners.table import load

REQUIRED = ("cell_key", "attention", "resolution", "seed", "device_id", "status")

TRAINED = ("data", "recipe", "training", "steps", "init_from", "reset_classes", "freeze", "tune_lr", "target_acc")
"""How a model was trained."""

CONDITIONS = ("task", "head", "head_settings", "layout", "baseline", "resolution", *TRAINED, "batch_size", *COMPUTED)

MODELS_HOST = "stl"
"""Layout in which vanilla is what models are compared with."""

LEARNING = "learning"
"""Column in which `runners.rows.curves.with_curves` gives each row what reads its curve."""

ALL = "all rows"
"""Name of the conditions where nothing differs."""


def read_rows(path: Path, study: str | None = None) -> pd.DataFrame:
    """Read a results folder, or a table that was saved as CSV, or the rows of one study.

    Every column of `COLUMNS` is there, `settings` by name, and what `described` attaches.

    Raises:
        ValueError: no results there, no rows, a column missing that says what a row is, or two rows of one cell; an
            unknown study.
    """
    if path.is_dir():
        rows = load(path)
    elif not path.exists():
        raise ValueError(f"no results in {path}: it does not exist; name a results folder or a CSV file")
    else:
        rows = _read_csv(path)
    missing = [name for name in REQUIRED if name not in rows]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; a table has at least {', '.join(REQUIRED)}")
    if rows.empty:
        raise ValueError(f"no rows in {path}; run a sweep into it first: python runners/sweep.py --help")
    twice = rows[rows.duplicated(["cell_key", "device_id"])]
    if not twice.empty:
        raise ValueError(f"{path} has more than one row of cell {twice.iloc[0]['cell_key']} on one device; keep one")
    lacking = {name: column.dtype for name, column in COLUMNS.items() if name not in rows}
    rows = rows.reindex(columns=[*rows.columns, *lacking]).astype(lacking)
    return described(of_study(rows, study) if study else rows)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        rows = read_csv(path, {name: column.dtype for name, column in COLUMNS.items()})
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no results folder and cannot be read as a CSV table: {reason}") from error
    if {"attention", "impl"} <= {*rows}:
        named = [rows[name].astype("object").where(rows[name].notna(), None) for name in ("attention", "impl")]
        rows["impl"] = pd.array(list(map(impl_today, *named)), dtype="string")
    if "precision" in rows:
        rows["precision"] = rows["precision"].map(precision_today, na_action="ignore").astype("string")
    return rows.drop(columns=[name for name in RETIRED if name in rows])


def of_study(rows: pd.DataFrame, study: str) -> pd.DataFrame:
    """Rows of one study.

    Raises:
        ValueError: no row belongs to it; the studies that have rows are listed.
    """
    chosen = rows[[study in names for names in _studies(rows)]]
    if chosen.empty:
        known = study_names(rows)
        raise ValueError(f"unknown study {study!r}; these results have {', '.join(known) or 'no studies'}")
    return chosen


def study_names(rows: pd.DataFrame) -> list[str]:
    """Studies that any row belongs to, sorted."""
    return sorted(set().union(*_studies(rows)))


def _studies(rows: pd.DataFrame) -> list[set[str]]:
    return [set(text.split(";")) - {""} for text in rows["study"].fillna("")]


def devices(rows: pd.DataFrame) -> list[str]:
    """Devices that anything was measured on which depends on the device, sorted."""
    measures = [
        name for name in map(str, rows) if name.endswith("_status") and depends_on_device(name.removesuffix("_status"))
    ]
    measured = rows[measures].notna().any(axis=1) if measures else rows["device_id"].notna()
    return sorted(rows.loc[measured, "device_id"].dropna().unique())


def check_devices(rows: pd.DataFrame, mixed: bool) -> None:
    """Refuse rows of several devices, unless that is asked for.

    Raises:
        ValueError: more than one device and not `mixed`.
    """
    measured_on = devices(rows)
    if len(measured_on) > 1 and not mixed:
        raise ValueError(
            f"rows of {len(measured_on)} devices, whose times and memory do not compare: {', '.join(measured_on)}; "
            "give --mixed-devices to show them apart"
        )


def check_comparable(rows: pd.DataFrame) -> None:
    """Refuse a single row, beside which there is nothing.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError("one row only, nothing to compare it with; measure another mechanism")


class Settings(dict[str, str]):
    """Settings of a row by name, and the top-k also where that is the default; as text what the table has."""

    def __init__(self, text: str | None, topk: str | None) -> None:
        """Read the table's columns `settings`, name=value joined by semicolons, and `topk`."""
        self.text = text or ""
        pairs = (part.partition("=")[::2] for part in self.text.split(";") if "=" in part)
        super().__init__([*([("topk", topk)] if topk else []), *pairs])

    def __str__(self) -> str:
        """Return the text that was read."""
        return self.text


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """Attach `settings` by name, `subject` and `configuration`, and the `conditions` that differ among the rows."""
    topk = rows["topk"].astype("string").fillna(rows["topk_schedule"])
    texts = (column.astype("object").where(column.notna(), None) for column in (rows["settings"], topk))
    settings = [
        value if isinstance(value, Settings) else Settings(value, topk) for value, topk in zip(*texts, strict=True)
    ]
    subject = subjects(rows)
    names = map(configuration_name, subject.fillna("unknown"), settings)
    return rows.assign(
        subject=subject,
        settings=pd.Series(settings, rows.index, dtype="object"),
        configuration=pd.Series(list(names), rows.index, dtype="string"),
        conditions=conditions(rows),
    )


def subjects(rows: pd.DataFrame) -> pd.Series:
    """What each row measures: the name of its mechanism, or of its model."""
    attention = rows["attention"].astype("string")
    return attention.fillna(rows["model"].astype("string")) if "model" in rows else attention


def models(rows: pd.DataFrame) -> set[str]:
    """Names of the models among the rows."""
    return {str(name) for name in rows["model"].dropna()} if "model" in rows else set()


def as_read(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table as it was before `described` and `with_curves`, settings as text."""
    table = rows.drop(columns=["subject", "configuration", "conditions", LEARNING], errors="ignore")
    return table.assign(settings=table["settings"].map(str).astype("string"))


def conditions(rows: pd.DataFrame, leave_out: Sequence[str] = ()) -> pd.Series:
    """Name of the conditions of each row; what all rows have in common is left out, and `common` says it.

    Protocols of measures are conditions too: numbers of two versions do not compare. A row without a version has no
    number of that measure, and goes with the newest. A model has no layout: it goes with the host of its baseline.
    """
    rows = _with_hosts(rows)
    varying = [name for name in CONDITIONS if name not in leave_out and rows[name].nunique() > 1]
    versions = [name for name in map(str, rows) if name.endswith("_protocol") and rows[name].nunique() > 1]
    mixed = {name: rows[name].fillna(rows[name].max()) for name in versions}
    if not varying and not mixed:
        return pd.Series(ALL, rows.index, dtype="string")
    parts = [[spell(name, value) for value in rows[name]] for name in varying]
    parts += [[f"{name.replace('_', ' ')} {version:g}" for version in column] for name, column in mixed.items()]
    return pd.Series([", ".join(filter(None, row)) for row in zip(*parts, strict=True)], rows.index, dtype="string")


def _with_hosts(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of models in the layout whose vanilla they are compared with, and a word for no baseline of one's own."""
    baseline = rows["baseline"].astype("string").fillna("")
    is_model = rows["layout"].isna() & rows["model"].notna() & (baseline == "")
    return rows.assign(baseline=baseline, layout=rows["layout"].astype("string").mask(is_model, MODELS_HOST))


def common(rows: pd.DataFrame) -> str:
    """What the conditions of all rows have in common, in words."""
    shared = [rows[name].dropna().unique() for name in CONDITIONS]
    parts = [spell(name, values[0]) for name, values in zip(CONDITIONS, shared, strict=True) if len(values) == 1]
    return ", ".join(filter(None, parts))


def spell(name: str, value: object) -> str:
    """Say a condition in a few words; nothing of what is usual."""
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    words = {
        "task": "" if value == "classify" else str(value),
        "head_settings": str(value).replace(";", ", "),
        "baseline": f"against {value}" if value else "",
        "resolution": f"{value} px",
        "recipe": "" if value == "probe" else f"recipe {value}",
        "training": str(value).replace(";", ", "),
        "init_from": f"from {value}",
        "reset_classes": "new classifier" if bool(value) else "",
        "freeze": "classifier alone trained" if bool(value) else "",
        "tune_lr": f"rate of {value}",
        "steps": f"{value} steps",
        "target_acc": f"until {value} %",
        "batch_size": f"batch {value}",
        "compile": "compiled" if bool(value) else "",
        "sdpa": "" if value == "auto" else f"sdpa {value}",
        "memory_format": "" if value == "contiguous" else str(value),
        "deterministic": "deterministic" if bool(value) else "",
        "cudnn_benchmark": "cudnn benchmark" if bool(value) else "",
        "threads": f"{value} thread{'' if value == 1 else 's'}",
    }
    return words.get(name, str(value))


def disturbed(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether other work on the machine disturbed the timing of each row; a table that does not say so was not."""
    if "disturbed" not in rows:
        return pd.Series(False, rows.index)
    return rows["disturbed"].astype("boolean").fillna(False).astype(bool)


def units(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Unit and description of columns; both empty for a measure of one's own."""
    known = {name: (COLUMNS[name].unit, COLUMNS[name].description) for name in names if name in COLUMNS}
    return {name: known.get(name, ("", "")) for name in names}
