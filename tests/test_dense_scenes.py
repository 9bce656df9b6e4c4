"""Scenes of digits: one draw for all tasks, with boxes and masks where the ink is."""

import numpy as np
import torch
from dense_files import same

from runners.data.probes import split_digits
from runners.dense.data.batches import make_dense_data
from runners.dense.data.scene import INK, draw_scene


def test_a_scene_is_one_draw_for_all_tasks():
    batches = {
        task: make_dense_data(task, "scenes", 64, 96, 8, workers=0).batch(3, 7)
        for task in ("segment", "detect", "instance")
    }
    images, labels = batches["segment"]
    assert same(images, batches["detect"][0]) and same(images, batches["instance"][0])
    assert images.shape == (8, 3, 64, 96) and labels.dtype == torch.int64
    for semantic, plain, entry in zip(labels, batches["detect"][1], batches["instance"][1], strict=True):
        assert "masks" not in plain and all(same(plain[name], entry[name]) for name in plain)
        assert 1 <= len(entry["labels"]) <= 4
        # each pixel has one owner, and is of its class
        assert entry["masks"].sum(0).max() == 1
        assert torch.equal((entry["masks"] * entry["labels"][:, None, None]).sum(0), semantic)
        for mask, box, area in zip(entry["masks"], entry["boxes"], entry["area"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] and area == mask.sum()


def test_scenes_show_training_digits_alone_and_are_padded_for_detection():
    data = make_dense_data("detect", "scenes", 50, 70, 4, workers=0)
    images, targets = data.batch(0, 0)
    assert images.shape == (4, 3, 64, 96) and (images[:, :, 50:] == 0).all() and (images[..., 70:] == 0).all()
    assert all(entry["size"].tolist() == entry["original_size"].tolist() == [50, 70] for entry in targets)
    assert (data.num_classes, data.steps_per_epoch, data.class_names[3]) == (10, None, "3")
    assert sum(len(batch) for batch, _ in data.eval_batches()) == 256
    segment = make_dense_data("segment", "scenes", 50, 70, 4, workers=0)
    assert segment.num_classes == 11 and segment.class_names[:2] == ("background", "0")


def test_a_digit_is_where_its_ink_is():
    digits, _ = split_digits()
    scene = draw_scene(np.random.default_rng(4), digits, 64, 64, objects=1, noise=0.0, number=9)
    grey = scene.image / 2 + 0.4
    assert scene.objects.image_id == 9 and len(scene.objects.labels) == 1
    ink = scene.labels > 0
    assert np.array_equal(ink, scene.objects.masks[0] > 0)
    # light on grey: at least INK of the way to the colour
    lowest = 0.5 + INK * (grey.max((1, 2), keepdims=True) - 0.5)
    assert (grey[:, ink] >= lowest[:, 0] - 1e-6).all() and (grey[:, ~ink] < grey[:, ink].max(1, keepdims=True)).all()
    classes = [
        draw_scene(np.random.default_rng(i), digits, 40, 40, objects=1, noise=0, number=0).objects.labels[0]
        for i in range(200)
    ]
    assert set(classes) == set(range(1, 11))
