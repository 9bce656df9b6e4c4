"""Targets that are drawn for measuring."""

import pytest
import torch

from runners.dense.examples import OBJECTS, example_targets
from runners.dense.losses import IGNORE

CPU = torch.device("cpu")


def test_labels_of_pixels_are_all_classes_and_some_ignored():
    labels = example_targets("segment", 2, 50, 70, 3, CPU)
    assert labels.shape == (2, 50, 70) and labels.dtype == torch.int64 and labels.is_contiguous()
    assert {*labels.unique().tolist()} == {0, 1, 2, IGNORE}
    assert (labels[:, 0, :16] == labels[:, 0, :1]).all()


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_boxes_lie_in_their_image(task):
    targets = example_targets(task, 3, 64, 96, 5, CPU)
    assert [int(target["image_id"]) for target in targets] == [0, 1, 2]
    for target in targets:
        boxes, sides = target["boxes"], target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert boxes.shape == (OBJECTS, 4) and (boxes >= 0).all() and (boxes <= torch.tensor([96, 64] * 2)).all()
        torch.testing.assert_close(sides[[0, -1]], torch.tensor([[9.6, 6.4], [48.0, 32.0]]))
        torch.testing.assert_close(target["area"], sides.prod(1))
        assert target["labels"].min() >= 1 and target["labels"].max() <= 5
        assert target["size"].tolist() == [64, 96] and ("masks" in target) == (task == "instance")


def test_masks_fill_their_boxes_but_for_the_corners():
    (target,) = example_targets("instance", 1, 200, 300, 2, CPU)
    masks = target["masks"]
    assert masks.shape == (OBJECTS, 200, 300) and masks.dtype == torch.uint8
    torch.testing.assert_close(
        masks.sum((1, 2)) / target["area"], torch.full((OBJECTS,), torch.pi / 4), rtol=0.03, atol=0
    )
    for mask, box in zip(masks, target["boxes"], strict=True):
        rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
        around = torch.stack((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
        assert (around - box).abs().max() < 1.5


@pytest.mark.parametrize("task", ["segment", "detect", "instance"])
def test_the_same_arguments_give_the_same_targets(task):
    first, again, other = (example_targets(task, 2, 64, 96, 9, CPU, seed) for seed in (0, 0, 1))
    flat = [
        torch.cat(
            [
                value.flatten().double()
                for item in part
                for value in (item.values() if isinstance(item, dict) else [item])
            ]
        )
        for part in (first, again, other)
    ]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_a_detector_of_torchvision_learns_from_them():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    body = torch.nn.Conv2d(3, 8, 3, stride=16)
    body.out_channels = 8
    model = RetinaNet(body, 3, anchor_generator=AnchorGenerator(((32,),), ((1.0,),)), min_size=64, max_size=96).train()
    losses = model(list(torch.rand(2, 3, 64, 96)), example_targets("detect", 2, 64, 96, 2, CPU))
    assert {*losses} == {"classification", "bbox_regression"} and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", 1, 8, 8, 2), "task must be one of segment, detect, instance, got 'classify'"),
        (("segment", 0, 8, 8, 2), "batch must be at least 1, got 0"),
        (("detect", 1, 8, 0, 2), "width must be at least 1, got 0"),
        (("detect", 1, 8, 8, 0), "num_classes must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        example_targets(*arguments, CPU)
