"""Transforms of images with labels or boxes: crops, flips, sizes and colours as published."""

import numpy as np
import pytest
import torch
from dense_files import HEIGHT, WIDTH
from image_files import picture
from PIL import Image
from torchvision.transforms.v2 import functional as F

from runners.data.dense_augment import PUBLISHED, DenseAugmentation
from runners.data.image_specs import IMAGENET_MEAN, IMAGENET_STD
from runners.data.seeding import drawn_from
from runners.dense.data.sources import IGNORE, Objects
from runners.dense.data.transforms import DetectTransform, SegmentTransform, distorted

PLAIN = DenseAugmentation(hflip=0.0)


def pixels(image):
    """Values of a normalised image, 0 to 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255).round()


def test_a_test_image_and_its_labels_are_resized_together():
    labels = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 32, 0), 32, 1)
    image = Image.fromarray(np.stack([labels * 60] * 3, -1))
    found, kept = SegmentTransform(PLAIN, 32, 32, training=False)(image, labels)
    assert found.shape == (3, 32, 32) and type(found) is type(kept) is torch.Tensor
    assert torch.equal(
        kept, torch.arange(4, dtype=torch.uint8).reshape(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)
    )
    assert torch.equal(pixels(found)[0, ::10, ::10], kept[::10, ::10] * 60.0)


def test_the_size_of_a_test_image_is_the_published_one():
    labels, image = np.zeros((683, 512), dtype=np.uint8), picture(0, (512, 683))
    aligned, kept = SegmentTransform(PUBLISHED["segment"], 512, 512, training=False)(image, labels)
    assert aligned.shape == (3, 704, 512) and kept.shape == (704, 512)
    plain = DenseAugmentation(eval_multiple=1, eval_labels="original", short_px=256)
    found, kept = SegmentTransform(plain, 512, 512, training=False)(image, labels)
    assert found.shape == (3, 342, 256) and kept.shape == (683, 512)


def test_crops_are_cut_flipped_and_padded_with_their_labels():
    values = np.arange(64 * 48, dtype=np.uint32).reshape(48, 64)
    # the colour of a pixel says where it was
    image = Image.fromarray(np.stack([values // 64, values % 64, 0 * values], -1).astype(np.uint8))
    labels = (values % 64).astype(np.uint8)
    transform = SegmentTransform(DenseAugmentation(short_px=48), 40, 80, training=True)
    seen = set()
    for seed in range(12):
        with drawn_from(seed):
            found, kept = transform(image, labels)
        assert found.shape == (3, 40, 80) and kept.shape == (40, 80) and kept.dtype == torch.uint8
        row, column, _ = pixels(found)
        assert torch.equal(column[:, :64], kept[:, :64].float())
        assert torch.equal(row[:, :1].expand(-1, 64), row[:, :64]) and torch.equal(row[1:, 0], row[:-1, 0] + 1)
        assert (kept[:, 64:] == IGNORE).all() and (found[:, :, 64:] == 0).all()
        seen.add((int(row[0, 0]), int(column[0, 0])))
    assert {left for _, left in seen} == {0, 63} and {top for top, _ in seen} <= set(range(9)) and len(seen) > 4


def test_no_class_fills_a_crop_where_that_can_be_avoided():
    labels = np.zeros((64, 400), dtype=np.uint8)
    labels[:, 150:250] = np.arange(100) % 2
    image = picture(0, (400, 64))
    shares = {}
    for ratio in (0.75, 1.0):
        transform = SegmentTransform(
            DenseAugmentation(short_px=64, long_px=400, cat_max_ratio=ratio), 64, 64, training=True
        )
        shares[ratio] = []
        for seed in range(20):
            with drawn_from(seed):
                _, kept = transform(image, labels)
            shares[ratio].append(float(kept.float().mean()))
    # crops with a quarter of ones or more; a crop lies so in about 100 of 337 places
    assert np.mean(np.array(shares[0.75]) >= 0.25) > 0.9 and np.mean(np.array(shares[1.0]) >= 0.25) < 0.5


def test_a_factor_is_drawn_from_the_whole_range():
    image, labels = picture(0, (64, 64)), np.zeros((64, 64), dtype=np.uint8)
    transform = SegmentTransform(DenseAugmentation(short_px=64, zoom_min=0.5, zoom_max=2.0), 128, 128, training=True)
    sides = []
    for seed in range(30):
        with drawn_from(seed):
            _, kept = transform(image, labels)
        sides.append(int((kept[0] == 0).sum()))
    assert min(sides) < 40 and max(sides) > 120 and 75 < np.mean(sides) < 95


def test_colours_are_changed_as_mmseg_changes_them(monkeypatch):
    torch.manual_seed(0)
    image = torch.rand(3, 5, 6)
    # coins: brightness, order, contrast first, saturation, hue, contrast last; then uniform draws
    for coins, expected in (
        ((0, 1, 0, 0, 0), lambda x: x),
        ((1, 1, 0, 0, 0), lambda x: (x + 16 / 255).clamp(0, 1)),
        ((0, 1, 1, 0, 0), lambda x: (x * 1.25).clamp(0, 1)),
        ((0, 0, 0, 0, 1), lambda x: (x * 1.25).clamp(0, 1)),
        ((0, 1, 0, 1, 0), None),
    ):
        tosses = iter(coins)
        monkeypatch.setattr("runners.dense.data.transforms._chance", lambda _, tosses=tosses: bool(next(tosses)))
        monkeypatch.setattr("runners.dense.data.transforms._uniform", lambda low, high: low + 0.75 * (high - low))
        found = distorted(image.clone())
        if expected is None:
            # the largest channel stays, and saturation grows by a quarter where it can
            top, low = image.amax(0), image.amin(0)
            assert torch.allclose(found.amax(0), top)
            assert torch.allclose((top - found.amin(0)) / top, ((top - low) / top * 1.25).clamp(max=1), atol=1e-5)
        else:
            assert torch.allclose(found, expected(image))


def objects(masks=None):
    return Objects(
        boxes=np.array([[2, 4, 10, 10], [20, 10, 30, 20], [5, 5, 5, 12], [-4, 30, 8, 50], [41, 1, 44, 5]], dtype=float),
        labels=np.array([2, 1, 3, 1, 1]),
        iscrowd=np.array([False, True, False, False, False]),
        area=np.array([48.0, 100, 0, 240, 1]),
        image_id=70,
        masks=masks,
    )


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_objects_move_with_their_image(flip):
    masks = np.zeros((5, HEIGHT, WIDTH), dtype=np.uint8)
    masks[0, 4:10, 2:10] = masks[3, 30:36, 0:8] = masks[1, 10:20, 20:30] = 1
    transform = DetectTransform(DenseAugmentation(hflip=flip), 72, 160, training=True)
    image, found = transform(picture(0, (WIDTH, HEIGHT)), objects(masks), (96, 96))
    # short side 36 to 72: twice the size; no crowd, nothing without area or outside of the image
    boxes = torch.tensor([[4.0, 8, 20, 20], [0, 60, 16, 72]])
    if flip:
        boxes = torch.stack([80 - boxes[:, 2], boxes[:, 1], 80 - boxes[:, 0], boxes[:, 3]], 1)
    assert torch.equal(found["boxes"], boxes) and found["labels"].tolist() == [2, 1]
    assert found["area"].tolist() == [48, 240] and not found["iscrowd"].any()
    assert (found["size"].tolist(), found["original_size"].tolist()) == ([72, 80], [36, 40])
    assert int(found["image_id"]) == 70 and image.shape == (3, 96, 96) and found["masks"].shape == (2, 96, 96)
    for mask, (left, top, right, bottom) in zip(found["masks"], boxes.int().tolist(), strict=True):
        expected = torch.zeros(96, 96, dtype=torch.uint8)
        expected[top:bottom, left:right] = 1
        assert torch.equal(mask, expected)
    assert (image[:, 72:] == 0).all() and (image[:, :, 80:] == 0).all()
    assert all(type(value) is torch.Tensor for value in (image, *found.values()))
    plain = F.resize(picture(0, (WIDTH, HEIGHT)), [72, 80])
    expected = F.pil_to_tensor(plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else plain)
    assert torch.equal(pixels(image[:, :72, :80]), expected.float())


def test_the_test_keeps_crowds_and_boxes_without_area():
    image, found = DetectTransform(DenseAugmentation(hflip=1.0), 72, 160, training=False)(
        picture(0, (WIDTH, HEIGHT)), objects()
    )
    assert torch.equal(found["boxes"], 2 * torch.tensor(objects().boxes, dtype=torch.float32))
    assert found["iscrowd"].tolist() == [False, True, False, False, False] and "masks" not in found
    assert image.shape == (3, 96, 96)


def test_an_image_without_objects_is_an_empty_target():
    none = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0), 3, np.zeros((0, 36, 40), "u1"))
    for training in (False, True):
        _, found = DetectTransform(PLAIN, 64, 64, training=training)(picture(0, (WIDTH, HEIGHT)), none)
        assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 64, 64) and len(found["labels"]) == 0


def test_an_image_that_stands_in_for_another_fits_its_canvas():
    image, found = DetectTransform(PLAIN, 72, 160, training=True)(picture(0, (WIDTH, HEIGHT)), objects(), (32, 64))
    assert image.shape == (3, 32, 64) and found["size"].tolist() == [32, 35]
    assert found["boxes"][0].tolist() == pytest.approx([2 * 35 / 40, 4 * 32 / 36, 10 * 35 / 40, 10 * 32 / 36])
