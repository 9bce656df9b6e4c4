"""How well a model finds objects: COCO's average precision of boxes, and of masks, by faster-coco-eval.

Average precision is the mean over 101 recalls, ten IoU thresholds 0.50 to 0.95, and the classes that occur in truth
(https://cocodataset.org/#detection-eval). A crowd is neither found nor missed, and what lies in it does no harm. Areas
(`small` below 32 x 32 px, `large` from 96 x 96 px) are those in the image's file, as COCO has them, where the targets
know its `original_size`; else those in the image that the model sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runners.dense.evaluating import BoxData, BoxTargets, Columns
from runners.machine.conditions import Conditions
from runners.train.distributed import ALONE, Group
from runners.train.step import PLAIN

SCORE_THRESHOLD = 0.05
"""Detections of lower scores are left out, as the published tests of RetinaNet and Mask R-CNN do."""
MOST_DETECTIONS = 100
"""Of an image, over all classes: COCO's limit."""
MASK_THRESHOLD = 0.5
"""Probability above which a pixel belongs to an object, arXiv:1703.06870, section 3.1."""

BOX, MASK = "bbox", "segm"
_COLUMNS: dict[str, tuple[int | slice, str]] = {
    "ap": (slice(None), "all"),
    "ap50": (0, "all"),
    "ap75": (5, "all"),
    "ap_small": (slice(None), "small"),
    "ap_medium": (slice(None), "medium"),
    "ap_large": (slice(None), "large"),
}
_AREAS = ("all", "small", "medium", "large")
"""In the order of COCO's parameters; IoU thresholds there are 0.50, 0.55 ... 0.95."""


@dataclass
class Detected:
    """What is in the images of a validation set, and what a model found in them.

    Attributes:
        images: of each its `id`, `height`, `width`, and `truth` and `found`, annotations as COCO's files have them.
        num_classes: classes are 1 .. num_classes.
        masks: whether objects have masks, too.
    """

    images: list[dict[str, Any]]
    num_classes: int
    masks: bool = False
    _precisions: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def columns(self) -> Columns:
        """Return `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` in percent, and `n_eval`.

        Those of masks end in `_mask`. None where truth has no object of such an area.
        """
        found: Columns = {}
        for kind, ending in ((BOX, ""), (MASK, "_mask"))[: 1 + self.masks]:
            precisions = self.precisions(kind)
            for name, (thresholds, area) in _COLUMNS.items():
                values = precisions[thresholds, ..., _AREAS.index(area), -1]
                # COCO's word for "no object of this class and area"
                values = values[values > -1]
                found[name + ending] = 100 * float(values.mean()) if values.size else None
        return {**found, "n_eval": len(self.images)}

    def curves(self, kind: str = BOX) -> NDArray[np.float64]:
        """Precision at IoU 0.5 over recalls 0, 0.01 ... 1: (classes, 101), NaN for classes that truth does not have."""
        precisions = self.precisions(kind)[0, :, :, 0, -1].T
        return np.where(precisions > -1, precisions, np.nan)

    def precisions(self, kind: str = BOX) -> NDArray[np.float64]:
        """Interpolated precision by (IoU, recall, class, area, most detections), -1 where truth has nothing."""
        if kind not in self._precisions:
            from faster_coco_eval import COCOeval_faster

            truth, found = self.as_coco("truth", kind), self.as_coco("found", kind)
            evaluation = COCOeval_faster(truth, found, kind, print_function=_say_nothing)
            evaluation.evaluate()
            evaluation.accumulate()
            self._precisions[kind] = np.asarray(evaluation.eval["precision"], np.float64)
        return self._precisions[kind]

    def as_coco(self, part: str, kind: str) -> Any:
        """The `truth` or what was `found`, as faster-coco-eval wants it."""
        from faster_coco_eval import COCO

        annotations: list[dict[str, Any]] = []
        # ids of images are numbers of their files, which may be below 0: here their places
        for place, image in enumerate(self.images):
            for annotation in image[part]:
                area = annotation["mask_area"] if kind == MASK and "mask_area" in annotation else annotation["area"]
                # numbers begin with 1: to the evaluation 0 is "matches nothing"
                own = {"id": len(annotations) + 1, "image_id": place, "area": area}
                annotations.append(annotation | own)
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": place, "height": image["height"], "width": image["width"]}
                for place, image in enumerate(self.images)
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": str(number)} for number in range(1, self.num_classes + 1)],
        }
        coco.createIndex()
        return coco


