"""The table in other people's formats: Markdown, LaTeX, timm's benchmark CSV, and CSV as it is.

Markdown and LaTeX show a table for each study and condition: mean and the half width of the 95 % t-interval over seeds,
the best in bold, and bold too what is not significantly worse. A metric of single seeds has nothing in bold.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from runners.measures import QUANTITIES
from runners.rows import selection
from runners.rows.ranking import Group, Standing, groups
from runners.rows.stats import Interval
from runners.store import csv
from runners.store.columns import COMPUTED

_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # behind the end of a line it would open an optional argument
    "[": "{[}",
    "\n": " ",
    "±": r"$\pm$",
}

_MARKDOWN = {**{char: f"\\{char}" for char in r"\`*_{}[]()#!|~$"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "}

NOTE = (
    "Mean ± half width of the 95 % interval over seeds. Bold: the best, and what a paired test over seeds does not "
    "tell from it; nothing is bold where seeds are too few to test."
)


def escape_latex(text: str) -> str:
    """Write text so that LaTeX prints it."""
    return "".join(_LATEX.get(char, char) for char in text)


def escape_markdown(text: str) -> str:
    """Write text so that Markdown, with or without HTML, prints it."""
    return "".join(_MARKDOWN.get(char, char) for char in text)


def to_csv(rows: pd.DataFrame) -> str:
    """Every row and column as it is; `read_rows` reads it back."""
    return csv.to_csv(selection.as_read(rows))


def to_markdown(rows: pd.DataFrame) -> str:
    """A Markdown table for each study and condition."""
    parts = [f"{escape_markdown(selection.common(rows))}\n"] if selection.common(rows) else []
    for group in groups(rows):
        header, body = _table(group, escape_markdown, "**{}**")
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(f"### {escape_markdown(_title(group))}\n\n{table}\n")
    return "\n".join([*parts, f"{NOTE}\n"])


def to_latex(rows: pd.DataFrame) -> str:
    r"""A LaTeX table (`\usepackage{booktabs}`) for each study and condition."""
    parts = []
    for group in groups(rows):
        header, body = _table(group, escape_latex, r"\textbf{{{}}}")
        caption = ". ".join(filter(None, (_title(group), selection.common(rows), NOTE)))
        layout: Any = {"hrules": True, "position_float": "centering", "column_format": f"l{'r' * (len(header) - 1)}"}
        table = pd.DataFrame(body, columns=header).style.hide(axis="index")
        parts.append(table.to_latex(caption=escape_latex(caption), **layout))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _title(group: Group) -> str:
    return ": ".join(filter(None, (group.study, group.conditions)))


def _table(group: Group, escape: Callable[[str], str], bold: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a group, best accuracy first; a value that a failure took shows its status."""
    standings = [group.standings[metric.column] for metric in QUANTITIES if metric.column in group.standings]
    failed = {failure.configuration: failure.status for failure in reversed(group.failures)}
    names = list(dict.fromkeys(name for standing in standings for name in standing.intervals))
    names += [name for name in dict.fromkeys(group.rows["configuration"]) if name not in names]
    seeds = group.rows.groupby("configuration")["seed"].nunique()

    def value(standing: Standing, name: str) -> str:
        if name not in standing.intervals:
            return escape(failed.get(name, "-"))
        text = escape(spell(standing.intervals[name], exact=standing.metric.is_exact))
        return bold.format(text) if name in standing.leaders else text

    header = ["configuration", *(escape(standing.metric.heading) for standing in standings), "seeds"]
    return header, [[escape(name), *(value(s, name) for s in standings), str(seeds[name])] for name in names]


def spell(interval: Interval, *, exact: bool = False) -> str:
    """Mean and half width, to the two leading digits of the half width; four digits where there is none."""
    half = None if exact or interval.high is None else interval.high - interval.mean
    if not half:
        return f"{interval.mean:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{interval.mean:.{decimals}f} ± {half:.{decimals}f}"


def to_timm(rows: pd.DataFrame) -> str:
    """The columns of timm's `benchmark.py --bench both`, best throughput first, as that writes them.

    A model is named as in timm's registry for the layout `stl`, its tag is the configuration, and it is the mean of
    its seeds. Columns that nothing was measured for are left out, and so are models. `infer_macts` is not measured.
    timm counts `infer_gmacs` by fvcore, which leaves fused attention out; here the whole algorithm is counted.

    Raises:
        ValueError: no row has a throughput or MACs.
    """
    columns = ["batch_size", "width_px", "infer_latency_ms", "train_step_ms", "gmacs", "params_m"]
    keys = [_timm_names(rows).rename("model"), rows["resolution"], rows["batch_size"].rename("batch")]
    mean = rows[columns].astype("Float64").groupby(keys, dropna=False, sort=False).mean().reset_index()
    infer, train = mean["infer_latency_ms"], mean["train_step_ms"]
    batch, side = mean["batch_size"].astype("Int64"), mean["width_px"].astype("Int64")
    table = pd.DataFrame(
        {
            "model": mean["model"],
            "infer_samples_per_sec": (1e3 * batch / infer).round(2),
            "infer_step_time": infer.round(3),
            "infer_batch_size": batch.where(infer.notna()),
            "infer_img_size": side,
            "infer_gmacs": mean["gmacs"].round(6),
            "train_samples_per_sec": (1e3 * batch / train).round(2),
            "train_step_time": train.round(3),
            "train_batch_size": batch.where(train.notna()),
            "train_img_size": side.where(train.notna()),
            "param_count": mean["params_m"].round(4),
        }
    )
    measured = ["infer_samples_per_sec", "train_samples_per_sec", "infer_gmacs"]
    table = table[table[measured].notna().any(axis=1)].dropna(axis="columns", how="all")
    if table.empty:
        raise ValueError("timm's columns are throughput and MACs, and no row has any; sweep with --measure throughput")
    order = next(name for name in measured if name in table)
    return csv.to_csv(table.sort_values(order, ascending=False, kind="stable"))


def _timm_names(rows: pd.DataFrame) -> pd.Series:
    """Name of each row's model; what tells rows apart that timm keeps in different files is in the tag too."""
    spelled = {
        **{name: rows[name].map(partial(selection.spell, name)).astype("string") for name in COMPUTED},
        "precision": rows["precision"],
        "device_id": rows["device_id"],  # names the threads of a CPU
    }
    ours = "zoo_" + rows["model"].fillna(rows["layout"].fillna("unknown") + "_" + rows["configuration"])
    models = ours.str.removeprefix("zoo_timm:")
    del spelled["threads"]
    words = [spelled[name].str.replace(" ", "_") for name in spelled if rows[name].nunique() > 1]
    names = []
    for model, *more in zip(models.str.replace("=", ""), *words, strict=True):
        name, *tag = str(model).split(" ")
        tag += [word for word in more if pd.notna(word) and word]
        names.append(".".join(filter(None, (name, "_".join(tag)))))
    return pd.Series(names, rows.index, dtype="string")
