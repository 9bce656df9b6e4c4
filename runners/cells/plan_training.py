"""What a sweep says of training: recipes and their fields, how long, and what does not fit, before any work starts."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ablations.study import Axes, Cell
from ablations.values import as_text
from attention_zoo.config import field_names
from runners.cells.named import check_drop_path, is_rival
from runners.cells.starting import check_start
from runners.cells.task_data import CLASSIFY, check_data_of, steps_of_epoch
from runners.cells.teachers import check_teaching
from runners.data.augment import Augmentation, check_policy
from runners.data.datasets import steps_per_epoch
from runners.data.dense_augment import DenseAugmentation
from runners.data.image_specs import is_image_spec
from runners.dense.data.specs import SCENES, parse_dense_spec
from runners.train.recipe import ALL_STAGES, Recipe
from runners.train.recipes import CLASSIFICATION, DENSE, DENSE_SHORT, check_recipe, make_recipe, read_field

RECIPE = "recipe"
"""Owner of the settings that are fields of the recipe of a training."""

AS_DRAWN = vars(Augmentation())
"""Augmentation of data that are drawn, not read."""

FOR_CLASSES = (
    *("crop", "scale_min", "color_jitter", "auto_augment", "erasing", "mixup", "cutmix", "repeats"),
    "smoothing",
)
"""Fields of a recipe that only classification knows."""

OF_DETECTION = {"short_px", "long_px", "hflip", "keep_empty"}
OF_SEGMENTATION = {*field_names(DenseAugmentation)} - {"keep_empty"}
OF_SCENES = {"eval_scales"}
"""Fields of a recipe that change the images of a dense task."""

Spelling = Callable[[str, Sequence[str]], str]
"""Writes an argument and its values as whoever gave them would."""


def recipes_of(axes: Axes, task: str, spell: Spelling) -> Iterable[tuple[str, tuple[tuple[str, Any], ...], Recipe]]:
    """Products of recipes, or the task's own, and of the fields that are set; what a recipe says itself is left out.

    Raises:
        ValueError: no such recipe or field, or a value that does not fit.
    """
    setting = [(name.rpartition(".")[2], values) for name, values in axes.settings if name.startswith(f"{RECIPE}.")]
    for name in axes.recipe or (Cell.recipe if task == CLASSIFY else next(iter(DENSE)),):
        try:
            own = vars(check_recipe(name))
        except ValueError as error:
            raise ValueError(f"{spell(RECIPE, [])}: {error}") from error
        known, others = (CLASSIFICATION, "dense tasks") if task == CLASSIFY else (DENSE, CLASSIFY)
        if name not in known:
            raise ValueError(f"{spell(RECIPE, [name])} is for {others}; for {task} there are {', '.join(known)}")
        for combination in itertools.product(*(values for _, values in setting)):
            typed = {}
            for (field, _), text in zip(setting, combination, strict=True):
                try:
                    typed[field] = read_field(field, text)
                except ValueError as error:
                    raise ValueError(f"{spell(f'{RECIPE}.{field}', [text])}: {error}") from error
            changes = tuple(sorted((field, value) for field, value in typed.items() if value != own[field]))
            yield name, changes, make_recipe(name, changes)


def lengths_of(axes: Axes, task: str, data: str, recipe: Recipe, batch_size: int, spell: Spelling) -> tuple[int, ...]:
    """Lengths of the trainings in steps: those of the sweep, its epochs, or those of the recipe.

    Raises:
        ValueError: data that are not there, or have no epochs.
    """
    epochs = axes.epochs or (recipe.epochs if axes.steps is None else None)
    try:
        check_data_of(task, data)
        if epochs is None and recipe.schedule != "epochs":
            return axes.steps or (recipe.steps or Cell.steps,)
        per_epoch = steps_of_epoch(task, data, batch_size, recipe)
    except ValueError as error:
        raise ValueError(f"{spell('data', [])}: {error}") from error
    if per_epoch is None:
        given = spell("epochs", [str(epochs)]) if axes.epochs else "the recipe counts epochs"
        raise ValueError(f"{given}: {data} is an endless stream; give {spell('steps', [])}")
    return axes.steps or (Cell.steps,) if epochs is None else (epochs * per_epoch,)


def check_training(cell: Cell) -> None:
    """Refuse images, teachers and label maps that are not there, and recipes that do not fit them.

    Raises:
        ValueError: one message, which names what does not fit.
    """
    recipe = make_recipe(cell.recipe, cell.training)
    _check_task(cell, recipe)
    if is_rival(cell.model) and recipe.drop_path:
        check_drop_path(cell.model)
    if recipe.checkpointed_stages != ALL_STAGES and (is_rival(cell.model) or not recipe.checkpointing):
        needed = "models of timm have all or none" if is_rival(cell.model) else "it needs recipe.checkpointing=on"
        raise ValueError(f"recipe.checkpointed_stages={recipe.checkpointed_stages}: {needed}")
    if cell.init_from:
        check_start(cell)
    for name in ("reset_classes", "freeze"):
        if getattr(cell, name) and not cell.init_from:
            raise ValueError(f"{name} needs init_from, weights to start from")
    if recipe.eval_every and steps_of_epoch(cell.task, cell.data, cell.batch_size, recipe) is None:
        raise ValueError(f"recipe.eval_every={recipe.eval_every}: {cell.data} is an endless stream without epochs")
    if cell.task != CLASSIFY:
        _check_images(cell, recipe)
        steps_of_epoch(cell.task, cell.data, cell.batch_size, recipe)  # files that are there, and fill a batch
        return
    check_teaching(recipe, cell.data, cell.height_px, cell.width_px)
    if cell.tune_lr and any(name == "lr" for name, _ in cell.training):
        raise ValueError(f"tune_lr={cell.tune_lr} chooses the rate that recipe.lr gives; give one of them")
    if cell.tune_lr:
        try:
            steps_per_epoch(cell.data, cell.batch_size, recipe.repeats, tuning=True)
        except ValueError as error:
            raise ValueError(f"tune_lr={cell.tune_lr} trains on nine tenths of the images: {error}") from error
    if not is_image_spec(cell.data):
        asked = {name: getattr(recipe, name) for name in AS_DRAWN}
        if changed := {name: value for name, value in asked.items() if value != AS_DRAWN[name]}:
            raise ValueError(
                f"data {cell.data}: its images are drawn and not augmented; the recipe has {_listed(changed)}"
            )
        return
    steps_per_epoch(cell.data, cell.batch_size, recipe.repeats)
    if recipe.auto_augment:
        check_policy(recipe.auto_augment)
    if recipe.mixes and cell.batch_size % 2:
        raise ValueError(f"batch size {cell.batch_size}: Mixup and CutMix join pairs, give an even one")


def _check_images(cell: Cell, recipe: Recipe) -> None:
    """Refuse fields that change no image of a dense task: a sweep over one would train the same cell twice."""
    changing = OF_SEGMENTATION if cell.task == "segment" else OF_DETECTION
    is_drawn = parse_dense_spec(cell.data).kind == SCENES
    known = (changing & OF_SCENES) if is_drawn else changing
    strange = {*field_names(DenseAugmentation)} - known
    if given := {name: value for name, value in cell.training if name in strange}:
        what = f"data {cell.data}, whose images are drawn and not changed" if is_drawn else f"task={cell.task}"
        raise ValueError(f"{_listed(given)} changes nothing of {what}; leave it out")
    short_px = recipe.short_px or min(cell.height_px, cell.width_px)
    if 0 < recipe.long_px < short_px:
        raise ValueError(
            f"recipe.long_px={recipe.long_px} must be at least the short side, which is {short_px} px here"
        )


def _check_task(cell: Cell, recipe: Recipe) -> None:
    """Refuse what one task has and another does not."""
    if cell.task == CLASSIFY:
        foreign = [name for name in field_names(DenseAugmentation) if name not in field_names(Augmentation)]
        if given := {name: value for name, value in cell.training if name in foreign}:
            raise ValueError(f"task={cell.task} does not know {_listed(given)}, which is for dense tasks")
        return
    if recipe.has_teacher or recipe.has_label_maps:
        raise ValueError(f"task={cell.task} learns from its annotations alone; it has no teacher and no token labels")
    own = {name: getattr(recipe, name) for name in FOR_CLASSES if getattr(recipe, name) != getattr(DENSE_SHORT, name)}
    if own:
        raise ValueError(f"task={cell.task} does not know {_listed(own)}, which is for classes of images")
    for name in ("tune_lr", "freeze"):
        if getattr(cell, name):
            raise ValueError(f"{name} is for classify, and not for task={cell.task}")


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{RECIPE}.{name}={as_text(value)}" for name, value in fields.items())
