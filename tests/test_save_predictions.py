"""Pictures of predictions that a sweep keeps: what is asked for, what is drawn of one evaluation, and what it costs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from test_dense_segmentation import Pictures, Pixelwise

import runners.jobs.sweep as module
from ablations.study import Cell
from runners import Sweep
from runners.cells import predictions
from runners.cells.job import Job
from runners.cells.objectives import Evaluated
from runners.cells.run import run_job
from runners.dense import detection, segmentation
from runners.dense.data import scenes
from runners.dense.pictures import predictions as pictures
from runners.jobs.options import RunOptions
from runners.jobs.submission import Request, Submission, check
from runners.store.pictures import KINDS, MAX_BYTES, MOST_IMAGES, picture_path
from runners.store.store import Store, open_store
from runners.sweep import main
from runners.table import load

SCENES = 6
FEW = {"attn": "swin", "data": "scenes", "steps": 1, "batch_size": 2, "resolution": 32, "measures": "accuracy"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Store, dict[str, Any]]]:
    """Run one step of a cell of a task, tested on a few scenes; return the store and the row."""
    monkeypatch.setattr(scenes, "TEST_SCENES", SCENES)

    def run(task: str, count: int = 2) -> tuple[Store, dict[str, Any]]:
        (cell,) = Sweep(**FEW, task=task).plan.cells
        store = open_store(tmp_path, create=True)
        key = store.add_cell(cell, None, ["accuracy"])
        run_job(Job(out=tmp_path, key=key, cell=cell, attempts={"accuracy": 1}, workers=0, save_predictions=count))
        (row,) = load(tmp_path).to_dict("records")
        assert row["status"] == "ok", row["error_message"]
        return store, row

    return run


def kept(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """First arguments of each call of a function, which is still called."""
    real, calls = getattr(owner, name), []

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


def test_the_pictures_of_a_segmentation_are_of_its_only_evaluation(trained, monkeypatch):
    evaluations = kept(monkeypatch, segmentation, "count_pixels")
    (drawn, matrices) = kept(monkeypatch, pictures, "draw_maps"), kept(monkeypatch, pictures, "draw_confusion")
    store, row = trained("segment")
    assert len(evaluations) == 1
    (matrix,), (maps,) = matrices, drawn
    assert matrix.sum() == SCENES * 32 * 32
    assert segmentation.segmentation_scores(torch.from_numpy(matrix))["miou"] == row["miou"]
    # two of six, far from each other, in the colours that were drawn: 0.5 is the ground of a scene
    assert [each.name for each in maps] == ["image 1", "image 4"]
    assert all(abs(each.pixels[each.truth == 0].mean() - 0.5) < 0.02 for each in maps)
    for kind in KINDS:
        path = picture_path(store, row["cell_key"], row["device_id"], kind)
        assert row[kind] == str(path.relative_to(store.out))
        with Image.open(path) as image:
            assert image.format == "PNG"


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        pytest.param("detect", "ap50", marks=pytest.mark.slow),
        pytest.param("instance", "ap50_mask", marks=pytest.mark.slow),
    ],
)
def test_the_curves_of_a_detection_are_those_of_what_counts(trained, monkeypatch, task, metric):
    evaluations, curves = kept(monkeypatch, detection, "detect_all"), kept(monkeypatch, pictures, "draw_curves")
    store, row = trained(task)
    assert len(evaluations) == len(curves) == 1
    assert 100 * pd.DataFrame(curves[0].T).mean().mean() == pytest.approx(row[metric])
    assert all((store.out / row[kind]).is_file() for kind in KINDS)


@pytest.fixture
def kept_of(tmp_path: Path) -> Callable[[], tuple[Path, dict[str, Any]]]:
    """Keep the pictures of a model without training it; return the folder of its cell and the columns."""
    cell = Cell(attn="swin", task="segment", head="semantic_fpn", data="scenes")
    store = open_store(tmp_path / "runs", create=True)
    key = store.add_cell(cell, None, ["accuracy"])
    data: Any = Pictures(torch.randn(3, 3, 8, 8), torch.randint(4, (3, 8, 8)))
    data.class_names, data.mean, data.std = "abcd", (0.0,) * 3, (1.0,) * 3
    job = SimpleNamespace(key=key, cell=cell, save_predictions=2)
    run: Any = SimpleNamespace(store=store, job=job, place=SimpleNamespace(device_id="cpu"), device=torch.device("cpu"))

    def keep() -> tuple[Path, dict[str, Any]]:
        model = Pixelwise()
        found = segmentation.count_pixels(model, data, device=run.device)
        return store.folder(key), predictions.keep_pictures(run, data, Evaluated(model, found))

    return keep


def test_what_cannot_be_drawn_or_written_costs_itself_alone(kept_of, monkeypatch, capsys):
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("no\npaint")

    monkeypatch.setattr(pictures, "draw_maps", fails)
    folder, columns = kept_of()
    assert [*columns] == ["scores"] and [path.name for path in folder.glob("*.png")] == ["scores.cpu.png"]
    warning = "warning: no picture of predictions: no paint; the accuracy is recorded without it\n"
    assert capsys.readouterr().out == warning
    (folder / "scores.cpu.png").unlink()
    (folder / "scores.cpu.png").mkdir()
    assert kept_of()[1] == {}
    assert capsys.readouterr().out.count("\n") == 2


def test_a_link_is_replaced_and_not_followed(kept_of, tmp_path):
    (tmp_path / "mine").write_text("mine")
    folder, _ = kept_of()
    for kind in KINDS:
        path = folder / f"{kind}.cpu.png"
        path.unlink()
        path.symlink_to(tmp_path / "mine")
    assert [*kept_of()[1]] == [*KINDS]
    assert (tmp_path / "mine").read_text() == "mine"
    assert not any((folder / f"{kind}.cpu.png").is_symlink() for kind in KINDS)


def test_without_the_option_nothing_is_drawn(trained, monkeypatch):
    monkeypatch.setattr(predictions, "picture_path", None)
    store, row = trained("segment", 0)
    assert all(pd.isna(row[kind]) for kind in KINDS)
    assert not [*store.folder(row["cell_key"]).glob("*.png")]


def test_a_file_is_drawn_with_as_many_dots_as_a_report_shows(monkeypatch):
    tried = []

    def render(figure: Any, kind: str, dpi: float) -> bytes:
        tried.append(dpi)
        return b"x" * int(MAX_BYTES * (dpi / 120) ** 2)

    monkeypatch.setattr(pictures, "render", render)
    assert len(pictures._small_enough(None)) <= MAX_BYTES and tried == [200, 140, 100]


# --- what is asked for


def test_the_command_refuses_what_has_nothing_to_draw(tmp_path, capsys):
    for arguments, words in (
        (["--task", "classify,segment", "--measure", "accuracy"], ["--save-predictions 4", "classify", "segment"]),
        (["--task", "segment", "--measure", "flops"], ["--save-predictions 4", "flops", "accuracy"]),
    ):
        assert main([*arguments, "--save-predictions", "4", "--results", str(tmp_path / "none")]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and all(word in message for word in words)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", ["-1", "many", str(MOST_IMAGES + 1), "2.5"])
def test_a_number_of_images_that_is_none(value):
    with pytest.raises(ValueError, match=f"0 to {MOST_IMAGES}"):
        RunOptions(save_predictions=value)


def test_jobs_are_told_how_many(tmp_path, monkeypatch):
    orders: list[Any] = []
    monkeypatch.setattr(module, "launch", lambda store, order, say: orders.append(order))
    monkeypatch.setattr(module, "print_submission", lambda *_: None)
    for given in ({"save_predictions": 3}, {}):
        Sweep(**FEW, task="segment").run(tmp_path / "runs", cluster="slurm", **given)
    assert [order.save_predictions for order in orders] == [3, 0]
    note = Submission(name="a", study="a", tasks=(), request=Request(), submitted_at="2026-01-01T00:00:00+00:00")
    check(note, "a")
    for bad in (True, -1, MOST_IMAGES + 1, "3", 1.0, None):
        with pytest.raises(TypeError):
            check(Submission(**{**vars(note), "save_predictions": bad}), "a")
