"""Average precision: worked out by hand, by pycocotools, and over processes and batches."""

import contextlib
import io

import numpy as np
import pytest
import torch
from test_dense_segmentation import Rank
from torch import nn

from runners.dense.detection import MOST_DETECTIONS, detect_all

CPU = torch.device("cpu")
SIDE = 160
AREAS = ("small", "medium", "large")


def evaluate_detection(*arguments, **more):
    return detect_all(*arguments, **more).columns()


def objects(boxes, labels=None, scores=None, **more):
    """Boxes as a model gives them, or as targets have them."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    found = {"boxes": boxes, "labels": torch.tensor(labels or [1] * count, dtype=torch.int64)}
    if scores is not None:
        return {**found, "scores": torch.tensor(scores, dtype=torch.float32), **more}
    sides = boxes[:, 2:] - boxes[:, :2]
    found |= {"area": sides.prod(1), "iscrowd": torch.zeros(count, dtype=torch.bool)}
    return {**found, "size": torch.tensor([SIDE, SIDE]), **more}


class Photos:
    """Images that say their own number in their first pixel, as their targets do."""

    def __init__(self, targets, num_classes=1, batch_size=2):
        self.num_classes, self.batch_size = num_classes, batch_size
        self.targets = [{"image_id": torch.tensor(10 + at), **target} for at, target in enumerate(targets)]
        self.images = torch.zeros(len(targets), 3, 2, 2)
        self.images[:, 0, 0, 0] = torch.arange(len(targets))

    def eval_batches(self, rank, world_size):
        starts = range(0, len(self.images), self.batch_size)
        for start in starts[rank::world_size]:
            stop = start + self.batch_size
            yield self.images[start:stop], self.targets[start:stop]


class Oracle(nn.Module):
    """Finds what it was told, by the number of the image."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images):
        return [self.outputs[int(image[0, 0, 0])] for image in images]


def columns(targets, outputs, num_classes=1, batch_size=2, **settings):
    photos = Photos(targets, num_classes, batch_size)
    return evaluate_detection(Oracle(outputs).train(), photos, device=CPU, **settings)


def test_perfect_detections():
    boxes = [[0, 0, 20, 20], [30, 30, 80, 80], [10, 10, 120, 120]]
    found = columns([objects(boxes, [1, 2, 2])], [objects(boxes, [1, 2, 2], [0.9, 0.8, 0.7])], num_classes=3)
    names = ("ap", "ap50", "ap75", *(f"ap_{area}" for area in AREAS))
    assert found == pytest.approx({**dict.fromkeys(names, 100), "n_eval": 1})


def test_a_hit_a_miss_and_a_hit():
    """Precision is 1 up to recall 0.5 and 2/3 from there, at 51 and 50 of the 101 recalls."""
    truth = objects([[0, 0, 40, 40], [60, 60, 110, 110]])
    output = objects([[0, 0, 40, 40], [100, 0, 140, 40], [60, 60, 110, 110]], scores=[0.9, 0.8, 0.7])
    found = columns([truth], [output])
    assert [found["ap"], found["ap50"]] == pytest.approx([100 * (51 + 50 * 2 / 3) / 101] * 2)


