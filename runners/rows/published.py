"""Accuracies that papers published: read from a table, and joined to rows whose costs were measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from runners.store.csv import read_csv

TEXTS = ("name", "kind", "task", "dataset", "metric", "resolution", "source", "table")
"""Columns of text that no line leaves empty."""

NUMBERS = ("value", "gflops", "params_m")
DTYPES = {
    **dict.fromkeys((*TEXTS, "layout", "settings", "confirmed_in", "note"), "string"),
    **dict.fromkeys(NUMBERS, "Float64"),
    "verified": "boolean",
}
REQUIRED = (*TEXTS, "layout", "settings", "value", "verified", "confirmed_in")

METRICS = {"top1": "classification", "miou": "segmentation"}
"""Known metrics, in percent, and the task of each."""

KINDS = ("mechanism", "model")
KEY = ["name", "kind", "layout", "settings", "task", "dataset", "metric", "resolution"]
SIZE = re.compile(r"[1-9]\d*x[1-9]\d*")


def read_published(path: Path) -> pd.DataFrame:
    """Read a table of published accuracies; results/README.md describes its columns.

    Raises:
        ValueError: it cannot be read, a column is missing, or a line is wrong; the message names the line.
    """
    try:
        table = read_csv(path, DTYPES)
    except OSError as error:
        raise ValueError(f"no published accuracies in {path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as published accuracies: {str(error).splitlines()[0]}") from error
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; a line has at least {', '.join(REQUIRED)}")
    table = table.reindex(columns=[*table.columns, *(name for name in DTYPES if name not in table)]).astype(DTYPES)
    # the header is line 1
    for number, line in enumerate(table.to_dict("records"), 2):
        if wrong := _wrong(line):
            raise ValueError(f"{path}, line {number}: {wrong}")
    keys = table[KEY].fillna("")
    twice = keys.duplicated()
    if twice.any():
        first = keys.eq(keys[twice].iloc[0]).all(axis=1)
        lines = " and ".join(str(at + 2) for at in table.index[first][:2])
        raise ValueError(f"{path}, lines {lines}: the same {table['metric'][twice].iloc[0]} of one name; keep one")
    return table


def _wrong(line: Mapping[Any, Any]) -> str:
    """What is wrong with a line; empty if nothing is."""
    text = {name: "" if pd.isna(line[name]) else str(line[name]).strip() for name in DTYPES}
    for name in TEXTS:
        if not text[name]:
            return f"{name} is empty"
    if text["kind"] not in KINDS:
        return f"kind is {text['kind']!r}, not one of {', '.join(KINDS)}"
    if METRICS.get(text["metric"]) != text["task"]:
        known = ", ".join(f"{metric} of {task}" for metric, task in METRICS.items())
        return f"metric {text['metric']!r} of task {text['task']!r} is not known; known: {known}"
    if not SIZE.fullmatch(text["resolution"]):
        return f"resolution is {text['resolution']!r}, not height x width in pixels, such as 224x224"
    if not text["value"] or not 0 < float(text["value"]) <= 100:
        return f"value is {text['value'] or 'empty'}, not a percentage above 0 and up to 100"
    for name in ("gflops", "params_m"):
        if text[name] and not 0 < float(text[name]) < float("inf"):
            return f"{name} is {text[name]}, not a number above 0"
    if (text["kind"] == "mechanism") != bool(text["layout"]):
        return f"layout is {text['layout'] or 'empty'}; a mechanism has one, and a model has none"
    if not text["verified"] or bool(line["verified"]) != bool(text["confirmed_in"]):
        return "verified is true or false, and confirmed_in says where it was confirmed if it is true"
    return ""


def with_published(rows: pd.DataFrame, published: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Give each row what was published of its mechanism in its layout, or of its model, at its resolution.

    Adds `published`, %; `published_in`, its source and table; `doubt`, why accuracy and cost are not surely of one
    thing, else empty; and where nothing was published, `gap`, why not. A row with the published settings takes the
    value without doubt; where there is none, the row with default settings takes it.

    Args:
        rows: what `read_rows` returns.
        published: what `read_published` returns.
        metric: of `METRICS`.
    """
    lines = published[published["metric"] == metric].fillna({"layout": "", "settings": ""})
    subjects = [_subject(row) for row in rows.to_dict("records")]
    own = {subject: lines[(lines["kind"] == subject[0]) & (lines["name"] == subject[1])] for subject in {*subjects}}
    found = [_find(subject, own[subject], {*subjects}) for subject in subjects]
    joined = pd.DataFrame(found, rows.index, ["published", "published_in", "doubt", "gap"])
    return rows.assign(**joined.astype({"published": "Float64", "published_in": "str", "doubt": "str", "gap": "str"}))


Subject = tuple[str, str, str, str, str]
"""Kind, name, layout, resolution and settings of a row."""


def _subject(row: Mapping[Any, Any]) -> Subject:
    def text(column: str) -> str:
        value = row.get(column)
        return "" if value is None or pd.isna(value) else str(value)

    size, settings = text("resolution"), _in_order(text("settings"))
    if model := text("model"):
        return "model", model, "", size, settings
    return "mechanism", text("attention"), text("layout"), size, settings


def _in_order(settings: str) -> str:
    """Settings as text in one order, in which equal ones are equal."""
    return ";".join(sorted(settings.split(";")))


def _find(subject: Subject, lines: pd.DataFrame, subjects: set[Subject]) -> tuple[float | None, str, str, str]:
    """Value, source, doubt and gap of a row, of the lines with its kind and name."""
    kind, name, layout, resolution, settings = subject
    here = lines[lines["layout"] == layout]
    if here.empty:
        return None, "", "", "nothing published" if lines.empty else f"published in layout {_any(lines, 'layout')}"
    here = here[here["resolution"] == resolution]
    if here.empty:
        return None, "", "", f"published at {_any(lines, 'resolution')}, measured at {resolution}"
    exact = here[here["settings"].map(_in_order) == settings]
    if not exact.empty:
        return _value(exact, "")
    with_others = f"published with {_any(here, 'settings') or 'default settings'}"
    better = {(kind, name, layout, resolution, _in_order(text)) for text in here["settings"]} & subjects
    if settings or len(here) > 1 or better:
        return None, "", "", with_others
    return _value(here, with_others)


def _value(lines: pd.DataFrame, doubt: str) -> tuple[float, str, str, str]:
    line = lines.iloc[0]
    doubts = ([] if line["verified"] else ["not confirmed"]) + ([doubt] if doubt else [])
    return float(line["value"]), f"{line['source']}, {line['table']}", ", ".join(doubts), ""


def _any(lines: pd.DataFrame, column: str) -> str:
    return " or ".join(sorted({*lines[column]}))
