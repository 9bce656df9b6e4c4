"""Published accuracies and measured rows for tests, from what differs from one line."""

import csv
import io

import pandas as pd
from figure_rows import frame

from runners.rows.selection import described

LINE = {
    "name": "swin",
    "kind": "mechanism",
    "layout": "stl",
    "settings": "",
    "task": "classification",
    "dataset": "ImageNet-1K",
    "metric": "top1",
    "value": "81.3",
    "resolution": "224x224",
    "source": "A paper",
    "table": "Table 9",
    "verified": "true",
    "confirmed_in": "its text",
}
MODEL = {"kind": "model", "layout": ""}


def table(path, *lines, drop=()):
    """Write lines that differ from LINE in what they give; returns the path."""
    columns = [name for name in LINE if name not in drop] + ["gflops"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**LINE, **line} for line in lines)
    path.write_text(text.getvalue())
    return path


def rows(*given):
    """Measured costs of mechanisms in stl at 224 px, as `read_rows` returns them."""
    common = {"layout": "stl", "resolution": "224x224", "seed": 0, "flops_status": "ok", "gmacs": 4.5}
    found = [{**common, "cell_key": str(number), **row} for number, row in enumerate(given)]
    whole = frame(found)
    models = pd.array([row.get("model") for row in found], dtype="string")
    return described(whole.assign(model=models))
