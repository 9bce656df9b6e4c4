"""Pictures of predictions in the report: whose they are, what of a stranger's folder is read, and where they stand."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_rows import frame, trained
from PIL import Image
from report_pages import Elements
from sample_results import HOSTILE
from test_learning import Held, axes_of, lines_of

from ablations.study import Cell
from runners.figures import draw
from runners.figures.frames import failures
from runners.measures import ACCURACY, AP, AP_MASK, MIOU, quality_among, quality_of
from runners.report import main
from runners.reporting import payload, predictions
from runners.reporting.page import to_html
from runners.reporting.predictions import MOST_PICTURES, Predictions, read_predictions, size_of
from runners.rows import findings, ranking
from runners.rows.selection import LEARNING, described, read_rows
from runners.store.pictures import KINDS, MAX_BYTES, picture_path
from runners.store.record import Record
from runners.store.store import Store, open_store

DEVICE = "cpu-test-1t"


def png(value: int = 0, size: tuple[int, int] = (3, 2)) -> bytes:
    from io import BytesIO

    content = BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(content, "png")
    return content.getvalue()


def add(store: Store, number: int, miou: float, **changes: Any) -> tuple[str, dict[str, Path]]:
    """A cell that was segmented, with both pictures."""
    fields: dict[str, Any] = {"attn": "swin", "task": "segment", "head": "semantic_fpn", "data": "scenes", **changes}
    cell = Cell(**fields)
    key = store.add_cell(cell, None, ["accuracy"])
    paths = {kind: picture_path(store, key, DEVICE, kind) for kind in KINDS}
    for place, path in enumerate(paths.values()):
        path.write_bytes(png(10 * number + place))
    named = {kind: str(path.relative_to(store.out)) for kind, path in paths.items()}
    values = {"miou": miou, **named}
    store.write_record(key, Record(measure="accuracy", device_id=DEVICE, protocol=1, status="ok", values=values))
    return key, paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "runs", create=True)


def shown(store: Store) -> Predictions:
    return read_predictions(read_rows(store.out), store.out)


def red(source: str) -> int:
    """The value in which `png` has drawn the picture of a data URI."""
    from io import BytesIO

    content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return int(np.asarray(Image.open(BytesIO(content)))[0, 0, 0])


def test_the_first_seed_of_each_configuration_is_shown_the_best_first(store):
    add(store, 1, 40.0, seed=1)
    add(store, 2, 30.0, seed=0)
    add(store, 3, 35.25, attn="vanilla")
    found = shown(store)
    assert [(cell["name"], cell["about"]) for cell in found.cells] == [
        ("swin", "mIoU 30 %, seed 0, of 2 seeds with pictures"),
        ("vanilla", "mIoU 35.25 %, seed 0"),
    ]
    assert [[red(image["source"]) for image in cell["images"]] for cell in found.cells] == [[20, 21], [30, 31]]
    assert found.cells[1]["images"][1]["alt"] == "All validation images: what is taken for what, vanilla"
    assert not found.left_out


def test_the_page_has_them_under_its_own_policy(store, tmp_path, monkeypatch):
    monkeypatch.setattr("runners.reporting.page.drawn_figures", lambda rows, published: ([], []))
    add(store, 1, 40.0)
    add(store, 2, 30.0, attn="vanilla")
    path = tmp_path / "report.html"
    assert main(["--results", str(store.out), "--out", str(path)]) == 0
    page = Elements(path.read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [red(str(image["src"])) for image in images] == [10, 11, 20, 21]
    assert all(image["alt"] for image in images)
    (policy,) = re.findall(r"img-src ([^;]*)", path.read_text())
    assert "data:" in policy and "http" not in policy
    assert {"href": "#predictions"} in [attributes for tag, attributes in page.tags if tag == "a"]


@pytest.mark.slow
def test_no_name_of_a_cell_becomes_a_tag(monkeypatch):
    monkeypatch.setattr("runners.reporting.page.drawn_figures", lambda rows, published: ([], []))
    image = {"looks": "scores", "source": "data:image/png;base64,", "help": HOSTILE, "alt": f'"><b>{HOSTILE}'}
    cell = {"name": HOSTILE, "conditions": HOSTILE, "about": HOSTILE, "images": [image]}
    rows = described(frame(trained()))
    plain, page = (Elements(to_html(rows, "here", predictions=seen)) for seen in (None, Predictions([cell], HOSTILE)))
    names = [[tag for tag, _ in elements.tags] for elements in (plain, page)]
    added = list(names[1])
    for name in names[0]:
        added.remove(name)
    assert sorted({*added}) == ["a", "article", "div", "figcaption", "figure", "h2", "h3", "img", "p", "section"]


def test_a_table_alone_has_none(store, tmp_path):
    add(store, 1, 40.0)
    rows = read_rows(store.out)
    assert read_predictions(rows, tmp_path / "table.csv") == Predictions()


def test_of_many_some_are_left_out_and_the_page_says_how_many(store, monkeypatch):
    for number in range(3):
        add(store, number, 40.0 - number, attn=["swin", "bra", "vanilla"][number])
    monkeypatch.setattr(predictions, "MOST_PICTURES", 3)
    found = shown(store)
    assert len(found.cells) == 2 and found.left_out.startswith("Pictures of 1 more configuration are left out")
    monkeypatch.setattr(predictions, "MOST_PICTURES", MOST_PICTURES)
    monkeypatch.setattr(predictions, "MOST_BYTES", 1)
    assert len(shown(store).cells) == 1


# --- a stranger's folder


def damaged(name: str, path: Path, secret: Path) -> None:
    path.unlink()
    if name == "a link":
        path.symlink_to(secret)
    elif name == "a pipe":
        os.mkfifo(path)
    elif name == "a folder":
        path.mkdir()
    elif name == "no picture":
        path.write_bytes(b"<svg onload='alert(1)'>")
    elif name == "the signature alone":
        path.write_bytes(png()[:8])
    elif name == "too large":
        path.write_bytes(png() + bytes(MAX_BYTES))
    elif name == "too many pixels":
        content = bytearray(png())
        content[16:24] = (100_000).to_bytes(4) * 2
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["a link", "a pipe", "a folder", "no picture", "the signature alone", "too large", "too many pixels", "missing"],
)
def test_what_is_no_picture_is_one_warning_and_left_out(store, tmp_path, capsys, name):
    _, paths = add(store, 1, 40.0)
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    damaged(name, paths["predictions"], secret)
    (cell,) = shown(store).cells
    assert [image["looks"] for image in cell["images"]] == ["scores"]
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("warning: ") and str(paths["predictions"]) in message


def test_the_folder_of_a_cell_that_is_a_link_is_not_followed(store, tmp_path, capsys):
    key, _ = add(store, 1, 40.0)
    rows_before = read_rows(store.out)
    store.folder(key).rename(tmp_path / "elsewhere")
    (store.out / "cells" / key).symlink_to(tmp_path / "elsewhere")
    assert read_predictions(rows_before, store.out).cells == []
    assert "is a link" in capsys.readouterr().err


def test_a_path_in_a_record_is_not_what_is_opened(store, tmp_path):
    key = store.add_cell(Cell(attn="swin", task="segment", head="semantic_fpn", data="scenes"), None, ["accuracy"])
    (tmp_path / "secret.png").write_bytes(png(99))
    values = {"miou": 1.0, "predictions": "../secret.png"}
    store.write_record(key, Record(measure="accuracy", device_id=DEVICE, protocol=1, status="ok", values=values))
    assert shown(store).cells == []


def test_a_picture_of_no_size_is_none():
    assert size_of(png()) == (3, 2)
    content = bytearray(png())
    content[16:20] = bytes(4)
    with pytest.raises(ValueError, match="0 x 2"):
        size_of(bytes(content))


# --- each task is judged by what it is for


def dense(column: str, task: str) -> list[dict[str, Any]]:
    """The rows of `trained` with their accuracies as those of a task."""
    own = {"task": task, "head": "x", "data": "scenes"}
    return [{**{k: v for k, v in row.items() if k != "acc1"}, column: row["acc1"], **own} for row in trained()]


def both() -> list[dict[str, Any]]:
    classes = [{**row, "task": "classify"} for row in trained()]
    return [*classes, *({**row, "cell_key": f"d{row['cell_key']}"} for row in dense("miou", "segment"))]


def test_each_task_has_its_metric():
    assert [quality_of(task) for task in ("classify", "segment", "detect", "instance", None, "of another version")] == [
        *(ACCURACY, MIOU, AP, AP_MASK),
        *(ACCURACY, ACCURACY),
    ]
    assert quality_among(["ap", "ap_mask", "gmacs"]) is AP_MASK and quality_among(["gmacs"]) is None


@pytest.mark.parametrize(
    ("column", "task", "axis"), [("miou", "segment", MIOU.axis), ("ap_mask", "instance", AP_MASK.axis)]
)
def test_a_front_is_that_of_the_metric_of_its_task(column, task, axis):
    figure = draw("pareto", frame(dense(column, task)))
    axes = [ax for ax in figure.axes if ax.get_xlabel()]
    assert axes and {ax.get_ylabel() for ax in axes} == {axis}
    heights = {round(float(line.get_ydata()[0]), 3) for line in lines_of(axes[0]).values()}
    means = described(frame(dense(column, task))).groupby("configuration")[column].mean()
    assert heights == {round(mean, 3) for mean in means}


@pytest.mark.slow
def test_tasks_never_share_a_panel_of_a_front():
    figure = draw("pareto", frame(both()))
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_xlabel()]
    assert labels.count(ACCURACY.axis) == labels.count(MIOU.axis) > 0
    titles = {ax.get_title(loc="left").split(",")[0] for ax in figure.axes if ax.get_ylabel() == MIOU.axis}
    assert titles == {"segment"}


def test_learning_curves_have_the_metric_of_their_task():
    rows = frame([*both()[:6], *dense("ap", "detect")[:6]])
    held = [Held(np.linspace(3, 1, 40), {20: 10.0, 40: 20.0}) for _ in range(len(rows))]
    panels = axes_of(draw("learning", rows.assign(**{LEARNING: held})))
    kinds = {title.partition(":")[0]: title for title in panels}
    assert {*kinds} == {"training loss", ACCURACY.title, AP.title} and len(panels) == 4
    assert "detect" in kinds[AP.title] and "detect" not in kinds[ACCURACY.title]
    units = {"detect" in title: ax.get_ylabel() for title, ax in panels.items() if title.startswith("training loss")}
    assert units == {False: "nats", True: "sum of the losses"}


def test_a_failure_is_one_of_its_own_task():
    rows = frame([{**row, "status": "oom", "accuracy_status": "oom", "miou": None} for row in dense("miou", "segment")])
    assert not failures(rows, ACCURACY) and len(failures(rows, MIOU)) == len(rows)


def test_the_summary_and_the_charts_name_the_metric():
    rows = described(frame(both()))
    groups = ranking.groups(rows)
    said = {group.conditions: findings.sentences(group)[0] for group in groups}
    assert {"the highest acc1", "the highest mIoU"} == {
        re.search("the highest [A-Za-z0-9]+", s)[0] for s in said.values()
    }
    points = payload.points(rows, groups)
    assert [metric["name"] for metric in points["metrics"]][:2] == ["acc1", "mIoU"]
    by_task = {point["quality"]: point for point in points["points"] if point["front"]}
    assert {*by_task} == {"acc1", "miou"}