@torch.inference_mode()
def detect_all(
    model: nn.Module,
    data: BoxData,
    *,
    device: torch.device,
    conditions: Conditions = PLAIN,
    group: Group = ALONE,
    masks: bool = False,
    score_threshold: float = SCORE_THRESHOLD,
) -> Detected:
    """Find the objects of all validation images. Leaves the model in evaluation mode.

    Args:
        model: images (B, 3, H, W) -> for each a dict of boxes (N, 4) in px, labels and scores (N,), and with `masks`
            probabilities (N, 1, H, W).
        data: targets have image_id, size, boxes, labels, area, iscrowd, and with `masks` those (N, H, W).
        device: where the model is.
        conditions: how it computes.
        group: the processes that share the images out; each gets what all have found.
        masks: compare masks as well as boxes.
        score_threshold: detections of lower scores are left out.

    Raises:
        ValueError: no images, an object of a class that is none, or two images of one number.
    """
    model.eval()
    images = []
    for batch, targets in data.eval_batches(group.rank, group.world_size):
        with conditions.autocast(device):
            outputs = model(conditions.place_images(batch, device))
        images += _of_batch(outputs, targets, data.num_classes, masks, score_threshold)
    everything = [image for part in group.gather(images) for image in part]
    if not everything:
        raise ValueError("there are no test images, or none of them can be read")
    # the same list from any number of processes
    everything.sort(key=lambda image: int(image["id"]))
    for image, following in pairwise(everything):
        if image["id"] == following["id"]:
            raise ValueError(f"image_id {image['id']} is given to two validation images; each needs its own")
    return Detected(everything, data.num_classes, masks)


def _of_batch(
    outputs: Sequence[Mapping[str, Tensor]],
    targets: BoxTargets,
    num_classes: int,
    masks: bool,
    score_threshold: float,
) -> list[dict[str, Any]]:
    found = []
    for output, target in zip(outputs, targets, strict=True):
        height, width = target["size"].tolist()
        labels = target["labels"]
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= num_classes:
            number, strange = int(target["image_id"]), sorted({*labels.tolist()})
            raise ValueError(f"labels of image {number} must be 1 to {num_classes}, got {strange}")
        found.append(
            {
                "id": int(target["image_id"]),
                "height": height,
                "width": width,
                "truth": _truth(target, masks),
                "found": _found(output, target, masks, score_threshold),
            }
        )
    return found


def _truth(target: Mapping[str, Tensor], masks: bool) -> list[dict[str, Any]]:
    """Annotations of an image; also its crowds, and boxes without area."""
    fields = {
        "category_id": target["labels"].tolist(),
        "bbox": _by_corner(target["boxes"].double().cpu() * _to_original(target)).tolist(),
        "area": target["area"].tolist(),
        "iscrowd": target["iscrowd"].int().tolist(),
    }
    if masks:
        fields["segmentation"] = _encode(target["masks"] > 0, target)
    return _rows(fields)


def _found(
    output: Mapping[str, Tensor], target: Mapping[str, Tensor], masks: bool, score_threshold: float
) -> list[dict[str, Any]]:
    """The best detections of an image, within its borders and in the order of their scores."""
    height, width = target["size"].tolist()
    scores, boxes = output["scores"].float().cpu(), output["boxes"].double().cpu()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=torch.float64))
    # of what lies beyond the image nothing is left; a score or side that is NaN is kept out by the same comparison
    kept = (scores >= score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    order = torch.where(kept, scores, -torch.inf).argsort(descending=True, stable=True)
    order = order[: min(int(kept.sum()), MOST_DETECTIONS)]
    corners = _by_corner(boxes[order] * _to_original(target))
    fields = {
        "category_id": output["labels"].cpu()[order].tolist(),
        "bbox": corners.tolist(),
        "area": (corners[:, 2] * corners[:, 3]).tolist(),
        "score": scores[order].tolist(),
    }
    if masks:
        from faster_coco_eval import mask

        chosen = output["masks"][order.to(output["masks"].device), 0] > MASK_THRESHOLD
        fields["segmentation"] = _encode(chosen, target)
        scale = float(_to_original(target)[:2].prod())
        fields["mask_area"] = [scale * float(mask.area(encoded)) for encoded in fields["segmentation"]]
    return _rows(fields)


def _rows(fields: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def _to_original(target: Mapping[str, Tensor]) -> Tensor:
    """Pixels of the file's image for one of the image that the model sees: (x, y, x, y)."""
    height, width = (target.get("original_size", target["size"]) / target["size"]).tolist()
    return torch.tensor([width, height] * 2, dtype=torch.float64)


def _by_corner(boxes: Tensor) -> Tensor:
    """Boxes (x1, y1, x2, y2) as COCO writes them: (x, y, width, height)."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


def _encode(masks: Tensor, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Run lengths of masks (N, H, W) of a canvas, within their image."""
    from faster_coco_eval import mask

    height, width = target["size"].tolist()
    # run lengths go down columns
    columns = masks[:, :height, :width].cpu().to(torch.uint8).transpose(1, 2).contiguous().numpy()
    encoded: list[dict[str, Any]] = mask.encode(columns.transpose(2, 1, 0)) if columns.size else []
    return encoded


def _say_nothing(*_: object) -> None:
    """Take what the evaluation would print."""
