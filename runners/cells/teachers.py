"""The model that teaches in a training, from the fields of a recipe: its name and a file of its weights.

No weights are downloaded. A name alone would be a teacher with random weights, and is refused.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attention_zoo import LAYOUTS
from attention_zoo.published.models import PUBLISHED
from attention_zoo.published.weights import load_weights, read_weights
from attention_zoo.registry import suggest
from runners.cells.named import TIMM
from runners.cells.weights import load_model
from runners.data.datasets import count_classes
from runners.data.token_labels import check_label_maps
from runners.train.distillation import as_teacher
from runners.train.recipe import FROM_TEACHER, Recipe
from runners.train.token_labels import Dense


def check_teaching(recipe: Recipe, data: str, height_px: int, width_px: int) -> None:
    """Check that the teacher or the label maps of a recipe, if it has any, are there and fit the data.

    Raises:
        ValueError: what `load_teacher` or `check_label_maps` raises, or the teacher takes no such images or has no
            places to label.
    """
    if recipe.has_label_maps:
        check_label_maps(recipe.token_labels, data)
    if recipe.has_teacher:
        is_dense = recipe.token_labels == FROM_TEACHER
        _check(recipe.teacher, recipe.teacher_checkpoint, count_classes(data), height_px, width_px, is_dense)


@functools.cache
def _check(name: str, checkpoint: str, classes: int, height_px: int, width_px: int, is_dense: bool) -> None:
    teacher = _load(name, checkpoint, classes)
    what = f"recipe.teacher={name or checkpoint}"
    try:
        with torch.inference_mode():
            (Dense(teacher) if is_dense else teacher)(torch.zeros(1, 3, height_px, width_px))
    except Exception as error:  # whatever a model of timm raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        use = "recipe.token_labels=teacher" if is_dense else f"images of {height_px}x{width_px} px"
        raise ValueError(f"{what} cannot teach with {use}: {reason}") from error


def load_teacher(recipe: Recipe, classes: int) -> nn.Module | None:
    """Build the frozen teacher of a recipe on the CPU; None where the recipe learns from none.

    Raises:
        ValueError: an unknown name, no file of weights, a file that cannot be read or is another model's, or another
            number of classes.
    """
    return _load(recipe.teacher, recipe.teacher_checkpoint, classes) if recipe.has_teacher else None


def _load(name: str, checkpoint: str, classes: int) -> nn.Module:
    if not checkpoint:
        given = (
            f"recipe.teacher={name} has random weights" if name else "the recipe learns from a teacher and names none"
        )
        raise ValueError(f"{given}; give the file of its weights as recipe.teacher_checkpoint")
    try:
        teacher, known = _timm(name, checkpoint) if name.startswith(TIMM) else _ours(name, checkpoint)
    except ValueError as error:
        raise ValueError(f"recipe.teacher={name}, recipe.teacher_checkpoint={checkpoint}: {error}") from error
    if known != classes:
        raise ValueError(f"recipe.teacher_checkpoint={checkpoint} knows {known} classes, and the data have {classes}")
    return as_teacher(teacher)


def _ours(name: str, checkpoint: str) -> tuple[nn.Module, int]:
    """A published model, or a layout and a mechanism; without a name, what the file says."""
    arch, _, attn = name.partition("/")
    if name and arch not in LAYOUTS and (attn or arch not in PUBLISHED):
        known = sorted({*PUBLISHED, *(f"{layout}/MECHANISM" for layout in LAYOUTS), f"{TIMM}NAME"})
        raise ValueError(suggest("teacher", name, known))
    if not Path(checkpoint).is_file():
        raise ValueError("there is no such file")
    model = load_model(checkpoint, arch=arch or None, attn=attn or None).model
    return model, model.num_classes


def _timm(name: str, checkpoint: str) -> tuple[nn.Module, int]:
    import timm

    architecture = name.removeprefix(TIMM)
    if not timm.is_model(architecture):
        raise ValueError(suggest("model of timm", architecture, timm.list_models(f"*{architecture[:4]}*")))
    state = read_weights(checkpoint).state
    pretrained = timm.get_pretrained_cfg(architecture)
    head = (
        state.get(f"{pretrained.classifier}.weight") if pretrained and isinstance(pretrained.classifier, str) else None
    )
    sizes: dict[str, Any] = {} if head is None else {"num_classes": len(head)}
    model: Any = timm.create_model(architecture, pretrained=False, **sizes)
    load_weights(model, state)
    return model, model.num_classes
