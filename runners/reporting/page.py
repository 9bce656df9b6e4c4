"""The report as one HTML page that asks the network for nothing: text, table, charts and figures in a single file.

Text is escaped by the template, data lies in the page as JSON that no text can end, and the page's own policy runs no
other scripts than those it was written with.
"""

import base64
import contextlib
import gc
import gzip
import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module, metadata, resources
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from runners import figures
from runners.figures.choices import SIZES, Crowded
from runners.measures import MARGIN, NOT_FAILED
from runners.reporting import payload
from runners.reporting.predictions import Predictions
from runners.rows import ranking, selection
from runners.rows.findings import sentences

SHOWN_CONDITIONS = 6
"""Conditions of a study whose findings are open; the others unfold."""

MOST_LINES = 60
"""Lines that a drawn figure can hold; beyond, its legend alone would fill it."""

MOST_POINTS = 600
"""Configurations at each resolution that it can hold; the time that it takes grows faster than their number."""

ENVIRONMENT = (
    *("device_name", "cpu_model", "cores_logical", "cores_usable", "threads", "host", "platform", "cuda", "cudnn"),
    *("driver", "matmul_precision", "cudnn_tf32", "versions", "git_sha", "git_dirty"),
)


def to_html(
    rows: pd.DataFrame,
    source: str,
    study: str | None = None,
    *,
    margin: float = MARGIN,
    published: pd.DataFrame | None = None,
    predictions: Predictions | None = None,
) -> str:
    """Write the page.

    Args:
        rows: what `read_rows` returns.
        source: where they were read, for the reader.
        study: the one that they were selected by.
        margin: see `findings.sentences`.
        published: accuracies of papers, which get a figure of their own; see `figures.draw`.
        predictions: pictures of them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("runners.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    scripts = {"table_script": _asset("table.js"), "chart_script": _asset("charts.js"), "plotly": get_plotlyjs()}
    groups = ranking.groups(rows)
    with _frozen():
        studies = _studies(groups, margin)
        points = payload.points(rows, groups)
    figures, unread = drawn_figures(rows, published)
    return environment.get_template("report.html").render(
        {**scripts, "plotly": _packed(scripts["plotly"]) if points["metrics"] else None},
        title=f"Attention mechanisms: {study}" if study else "Attention mechanisms",
        script_sources=" ".join(map(_digest, scripts.values())),
        css=_asset("report.css"),
        rows=len(rows),
        source=source,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=metadata.version("attention-zoo"),
        common=selection.common(rows),
        statuses=[
            (str(status), int(count), status not in NOT_FAILED)
            for status, count in rows["status"].value_counts().items()
        ],
        warnings=[*_warnings(rows), *unread],
        studies=studies,
        margin=f"{margin:g}",
        shown=SHOWN_CONDITIONS,
        figures=figures,
        predictions=predictions or Predictions(),
        all_rows=selection.ALL,
        environment=_environment(rows),
        dirty=int(rows["git_dirty"].fillna(False).sum()),
        table=payload.to_script(payload.table(rows)),
        points=payload.to_script(points),
    )


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Within it the collector passes over all that is there: statsmodels calls it in each of thousands of tests."""
    for name in ("multitest", "weightstats"):
        import_module(f"statsmodels.stats.{name}")
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _asset(name: str) -> str:
    return (resources.files("runners.reporting") / "templates" / name).read_text(encoding="utf-8")


def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _digest(script: str) -> str:
    """Name a script in the page's policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _studies(groups: Sequence[ranking.Group], margin: float) -> list[dict[str, Any]]:
    texts: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        text = {"conditions": group.conditions, "sentences": sentences(group, margin)}
        texts.setdefault(group.study, []).append(text)
    studies = []
    for name, own in texts.items():
        question, expectation = ranking.question(name)
        studies.append({"name": name, "question": question, "expectation": expectation.rstrip("."), "groups": own})
    return studies


def _warnings(rows: pd.DataFrame) -> list[str]:
    warnings = []
    for name in [name for name in map(str, rows) if name.endswith("_protocol")]:
        versions = [f"{version:g}" for version in sorted(rows[name].dropna().unique())]
        if len(versions) > 1:
            what = f"rows of versions {', '.join(versions)}, whose numbers do not compare"
            warnings.append(f"{name}: {what}; measure the older ones again.")
    devices = selection.devices(rows)
    if len(devices) > 1:
        warnings.append(f"Rows of {len(devices)} devices, which are kept apart: {', '.join(devices)}.")
    disturbed = int(selection.disturbed(rows).sum())
    if disturbed:
        warnings.append(f"Other work on the machine disturbed the timing of {disturbed} rows: see their `disturbance`.")
    return warnings


def drawn_figures(rows: pd.DataFrame, published: pd.DataFrame | None = None) -> tuple[list[dict[str, str]], list[str]]:
    """What `runners.figures` draws of the rows, as images; and why it draws nothing, where they are too many."""
    for what, most, left_out in (("lines", MOST_LINES, ("resolution",)), ("points", MOST_POINTS, ())):
        count = (rows["configuration"] + selection.conditions(rows, leave_out=left_out)).nunique()
        if count > most:
            return [], [f"No drawn figures: {count:,} {what} are more than one can hold ({most}); use --study."]
    drawn, unread = [], []
    kinds: list[tuple[str, pd.DataFrame | None]] = [(kind, None) for kind in figures.OF_ROWS]
    for kind, accuracies in [*kinds, *([("pareto", published)] if published is not None else [])]:
        try:
            # one for screens and paper, and one that can be read on a telephone
            images: dict[str, Figure] = {
                size: figures.draw(kind, rows, by_device=True, size=size, published=accuracies) for size in SIZES
            }
        except ValueError as error:
            # where rows have nothing that a kind shows, only the lack of one that was asked for is told
            if accuracies is not None:
                unread.append(f"No figure of published accuracies: {error}.")
            elif isinstance(error, Crowded):
                unread.append(f"No figure {kind}: {error}.")
            continue
        sources = {size: f"data:image/svg+xml;base64,{_encoded(image)}" for size, image in images.items()}
        drawn.append({**sources, "help": figures.FIGURES[kind] if accuracies is None else figures.PUBLISHED})
    return drawn, unread


def _encoded(figure: Figure) -> str:
    return base64.b64encode(figures.render(figure, "svg")).decode()


def _environment(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each device what is known of it, every distinct value with the number of its rows."""
    return [
        {
            "name": str(name),
            "fields": [(field, _counts(part[field])) for field in ENVIRONMENT if part[field].notna().any()],
        }
        for name, part in rows[rows["device_id"].notna()].groupby("device_id")
    ]


def _counts(values: "pd.Series[Any]") -> Sequence[tuple[str, int]]:
    counts = values.value_counts()
    return [(str(value).replace(";", ", "), int(count)) for value, count in counts.items()]
