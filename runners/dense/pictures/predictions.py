"""Predictions beside truth on a few validation images: maps of classes, or boxes and masks of objects.

`draw_maps` and `draw_boxes` are pure functions of what they show and write nothing; `save_predictions` runs a model on
some images and writes a PNG, and `save_scores` one of what an evaluation of all has found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from runners.dense.detection import BOX, MASK, MASK_THRESHOLD, Detected
from runners.dense.evaluating import EvalData
from runners.dense.losses import IGNORE
from runners.dense.pictures.board import KeyEntry, Name, board, show, write_names, write_note
from runners.dense.pictures.colours import Floats, class_colours, occurring, paint_classes, paint_masks
from runners.dense.pictures.score_figures import draw_confusion, draw_curves
from runners.dense.segmentation import Segmented, confusion_matrix, resized, segmentation_scores
from runners.figures import DPI, render
from runners.figures.sheet import RC
from runners.machine.conditions import Conditions
from runners.store.files import write_whole
from runners.store.pictures import MAX_BYTES
from runners.train.step import PLAIN

SHOWN_SCORE = 0.3
"""Predicted boxes of lower scores would hide the picture."""
MOST_BOXES = 30
DOTS_PER_INCH = (DPI, 140, 100, 70)
"""The first with which a file is not too large."""


@dataclass(frozen=True)
class MapPicture:
    """A photograph (H, W, 3) in 0 .. 1, and classes (H, W), `IGNORE` where truth has none."""

    name: str
    pixels: Floats
    truth: NDArray[Any]
    predicted: NDArray[Any]


@dataclass(frozen=True)
class Objects:
    """Boxes (N, 4) as x1, y1, x2, y2 in px, classes (N,) from 1; maybe scores (N,), crowds (N,) and masks (N, H, W)."""

    boxes: NDArray[Any]
    labels: NDArray[Any]
    scores: NDArray[Any] | None = None
    crowds: NDArray[Any] | None = None
    masks: NDArray[Any] | None = None

    def chosen(self) -> "Objects":
        """Those that are drawn: the best by score, else the largest first, so that no small one lies below another."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        rank = -sides.prod(1) if self.scores is None else -self.scores
        order = np.argsort(rank, kind="stable")
        if self.scores is not None:
            order = order[self.scores[order] >= SHOWN_SCORE][:MOST_BOXES]
        fields = (self.boxes, self.labels, self.scores, self.crowds, self.masks)
        return Objects(*(None if values is None else values[order] for values in fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class BoxPicture:
    """A photograph (H, W, 3) in 0 .. 1, what is in it and what was found."""

    name: str
    pixels: Floats
    truth: Objects
    predicted: Objects


def draw_maps(pictures: Sequence[MapPicture], class_names: Sequence[str], caption: str = "") -> Figure:
    """Draw photographs, their true and their predicted classes, one row each."""
    colours = class_colours(len(class_names))
    shown = {label for picture in pictures for part in (picture.truth, picture.predicted) for label in occurring(part)}
    key = [KeyEntry(class_names[label], colours[label]) for label in sorted(shown)]
    if any((picture.truth == IGNORE).any() for picture in pictures):
        key.append(KeyEntry("no label", "#555555", hatch="/////"))
    with rc_context(RC):
        shapes = [picture.truth.shape for picture in pictures]
        figure, rows = board(shapes, ("image", "truth", "prediction"), key, caption)
        for picture, (photo, truth, predicted) in zip(pictures, rows, strict=True):
            show(photo, picture.pixels)
            write_note(photo, picture.name)
            for ax, classes in ((truth, picture.truth), (predicted, picture.predicted)):
                show(ax, paint_classes(picture.pixels, classes, len(class_names)))
            write_note(predicted, _agreement(picture, len(class_names)))
    return figure


def _agreement(picture: MapPicture, num_classes: int) -> str:
    truth, predicted = (torch.from_numpy(np.asarray(part, np.int64)) for part in (picture.truth, picture.predicted))
    matrix = confusion_matrix(predicted[None], truth[None], num_classes)
    if not matrix.sum():
        return "no pixel has a label"
    scores = segmentation_scores(matrix)
    return f"{scores['aacc']:.1f} % of pixels right, mIoU {scores['miou']:.1f} %"


def draw_boxes(pictures: Sequence[BoxPicture], class_names: Sequence[str], caption: str = "") -> Figure:
    """Draw true and predicted objects, one row for each photograph."""
    told = f"Predictions with scores of {SHOWN_SCORE} or more, at most {MOST_BOXES} an image. {caption}".strip()
    with rc_context(RC):
        shapes = [picture.pixels.shape[:2] for picture in pictures]
        figure, rows = board(shapes, ("truth", "prediction"), (), told)
        for picture, (left, right) in zip(pictures, rows, strict=True):
            _draw_objects(left, picture, picture.truth.chosen(), class_names, picture.name)
            found = picture.predicted.chosen()
            count = len(found.boxes)
            _draw_objects(right, picture, found, class_names, f"{count} object{'s' * (count != 1)}")
    return figure


def _draw_objects(ax: Axes, picture: BoxPicture, objects: Objects, class_names: Sequence[str], note: str) -> None:
    palette = class_colours(len(class_names))
    colours = [palette[label - 1] for label in objects.labels]
    pixels = picture.pixels
    if objects.masks is not None:
        pixels = paint_masks(pixels, objects.masks, colours)
    names = []
    for number, (box, label, colour) in enumerate(zip(objects.boxes.tolist(), objects.labels, colours, strict=True)):
        is_crowd = objects.crowds is not None and bool(objects.crowds[number])
        text = class_names[label - 1] + (" (crowd)" if is_crowd else "")
        if objects.scores is not None:
            text += f" {objects.scores[number]:.2f}"
        names.append(Name(text, (box[0] - 0.5, box[1] - 0.5, box[2] - 0.5, box[3] - 0.5), colour))
    show(ax, pixels)
    for number, name in enumerate(names):
        left, top, right, bottom = name.box
        is_crowd = objects.crowds is not None and bool(objects.crowds[number])
        # a dark casing, since the line alone is lost on what has its colour
        for colour, width in (("#000000", 1.7), (name.colour, 0.9)):
            style: Any = {"linestyle": (0, (3, 2))} if is_crowd and colour != "#000000" else {}
            corner, across, down = (left, top), right - left, bottom - top
            ax.add_patch(
                Rectangle(corner, across, down, fill=False, edgecolor=colour, linewidth=width, zorder=3, **style)
            )
    left_out = write_names(ax, names)
    write_note(ax, f"{note}; {left_out} without a name, for want of room" if left_out else note)


def save_predictions(
    model: nn.Module,
    data: EvalData[Any],
    path: Path,
    *,
    task: str,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    conditions: Conditions = PLAIN,
    count: int = 4,
    every: int = 1,
    caption: str = "",
    root: Path | None = None,
) -> Path:
    """Run a model on a few validation images and write a PNG of what it says beside what is true.

    Args:
        model: as `count_pixels` or `detect_all` take it; left in evaluation mode.
        data: its images.
        path: of the PNG, which appears whole or not at all.
        task: segment, detect or instance.
        class_names: of classes 0 .. of pixels, 1 .. of boxes.
        mean: of the channels, which the data have subtracted.
        std: of the channels, by which they have divided.
        device: where the model is.
        conditions: how it computes.
        count: of images.
        every: take the first images of one of so many parts of the data, as as many processes share them out; files
            beside each other are often alike.
        caption: written below.
        root: the results folder, if the path is in one.

    Raises:
        ValueError: a count or step below 1, or no image.
        StoreError: the file cannot be written.
    """
    if count < 1 or every < 1:
        raise ValueError(f"count and every must be at least 1, got {count} and {every}")
    chosen = list(islice(_images(data, every), count))
    if not chosen:
        raise ValueError("there is no validation image to draw")
    model.eval()
    pictures = []
    for number, (image, target) in enumerate(chosen):
        with torch.inference_mode(), conditions.autocast(device):
            output = model(conditions.place_images(image[None], device))[0]
        scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
        pixels = (image.cpu().float() * scale + shift).clamp(0, 1).permute(1, 2, 0).double().numpy()
        make = _map_picture if task == "segment" else _box_picture
        pictures.append(make(f"image {1 + number * every}", pixels, target, output))
    draw: Any = draw_maps if task == "segment" else draw_boxes
    write_whole(path, _small_enough(draw(pictures, class_names, caption)), root=root)
    return path


def save_scores(
    found: Segmented | Detected,
    path: Path,
    *,
    task: str,
    class_names: Sequence[str],
    caption: str = "",
    root: Path | None = None,
) -> Path:
    """Write a PNG of what an evaluation found: classes that are confused, or precision over recall.

    Args:
        found: by the evaluation of the task.
        path: of the PNG, which appears whole or not at all.
        task: segment, detect, or instance, whose curves are those of masks.
        class_names: of classes 0 .. of pixels, 1 .. of boxes.
        caption: written below, before what the figure is of.
        root: the results folder, if the path is in one.

    Raises:
        ValueError: there is nothing to draw.
        StoreError: the file cannot be written.
    """
    if isinstance(found, Segmented):
        told = f"{caption}all labelled validation pixels."
        figure = draw_confusion(found.plain.numpy(), class_names, told)
    else:
        kind, what = (MASK, "masks") if task == "instance" else (BOX, "boxes")
        figure = draw_curves(found.curves(kind), class_names, f"{caption}{what} of all validation images.")
    write_whole(path, _small_enough(figure), root=root)
    return path


def _small_enough(figure: Figure) -> bytes:
    """Return a PNG with as many dots as a report shows: large photographs take most of a file."""
    content = b""
    for dpi in DOTS_PER_INCH:
        content = render(figure, "png", dpi)
        if len(content) <= MAX_BYTES:
            break
    return content


def _images(data: EvalData[Any], every: int) -> Iterator[tuple[Tensor, Any]]:
    # the part of one of so many processes: no other image is read
    for images, targets in data.eval_batches(0, every):
        yield from zip(images, targets, strict=True)


def _map_picture(name: str, pixels: Floats, labels: Tensor, logits: Tensor) -> MapPicture:
    """A picture in the pixels of the labels, which may have the size of their file."""
    size, planes = tuple(labels.shape), torch.from_numpy(pixels).permute(2, 0, 1)
    logits, planes = (
        image if tuple(image.shape[-2:]) == size else resized(image[None], size)[0]
        for image in (logits.float().cpu(), planes)
    )
    return MapPicture(name, planes.permute(1, 2, 0).numpy(), labels.cpu().numpy(), logits.argmax(0).numpy())


def _box_picture(name: str, pixels: Floats, target: Mapping[str, Tensor], output: Mapping[str, Tensor]) -> BoxPicture:
    height, width = target["size"].tolist()
    truth, found = ({key: value.float().cpu().numpy() for key, value in part.items()} for part in (target, output))
    within = np.array([width, height] * 2)
    masks = [truth.get("masks"), found.get("masks")]
    is_inside = [None if part is None else part.reshape(-1, *part.shape[-2:])[:, :height, :width] for part in masks]
    return BoxPicture(
        f"image {int(target['image_id'])}",
        pixels[:height, :width],
        Objects(
            truth["boxes"],
            truth["labels"].astype(int),
            crowds=truth["iscrowd"],
            masks=None if is_inside[0] is None else is_inside[0] > 0,
        ),
        Objects(
            found["boxes"].clip(0, within),
            found["labels"].astype(int),
            scores=found["scores"],
            masks=None if is_inside[1] is None else is_inside[1] > MASK_THRESHOLD,
        ),
    )
