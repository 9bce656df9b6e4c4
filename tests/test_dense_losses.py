"""Losses of the dense tasks, and the training step that calls them."""

import copy
import math

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

from runners.dense.losses import DetectionLoss, SegmentationLoss, make_dense_criterion
from runners.machine.conditions import Conditions
from runners.train.step import train_step

IMAGES = torch.zeros(1, 3, 1, 2)


class Segmenter(nn.Module):
    """Logits of each pixel by itself, and of an auxiliary head in training."""

    def __init__(self):
        super().__init__()
        self.head, self.auxiliary = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return (self.head(images), self.auxiliary(images)) if self.training else self.head(images)


class Detector(nn.Module):
    """Two losses, each a mean over images, of the first box of each."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.calls = []

    def forward(self, images, targets):
        self.calls.append((len(images), [len(target["boxes"]) for target in targets]))
        found = self.head(images.mean((-2, -1)))
        wanted = torch.stack([target["boxes"][0] for target in targets])
        return {"boxes": F.mse_loss(found, wanted), "scores": found.square().mean()}


class Targets(list):
    """A list that splits as a tensor does."""

    def tensor_split(self, count):
        places = torch.arange(len(self)).tensor_split(count)
        return [Targets(self[int(place)] for place in part) for part in places]


def seeded(make):
    torch.manual_seed(0)
    return make()


def labels_with_ignored():
    labels = torch.randint(4, (5, 6, 7), generator=torch.Generator().manual_seed(1))
    labels[0] = 255
    labels[1, :3] = 255
    return labels


def detection_targets(count, kind=Targets):
    generator = torch.Generator().manual_seed(2)
    return kind({"boxes": torch.rand(1 + number % 3, 4, generator=generator)} for number in range(count))


def test_the_mean_is_over_all_pixels():
    logits = torch.tensor([[[[math.log(3), 5.0]], [[0.0, 1.0]]]])  # (1, 2, 1, 2): probabilities 3/4 and 1/4
    labels = torch.tensor([[[1, 255]]])
    loss = SegmentationLoss()(logits, labels, IMAGES)
    assert loss.item() == pytest.approx(math.log(4) / 2)


def test_without_ignored_pixels_it_is_the_mean_cross_entropy_of_torch():
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    assert SegmentationLoss()(logits, labels, IMAGES) == pytest.approx(F.cross_entropy(logits, labels).item())


def test_the_auxiliary_head_counts_two_fifths():
    logits, auxiliary, labels = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5), labels_with_ignored()[:2, :3, :5]
    alone = [SegmentationLoss()(each, labels, IMAGES).item() for each in (logits, auxiliary)]
    both = SegmentationLoss()((logits, auxiliary), labels, IMAGES).item()
    assert both == pytest.approx(alone[0] + 0.4 * alone[1])
    assert SegmentationLoss(0.0)((logits, auxiliary), labels, IMAGES).item() == alone[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_labels_has_loss_0_and_gradients_of_0(dtype):
    logits = torch.randn(2, 4, 3, 5, dtype=dtype).requires_grad_()
    loss = SegmentationLoss()(logits, torch.full((2, 3, 5), 255), IMAGES)
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_losses_of_a_detector_are_added():
    losses = {"a": torch.tensor(0.5, dtype=torch.bfloat16), "b": torch.tensor(1.25), "c": torch.tensor(2.0)}
    loss = DetectionLoss()(losses, [], IMAGES)
    assert (loss.item(), loss.dtype) == (3.75, torch.float32)


@pytest.mark.parametrize("output", [[], [{"boxes": torch.zeros(0, 4)}], {}], ids=["list", "detections", "empty"])
def test_a_detector_in_evaluation_is_refused(output):
    with pytest.raises(ValueError, match=r"returns a dict of losses, got .*call model\.train\(\) first"):
        DetectionLoss()(output, [], IMAGES)


def test_each_task_has_its_loss():
    kinds = {task: type(make_dense_criterion(task)) for task in ("segment", "detect", "instance")}
    assert kinds == {"segment": SegmentationLoss, "detect": DetectionLoss, "instance": DetectionLoss}
    assert [make_dense_criterion(task).in_model for task in kinds] == [False, True, True]
    with pytest.raises(ValueError, match="task must be one of segment, detect, instance, got 'classify'"):
        make_dense_criterion("classify")


def stepped(model, images, targets, criterion, **settings):
    """Loss of a step, and the weights after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    loss = train_step(model, optimizer, images, targets, criterion=criterion, clip_norm=None, **settings)
    return loss, nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
def test_segmentation_accumulates_to_the_whole_batch(parts):
    """Also where a part has no labels at all."""
    model, images = seeded(Segmenter).double(), torch.randn(5, 3, 6, 7, dtype=torch.float64)
    labels, criterion = labels_with_ignored(), SegmentationLoss()
    loss, weights = stepped(copy.deepcopy(model), images, labels, criterion)
    part_loss, part_weights = stepped(model, images, labels, criterion, accumulate=parts)
    assert part_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(part_weights, weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Targets, list], ids=["splits", "list"])
@pytest.mark.parametrize(("parts", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (8, [1] * 5)])
def test_a_detector_sees_the_targets_of_its_part(parts, sizes, kind):
    model, images = seeded(Detector), torch.randn(5, 3, 4, 4)
    targets = detection_targets(5, kind)
    whole = stepped(copy.deepcopy(model), images, targets, DetectionLoss())
    loss, weights = stepped(model, images, targets, DetectionLoss(), accumulate=parts)
    boxes = [len(target["boxes"]) for target in targets]
    assert model.calls == [(size, boxes[sum(sizes[:at]) :][:size]) for at, size in enumerate(sizes)]
    torch.testing.assert_close((loss, weights), whole)


def test_a_step_of_a_detector_is_the_hand_written_one():
    model, images, targets = seeded(Detector), torch.randn(3, 3, 4, 4), detection_targets(3)
    other = copy.deepcopy(model)
    sum(other(images, targets).values()).backward()
    with torch.no_grad():
        for weight in other.parameters():
            weight -= 0.5 * weight.grad
    _, weights = stepped(model, images, targets, DetectionLoss(), share=0.5)
    torch.testing.assert_close(weights, nn.utils.parameters_to_vector(other.parameters()))


def test_mixed_precision_reaches_the_losses_inside_of_the_model():
    class Watching(Detector):
        def forward(self, images, targets):
            self.dtype = self.head(images.mean((-2, -1))).dtype
            return super().forward(images, targets)

    model = seeded(Watching)
    loss, _ = stepped(
        model,
        torch.randn(2, 3, 4, 4),
        detection_targets(2),
        DetectionLoss(),
        conditions=Conditions(precision="amp-bf16"),
    )
    assert (model.dtype, loss.dtype) == (torch.bfloat16, torch.float32)


class Counting(nn.parallel.DistributedDataParallel):
    """The wrapper that adds up gradients, which has to see every forward pass."""

    passed = 0

    def forward(self, *inputs):
        self.passed += 1
        return super().forward(*inputs)


def test_targets_go_through_the_wrapper_of_several_processes(tmp_path):
    model, images, targets = seeded(Detector), torch.randn(4, 3, 4, 4), detection_targets(4)
    alone = stepped(copy.deepcopy(model), images, targets, DetectionLoss())
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = Counting(model)
        found = stepped(wrapped, images, targets, DetectionLoss(), accumulate=2)
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(found, alone)
    assert wrapped.passed == 2 and [boxes for _, boxes in model.calls] == [[1, 2], [3, 1]]
