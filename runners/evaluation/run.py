"""An evaluation from the request to its rows: everything is checked before the first image is read."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data.transforms_factory import create_transform
from torch import nn

from runners.evaluation.images import EvalSet, eval_set
from runners.evaluation.labels import RealLabels, class_count, class_indices, read_label_map, read_real_labels
from runners.evaluation.models import Asked, Opened, open_model
from runners.evaluation.processes import Place
from runners.evaluation.request import EvaluationRequest
from runners.evaluation.scoring import Way, answer, merge, score
from runners.machine.conditions import Conditions
from runners.machine.environment import apply_threads, environment, pick_device
from runners.machine.failures import Unsupported
from runners.store.names import as_text


class Prepared(NamedTuple):
    """A model, images, the model's class of each, their other labels, how to compute, and at which sizes (H, W).

    `sha256` is that of the checkpoint when it was read.
    """

    opened: Opened
    sha256: str | None
    images: EvalSet
    labels: list[int]
    real_labels: RealLabels | None
    way: Way
    resolutions: tuple[tuple[int, int], ...]


def prepare(request: EvaluationRequest, place: Place) -> Prepared:
    """Find the images, load the model and try it at each resolution.

    Raises:
        ValueError: something does not fit; one message that names the flag.
    """
    request.check()
    apply_threads(request.threads)
    device = place.device(pick_device(request.device))
    way = Way(request.batch_size, request.workers, device, Conditions(precision=request.precision))
    images = eval_set(request.data)
    sha256 = _sha256(request.checkpoint) if request.checkpoint else None
    opened = open_model(
        Asked(
            request.model,
            request.checkpoint,
            request.ema,
            request.attn,
            request.settings,
            len(read_label_map(request.label_map)) if request.label_map else class_count(images.classes),
        )
    )
    if request.crop_pct is not None:
        opened.data_config["crop_pct"] = request.crop_pct
    indices = class_indices(request.data, images.classes, opened.num_classes, request.label_map)
    real = read_real_labels(request.real_labels, images.names) if request.real_labels else None
    resolutions = request.resolution or (opened.resolution_px,)
    for size in resolutions:
        _try(opened, size, way)
    return Prepared(opened, sha256, images, [indices[label] for label in images.labels], real, way, resolutions)


def evaluate(
    request: EvaluationRequest, prepared: Prepared, place: Place, done: Callable[[int], None]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Evaluate at each resolution: on the first process the row, and the names of the images that cannot be read.

    Raises:
        ValueError: none of the images can be read.
    """
    opened, images = prepared.opened, prepared.images
    for size in prepared.resolutions:
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        config = opened.data_config | {"input_size": (3, *size)}
        images.transform = create_transform(**config, is_training=False)
        share = place.rank, place.world_size
        model = _sized(opened.model, size)
        parts = place.gather(answer(model, images, prepared.labels, prepared.way, share=share, done=done))
        if parts is not None:
            answers = merge(parts, len(images))
            if not len(answers.indices):
                raise ValueError(f"--data {request.data}: none of the {len(images)} images can be read")
            row = _describe(request, prepared, config) | score(answers, prepared.labels, prepared.real_labels)
            names = [images.names[index] for index in answers.unread]
            yield row | {"processes": place.world_size, "started_at": started}, names


def _sized(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A model of timm's that is built for one size, for another; ours take images of any."""
    if not hasattr(model, "set_input_size"):
        return model
    resized = copy.deepcopy(model)
    resized.set_input_size(img_size=size)  # type: ignore[operator]
    return resized


def _try(opened: Opened, size: tuple[int, int], way: Way) -> None:
    """Classify one grey image, as the real ones will be.

    Raises:
        ValueError: the model cannot take that size, or returns something else than logits of its classes.
    """
    asked = f"--resolution {'x'.join(map(str, size))}"
    try:
        model = way.conditions.place(_sized(opened.model, size), way.device)
        with torch.inference_mode(), way.conditions.applied(way.device), way.conditions.autocast(way.device):
            logits = model(way.conditions.place_images(torch.zeros(1, 3, *size), way.device))
    except Unsupported as error:
        raise ValueError(f"--precision: {error}") from error
    # what a model of anybody's raises at a size that it was not made for
    except Exception as error:
        raise ValueError(f"{asked}: {opened.identity} cannot take it: {' '.join(str(error).split())}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, opened.num_classes):
        raise ValueError(f"{asked}: {opened.identity} does not return a logit for each of its classes")


def _describe(request: EvaluationRequest, prepared: Prepared, config: dict[str, Any]) -> dict[str, Any]:
    """What a row says beside the accuracies."""
    opened, way = prepared.opened, prepared.way
    here = environment(way.device)
    _, *size = config["input_size"]
    return {
        "model": opened.identity.arch,
        "attention": opened.identity.attn,
        "settings": as_text(opened.identity.config) or None,
        "checkpoint": str(request.checkpoint) if request.checkpoint else None,
        "checkpoint_sha256": prepared.sha256,
        "ema": request.ema,
        "params_m": sum(parameter.numel() for parameter in opened.model.parameters()) / 1e6,
        "num_classes": opened.num_classes,
        "data": request.data,
        "resolution": "x".join(map(str, size)),
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        **{name: ";".join(f"{value:g}" for value in config[name]) for name in ("mean", "std")},
        "precision": request.precision,
        "batch_size": request.batch_size,
        **{name: here[name] for name in ("device", "device_name", "host", "git_sha", "git_dirty")},
        "versions": as_text(here["versions"]),
    }


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"--checkpoint {path} cannot be read: {error.strerror or error}") from error
