"""Trainings of dense tasks: any workers, cut off, killed, by several processes, and under options of a sweep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import slow_but
from dense_files import write_coco, write_segfolder
from test_elastic import losses, ranks, weights
from test_processes import in_background
from test_sweep import wait_for
from test_train import without_times
from training_ranks import assert_one_run, processes, spread

from ablations.study import Cell
from attention_zoo.dense.retinanet import P6P7
from runners import Sweep
from runners.cells.models import build_model
from runners.cells.objectives import objective_of
from runners.cells.task_data import make_data_of
from runners.machine.conditions import Conditions
from runners.train.accuracy import train_and_evaluate
from runners.train.distributed import ALONE, Group
from runners.train.recipes import make_recipe

__all__ = ["processes", "spread"]  # fixtures

CPU = torch.device("cpu")
STEPS = 6
TINY = (("box_width", 32), ("masks", 10), ("proposals", 50), ("rois_per_image", 16), ("width", 16))
HEADS: dict[str, tuple[str, tuple[tuple[str, Any], ...]]] = {
    "segment": ("semantic_fpn", (("fpn_width", 16), ("width", 16))),
    "upernet": ("upernet", (("auxiliary_width", 8), ("width", 16))),
    "detect": ("retinanet", (("width", 16),)),
    "instance": ("mask_rcnn", TINY),
}


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("files")
    coco = f"coco:{write_coco(root / 'coco')}"
    segfolder = f"segfolder:{write_segfolder(root / 'seg')}"
    return {"segment": segfolder, "upernet": segfolder, "detect": coco, "instance": coco}


def tiny(name: str, data: str, **changes: Any) -> Cell:
    head, settings = HEADS[name]
    task = "segment" if name == "upernet" else name
    more: dict[str, Any] = {"batch_size": 2, "recipe": "dense_short", "steps": STEPS, "threads": 1, **changes}
    sizes = {"height_px": 32, "width_px": 32, "layout": "small32"}
    return Cell(attn="swin", task=task, head=head, head_settings=settings, data=data, **sizes, **more)


def trained(
    cell: Cell, *, workers: int = 0, group: Group = ALONE, state: Path | None = None, cut: int | None = None
) -> tuple[list[float], dict[str, Any], dict[str, torch.Tensor]]:
    """Losses, row and weights of a training, which ends after some steps if it is `cut`."""

    def progress(step: int, steps: int, loss: float) -> None:
        if step == cut:
            raise Cut

    with group.joined(CPU):
        recipe = make_recipe(cell.recipe, cell.training)
        data = make_data_of(
            cell.task, cell.data, cell.height_px, cell.width_px, cell.batch_size, recipe, workers=workers
        )
        model = build_model(cell, data.num_classes, recipe.drop_path)
        row, samples = train_and_evaluate(
            model,
            data,
            steps=cell.steps,
            seed=cell.seed,
            device=CPU,
            conditions=Conditions.of(cell),
            recipe=recipe,
            progress=progress,
            state_path=state,
            checkpoint_every_s=0.0,
            target_acc=cell.target_acc,
            group=group,
            objective=objective_of(cell),
        )
    return samples["loss"], dict(row), model.state_dict()  # type: ignore[return-value]


def assert_same(found: Any, expected: Any, resumed: int = 0) -> None:
    assert found[0] == expected[0]
    assert without_times(found[1]) == without_times({**expected[1], "resumed": resumed})
    assert all(torch.equal(found[2][name], tensor) for name, tensor in expected[2].items())


@pytest.mark.parametrize("name", slow_but("segment", of=HEADS))
def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(name: str, files: dict[str, str], tmp_path: Path) -> None:
    cell = tiny(name, files[name])
    with pytest.raises(Cut):
        trained(cell, state=tmp_path / "state", cut=4)
    assert_same(trained(cell, state=tmp_path / "state"), trained(cell), resumed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "detect", "instance"])
def test_any_number_of_workers_gives_the_same_bits(name: str) -> None:
    cell = tiny(name, "scenes", steps=3, batch_size=4)
    assert_same(trained(cell, workers=2), trained(cell))


OPTIONS: dict[str, dict[str, Any]] = {
    "recomputed": {"training": (("checkpointing", True), ("checkpointed_stages", "1-3"))},
    "channels last": {"memory_format": "channels_last"},
}
"""What costs memory or time, and moves no bit of this training on a CPU."""
OTHER: dict[str, dict[str, Any]] = {
    "autocast": {"precision": "amp-bf16"},
    "half": {"precision": "bf16-weights"},
    "parts and an average": {"training": (("accumulate", 2), ("ema", 0.9)), "batch_size": 4},
    "looks": {"training": (("eval_every", 1),), "target_acc": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "detect", "instance"])
def test_recomputation_moves_no_bit(name: str, files: dict[str, str]) -> None:
    plain = trained(tiny(name, files[name], steps=2))
    for options in OPTIONS.values():
        found = trained(tiny(name, files[name], steps=2, **options))
        assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert trained(tiny(name, files[name], steps=2, **OPTIONS["recomputed"]))[0] == plain[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "detect", "instance"])
@pytest.mark.parametrize("option", OTHER)
def test_options_of_a_training(option: str, name: str, files: dict[str, str]) -> None:
    changes = dict(OTHER[option])
    if name != "segment":  # two images alone have something to learn
        changes.pop("batch_size", None)
    cell = tiny(name, files[name], **changes)
    found, row, _ = trained(cell)
    metric = objective_of(cell).metric
    assert found == pytest.approx(trained(tiny(name, files[name], batch_size=cell.batch_size))[0], rel=0.2)
    assert row[metric] is not None and (row[f"{metric}_ema"] is not None) == ("average" in option)
    assert (row[f"{metric}_best"] is not None) == (option == "looks")


def both(group: Group, cell: Cell) -> Any:
    return trained(cell, group=group)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_two_ranks_end_with_the_same_weights(name: str, files: dict[str, str], spread: Any) -> None:
    # one learns from an image more than the other
    cell = tiny(name, files[name], batch_size=3 if name in ("segment", "upernet") else 2)
    found = spread(both, cell, timeout_s=300.0)
    assert_one_run(found)
    alone = trained(cell)
    assert found[0][1]["world_size"] == 2 and found[0][1]["n_eval"] == alone[1]["n_eval"]
    if name == "detect":  # nothing is drawn in the model, and its loss is a mean over images
        assert found[0][0] == pytest.approx(alone[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_processes_of_a_dense_cell_start_again(files: dict[str, str], tmp_path: Path) -> None:
    fields = {f"head.{name}": value for name, value in TINY}
    sweep = Sweep(
        **{"attn": "swin", "layout": "small32", "resolution": 32, "task": "instance", "data": files["instance"]},
        **{"batch_size": 2, "threads": 1, "steps": 24, "measures": ["accuracy"], **fields},
    )

    def train(out: Path) -> Any:
        (row,) = sweep.run(out, procs_per_node=2, save_weights=True, checkpoint_every=0).to_dict("records")
        return row

    def kill() -> None:
        (_, second) = wait_for(lambda: ranks(tmp_path / "killed", step=5), 600)
        second.kill()

    killer = in_background(kill)
    row = train(tmp_path / "killed")
    killer.join(10)
    whole = train(tmp_path / "whole")
    assert (row["status"], row["world_size"], whole["resumed"]) == ("ok", 2, 0) and row["resumed"] >= 1
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    found, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("autocast", [False, True])
def test_levels_of_one_place_have_gradients_in_half_precision(autocast: bool, side: int) -> None:
    # on CPUs torch leaves them uninitialised
    torch.manual_seed(0)
    levels = P6P7(16, 16)
    x = torch.randn(2, 16, side, side)
    whole = torch.autograd.grad(sum(p.sum() for p in levels([], [x], [])[0]), [levels.p6.weight, levels.p7.weight])  # type: ignore[arg-type]
    half = levels if autocast else levels.to(torch.bfloat16)
    for _ in range(3):
        junk = torch.full((16 * 16 * 9,), 3e37, dtype=torch.bfloat16)
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = half([], [x if autocast else x.bfloat16()], [])[0]
        grads = torch.autograd.grad(sum(p.float().sum() for p in found), [half.p6.weight, half.p7.weight])  # type: ignore[arg-type]
        for grad, expected in zip(grads, whole, strict=True):
            torch.testing.assert_close(grad.float(), expected, rtol=0.05, atol=0.05)