def test_a_box_of_iou_0_82_counts_at_seven_thresholds_of_ten():
    found = columns([objects([[0, 0, 100, 100]])], [objects([[0, 0, 100, 82]], scores=[0.9])])
    assert [found[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([70, 100, 100])
    # its class has no object of other sizes
    assert [found[f"ap_{area}"] for area in AREAS] == [None, None, pytest.approx(70)]


def test_finding_nothing_is_0_and_nothing_to_find_is_unknown():
    truth, nothing = objects([[0, 0, 40, 40]]), objects([], scores=[])
    found = columns([truth, objects([])], [nothing, nothing])
    assert (found["ap"], found["ap_medium"], found["ap_small"], found["n_eval"]) == (0, 0, None, 2)
    assert columns([objects([])], [objects([[0, 0, 9, 9]], scores=[0.9])])["ap"] is None


def test_a_false_alarm_on_an_image_without_boxes_counts():
    box = [[0, 0, 40, 40]]
    outputs = [objects(box, scores=[0.5]), objects(box, scores=[0.9])]
    assert columns([objects(box), objects([])], outputs)["ap50"] == pytest.approx(50)


def test_what_lies_in_a_crowd_does_no_harm():
    boxes = [[0, 0, 40, 40], [50, 50, 150, 150]]
    outputs = [objects([[60, 60, 90, 90], [100, 100, 150, 150], [0, 0, 40, 40]], scores=[0.9, 0.8, 0.7])]
    crowd = objects(boxes) | {"iscrowd": torch.tensor([False, True])}
    assert columns([crowd], outputs)["ap"] == pytest.approx(100)
    assert columns([objects(boxes)], outputs)["ap"] < 50


def test_boxes_end_where_the_image_does():
    """The canvas goes on, and so does the detection."""
    truth = objects([[50, 50, 100, 80]], size=torch.tensor([80, 100]))
    assert columns([truth], [objects([[50, 50, 160, 160]], scores=[0.9])])["ap"] == pytest.approx(100)
    outside = objects([[120, 90, 150, 150], [50, 50, 100, 80]], scores=[0.9, 0.8])
    assert columns([truth], [outside])["ap"] == pytest.approx(100)


def test_low_scores_are_left_out():
    truth, output = objects([[0, 0, 40, 40]]), objects([[0, 0, 40, 40]], scores=[0.04])
    assert columns([truth], [output])["ap"] == 0
    assert columns([truth], [output], score_threshold=0.04)["ap"] == pytest.approx(100)


def test_what_is_no_number_is_left_out():
    nan = float("nan")
    output = objects([[0, 0, nan, 40], [0, 0, 40, 40], [0, 0, 40, 40]], scores=[0.9, nan, 0.8])
    assert columns([objects([[0, 0, 40, 40]])], [output])["ap"] == pytest.approx(100)


def test_the_best_hundred_of_an_image_count_over_all_classes():
    boxes = [[0, 0, 40, 40]] * MOST_DETECTIONS + [[60, 60, 110, 110]]
    labels = [1] * MOST_DETECTIONS + [2]
    output = objects(boxes, labels, [0.9] * MOST_DETECTIONS + [0.8])
    truth = objects([[0, 0, 40, 40], [60, 60, 110, 110]], [1, 2])
    assert columns([truth], [output], num_classes=2)["ap"] == pytest.approx(50)
    output["scores"][-1] = 0.95
    assert columns([truth], [output], num_classes=2)["ap"] == pytest.approx(100)


def test_areas_are_those_of_the_file_where_targets_know_its_size():
    """Of an image of half the height and a quarter of the width, an object of 25 x 25 px is one of 50 x 100 px."""
    truth = objects([[0, 0, 25, 25]], original_size=torch.tensor([2 * SIDE, 4 * SIDE]), area=torch.tensor([5000.0]))
    # the false alarm is one among medium objects, too, and the mask of the hit is as large as its box
    output = objects([[0, 0, 25, 25], [50, 50, 75, 75]], scores=[0.8, 0.9])
    masks = torch.zeros(2, SIDE, SIDE)
    masks[0, :25, :25] = masks[1, 50:75, 50:75] = 1
    found = columns([truth | {"masks": masks[:1]}], [output | {"masks": masks[:, None]}], masks=True)
    for ending in ("", "_mask"):
        values = [found[f"ap_{area}{ending}"] for area in AREAS]
        assert values == [None, pytest.approx(50), None]


def test_an_object_on_the_border_of_two_areas_is_of_both_as_in_coco():
    """96 x 96 px of a file of 640 x 480 px that the model sees at 0.8 times its size."""
    sizes = {"size": torch.tensor([384, 512]), "original_size": torch.tensor([480, 640])}
    truth = objects([[0, 0, 76.8, 76.8]], **sizes, area=torch.tensor([9216.0]))
    found = columns([truth], [objects([[0, 0, 76.8, 76.8]], scores=[0.9])])
    assert [found[f"ap_{area}"] for area in AREAS] == [None, pytest.approx(100), pytest.approx(100)]


def test_curves_are_those_of_each_class():
    truth = objects([[0, 0, 40, 40], [60, 60, 110, 110]], [1, 1])
    output = objects([[0, 0, 40, 40], [100, 0, 140, 40]], [1, 1], [0.9, 0.8])
    curves = detect_all(Oracle([output]), Photos([truth], num_classes=2), device=CPU).curves()
    assert curves.shape == (2, 101)
    assert (curves[0, :51] == 1).all() and (curves[0, 51:] == 0).all() and np.isnan(curves[1]).all()


@pytest.mark.parametrize("label", [0, 3])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match=rf"labels of image 10 must be 1 to 2, got \[{label}\]"):
        columns([objects([[0, 0, 9, 9]], [label])], [objects([], scores=[])], num_classes=2)


def test_two_images_of_one_number_are_refused():
    same = objects([], image_id=torch.tensor(7))
    with pytest.raises(ValueError, match="image_id 7 is given to two validation images"):
        columns([same, objects([]), same], [objects([], scores=[])] * 3)


def random_set(seed, count=10, num_classes=2):
    """Targets with crowds, of all sizes, on some images none; outputs near them and anywhere, scores that tie."""
    generator = np.random.default_rng(seed)

    def boxes(number):
        side = generator.choice([15, 30, 60, 125, 150], (number, 1))
        corner = generator.uniform(0, SIDE - side, (number, 2))
        return np.concatenate((corner, corner + side), 1)

    targets, outputs = [], []
    for at in range(count):
        own = boxes(0 if at % 5 == 4 else generator.integers(1, 6))
        labels = generator.integers(1, num_classes + 1, len(own))
        crowd = torch.from_numpy(generator.random(len(own)) < 0.2)
        near = np.clip(own + generator.normal(0, 3, own.shape), 0, SIDE)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guessed = np.concatenate((near, boxes(3)))
        guessed_labels = np.concatenate((labels, generator.integers(1, num_classes + 1, 3)))
        scores = generator.integers(4, 20, len(guessed)) / 20
        targets.append(objects(own.tolist(), labels.tolist(), iscrowd=crowd) | {"masks": ellipses(own)})
        # an object's area is that of its mask, in COCO
        targets[-1]["area"] = targets[-1]["masks"].sum((1, 2)).float()
        outputs.append(objects(guessed.tolist(), guessed_labels.tolist(), scores.tolist()))
        outputs[-1]["masks"] = ellipses(guessed)[:, None] * 0.9
    return targets, outputs


def ellipses(boxes):
    """Masks (N, H, W) that fill boxes but for their corners."""
    y, x = torch.arange(SIDE)[:, None] + 0.5, torch.arange(SIDE) + 0.5
    masks = torch.zeros(len(boxes), SIDE, SIDE)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        across, down = (x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top)
        mask[across**2 + down**2 < 0.25] = 1
    return masks


def by_pycocotools(targets, outputs, num_classes, kind):
    """Its six average precisions in percent, of annotations that are put together here."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools, the oracle, is not installed")
    from pycocotools import mask as run_lengths
    from pycocotools.cocoeval import COCOeval

    def row(number, given, at):
        left, top, right, bottom = given["boxes"][at].double().tolist()
        mask = given["masks"][at].squeeze(0).numpy() > 0.5
        return {
            "image_id": number,
            "category_id": int(given["labels"][at]),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": run_lengths.encode(np.asfortranarray(mask.astype(np.uint8))),
        }

    truth, found = coco.COCO(), []
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "height": SIDE, "width": SIDE} for number in range(len(targets))],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": [],
    }
    for number, (target, output) in enumerate(zip(targets, outputs, strict=True)):
        for at in range(len(target["boxes"])):
            own = {"id": len(truth.dataset["annotations"]) + 1, "iscrowd": int(target["iscrowd"][at])}
            truth.dataset["annotations"].append(row(number, target, at) | own | {"area": float(target["area"][at])})
        for at in range(len(output["boxes"])):
            own = row(number, output, at) | {"score": float(output["scores"][at])}
            # a result with both would be measured by its box
            own.pop("bbox" if kind == "segm" else "segmentation")
            found.append(own)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:6]


NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_masks_as_pycocotools(seed):
    targets, outputs = random_set(seed)
    assert any(target["iscrowd"].any() for target in targets)
    found = columns(targets, outputs, num_classes=2, masks=True)
    for kind, ending in (("bbox", ""), ("segm", "_mask")):
        expected = by_pycocotools(targets, outputs, 2, kind)
        assert [found[name + ending] for name in NAMES] == pytest.approx(expected, rel=1e-12)
        assert expected.min() > 5 and expected.max() < 95


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 12), (2, 5), (3, 2)])
def test_processes_and_batches_do_not_matter(world_size, batch_size):
    targets, outputs = random_set(3, count=6)
    one = columns(targets, outputs, num_classes=2, masks=True)
    said = {}
    for rank in range(world_size):
        group = Rank(rank, world_size, said)
        photos = Photos(targets, 2, batch_size)
        found = detect_all(Oracle(outputs), photos, device=CPU, masks=True, group=group)
    assert found.columns() == one
    assert [image["id"] for image in found.images] == [10, 11, 12, 13, 14, 15]


def test_masks_end_where_the_image_does():
    truth = objects([[0, 0, 40, 60]], size=torch.tensor([60, 40]))
    masks = torch.zeros(1, SIDE, SIDE)
    masks[:, :60, :40] = 1
    output = objects([[0, 0, 160, 160]], scores=[0.9]) | {"masks": torch.ones(1, 1, SIDE, SIDE)}
    found = columns([truth | {"masks": masks}], [output], masks=True)
    assert (found["ap_mask"], found["ap_medium_mask"]) == (pytest.approx(100), pytest.approx(100))
