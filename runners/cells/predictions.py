"""Pictures of what a trained model of a dense task says, as files of its cell; none is worth the accuracy."""

from collections.abc import Callable
from typing import Any

from runners.cells.job import Run
from runners.cells.objectives import Evaluated
from runners.data.datasets import Data
from runners.machine.conditions import Conditions
from runners.store.names import cell_name
from runners.store.pictures import picture_path


def keep_pictures(run: Run, data: Data, evaluated: Evaluated) -> dict[str, Any]:
    """Draw predictions of a few images and the scores of all, which the evaluation has found; the columns of both.

    A picture that cannot be drawn or written is one line of warning, and no column.
    """
    dense: Any = data
    draw: dict[str, Callable[[], Any]] = {
        "predictions": lambda: _draw_predictions(run, dense, evaluated),
        "scores": lambda: _draw_scores(run, dense, evaluated),
    }
    columns = {}
    for kind, make in draw.items():
        try:
            columns[kind] = str(make().relative_to(run.store.out))
        except Exception as error:  # of data, model, figure or disk
            words = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: no picture of {kind}: {words}; the accuracy is recorded without it", flush=True)
    return columns


def _draw_predictions(run: Run, data: Any, evaluated: Evaluated) -> Any:
    from runners.dense.pictures.predictions import save_predictions  # seconds of import

    count = run.job.save_predictions
    images = evaluated.found.columns()["n_eval"]
    return save_predictions(
        evaluated.model,
        data,
        picture_path(run.store, run.job.key, run.place.device_id, "predictions"),
        task=run.job.cell.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        device=run.device,
        conditions=Conditions.of(run.job.cell),
        count=count,
        every=max(1, images // count),
        caption=f"{cell_name(run.job.cell)}, after {run.job.cell.steps} steps.",
        root=run.store.out,
    )


def _draw_scores(run: Run, data: Any, evaluated: Evaluated) -> Any:
    from runners.dense.pictures.predictions import save_scores

    cell = run.job.cell
    path = picture_path(run.store, run.job.key, run.place.device_id, "scores")
    caption = f"{cell_name(cell)}, after {cell.steps} steps: "
    return save_scores(
        evaluated.found, path, task=cell.task, class_names=data.class_names, caption=caption, root=run.store.out
    )
