"""Batches of dense tasks: what a model sees, and that its bits follow from the seed and the step alone."""

import itertools
import json

import numpy as np
import pytest
import torch
from dense_files import HEIGHT, WIDTH, labels_of, same, write_coco, write_segfolder, write_voc
from image_files import picture, real
from PIL import Image
from torchvision import tv_tensors

from runners.data.dense_augment import DenseAugmentation
from runners.data.image_specs import IMAGENET_MEAN, IMAGENET_STD
from runners.data.images import BrokenImage, DataError
from runners.dense.data.batches import make_dense_data
from runners.dense.data.opened import open_dense
from runners.dense.data.sources import IGNORE
from runners.dense.targets import Targets, pack, unpack

PLAIN = DenseAugmentation(hflip=0.0)


@pytest.fixture(autouse=True)
def _nothing_is_kept():
    open_dense.cache_clear()


def pixels(image):
    """Values of a normalised image, 0 to 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255).round()


def target(count, number=0, masks=True):
    found = {
        "boxes": torch.rand(count, 4),
        "labels": torch.arange(count),
        "iscrowd": torch.zeros(count, dtype=torch.bool),
        "area": torch.rand(count),
        "image_id": torch.tensor(number),
        "size": torch.tensor([5, 6]),
        "original_size": torch.tensor([10, 12]),
    }
    return found | ({"masks": torch.ones(count, 5, 6, dtype=torch.uint8)} if masks else {})


def test_targets_are_moved_and_split_as_a_tensor_is():
    targets = Targets(target(n, n) for n in (3, 0, 2, 1, 0))
    for sections in (1, 2, 3, 5):
        parts = targets.tensor_split(sections)
        assert [len(part) for part in parts] == [len(part) for part in torch.arange(5).tensor_split(sections)]
        assert all(isinstance(part, Targets) for part in parts)
        assert same(list(itertools.chain(*parts)), targets)
    moved = targets.to("meta", non_blocking=True)
    assert isinstance(moved, Targets) and all(value.is_meta for entry in moved for value in entry.values())
    assert isinstance(targets[1:3], Targets) and same(targets[1:3], list(targets)[1:3])


@pytest.mark.parametrize("masks", [False, True])
def test_packed_targets_come_back(masks):
    targets = [target(n, n, masks) for n in (2, 0, 3)]
    assert same(unpack(pack(targets)), targets) and isinstance(unpack(pack(targets)), Targets)
    assert same(unpack(pack(targets[1:2])), targets[1:2])


def spec_of(kind, root):
    if kind == "scenes":
        return "scenes:objects=3"
    write = {"segfolder": write_segfolder, "coco": write_coco, "voc": write_voc}[kind]
    return f"{kind}:{root if root.exists() else write(root)}"


KINDS = [
    ("segment", "segfolder"),
    ("instance", "coco"),
    ("detect", "voc"),
    ("instance", "scenes"),
    pytest.param("segment", "scenes", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_batches_do_not_depend_on_workers_processes_or_where_a_training_begins(tmp_path, task, kind):
    def data(**options):
        return make_dense_data(task, spec_of(kind, tmp_path / "data"), 40, 64, 2, **options)

    first = list(data(workers=0).train_batches(5, 0, 4))
    assert all(batch.share == 1 and len(batch.images) == len(batch.targets) == 2 for batch in first)
    assert not same(first[0].images, next(data(workers=0).train_batches(6, 0, 1)).images)
    # two workers, from the middle of the training on
    for batch, expected in zip(data(workers=2).train_batches(5, 1, 4), first[1:], strict=True):
        assert same(batch.images, expected.images) and same(batch.targets, expected.targets)
    # two processes
    halves = [list(data(workers=0).train_batches(5, 2, 4, rank, 2)) for rank in (0, 1)]
    for left, right, expected in zip(*halves, first[2:], strict=True):
        assert left.share == right.share == 1
        assert same(torch.cat([left.images, right.images]), expected.images)
        assert same([*left.targets, *right.targets], list(expected.targets))
    assert same(data(workers=0).batch(5, 3)[0], first[3].images)


def test_three_processes_share_out_a_batch_and_their_shares_say_how(tmp_path):
    data = make_dense_data("segment", f"segfolder:{write_segfolder(tmp_path)}", 32, 32, 4, workers=0)
    batches = [next(data.train_batches(0, 0, 1, rank, 3)) for rank in range(3)]
    assert [len(batch.images) for batch in batches] == [2, 1, 1]
    assert [batch.share for batch in batches] == [6 / 4, 3 / 4, 3 / 4]
    with pytest.raises(ValueError, match="a global batch of 4 images cannot be shared out to 5 processes"):
        next(data.train_batches(0, 0, 1, 0, 5))


@pytest.mark.parametrize(("task", "kind"), [("segment", "segfolder"), ("instance", "coco"), ("detect", "voc")])
def test_the_test_is_the_same_for_every_batch_size_and_number_of_processes(tmp_path, task, kind):
    def images(batch_size, workers, world_size):
        data = make_dense_data(task, spec_of(kind, tmp_path / "data"), 40, 64, batch_size, workers=workers)
        found = {}
        for rank in range(world_size):
            for batch, targets in data.eval_batches(rank, world_size):
                for image, entry in zip(batch, targets, strict=True):
                    found[image.sum().item()] = (image, [entry] if isinstance(entry, dict) else entry)
        return found

    expected = images(1, 0, 1)
    for other in (images(2, 2, 1), images(2, 0, 2)):
        assert other.keys() == expected.keys()
        assert all(
            same(image, other[key][0]) and same(entry, other[key][1]) for key, (image, entry) in expected.items()
        )


def test_detection_learns_from_images_with_objects_on_a_canvas_for_the_batch(tmp_path):
    def change(content):
        content["images"][2] |= {"width": 36, "height": 80}
        content["annotations"][4]["bbox"] = [0, 0, 36, 80]

    root = write_coco(tmp_path, change)
    picture(2, (36, 80)).save(root / "train2017/train2017_5.png")
    data = make_dense_data("detect", f"coco:{root}", 40, 64, 2, PLAIN, workers=0)
    assert (data.num_classes, data.class_names[0], data.steps_per_epoch) == (3, "car", 1)
    images, targets = data.batch(0, 0)
    # 36 x 40 to 40 x 44, 80 x 36 to 64 x 29
    assert images.shape == (2, 3, 64, 64) and sorted(entry["size"].tolist() for entry in targets) == [
        [40, 44],
        [64, 29],
    ]
    assert {int(entry["image_id"]) for entry in targets} == {70, 50}
    keep = make_dense_data("detect", f"coco:{root}", 40, 64, 3, DenseAugmentation(keep_empty=True), workers=0)
    assert sorted(len(entry["labels"]) for entry in keep.batch(0, 0)[1]) == [0, 1, 2]
    sizes = [
        batch.shape[-2:] for batch, _ in make_dense_data("detect", f"coco:{root}", 40, 64, 2, workers=0).eval_batches()
    ]
    assert sizes == [(64, 64), (64, 64)]


def test_segmentation_sees_labels_with_255_for_what_is_ignored(tmp_path):
    data = make_dense_data("segment", f"segfolder:{write_segfolder(tmp_path)}", 36, 40, 3, PLAIN, workers=0)
    assert (data.num_classes, data.class_names, data.steps_per_epoch) == (3, ("sky", "road", "tree"), 2)
    images, labels = data.batch(0, 0)
    assert images.shape == (3, 3, 36, 40) and labels.shape == (3, 36, 40) and labels.dtype == torch.int64
    known = {tuple(np.where(labels_of(n) == 9, IGNORE, labels_of(n))[0].tolist()) for n in range(6)}
    assert {tuple(row) for row in labels[:, 0].tolist()} <= known
    assert data.chance_percent is None and data.ceiling_percent is None


def test_a_broken_image_is_left_out_counted_and_named(tmp_path, capsys):
    root = write_coco(tmp_path)
    for split in ("train", "val"):
        (root / f"{split}2017/{split}2017_5.png").write_bytes(b"no image")
    data = make_dense_data("instance", f"coco:{root}", 40, 64, 2, workers=0)
    images, targets = data.batch(0, 0)
    assert [int(entry["image_id"]) for entry in targets] == [70, 70] and images.shape[0] == 2
    assert data.broken == {"train2017/train2017_5.png": "no image that Pillow can read"}
    assert sum(len(batch) for batch, _ in data.eval_batches()) == 2 and len(data.broken) == 2
    assert capsys.readouterr().out.count("cannot be read: no image that Pillow can read; it is left out") == 2
    strict = make_dense_data("instance", f"coco:{root}", 40, 64, 2, workers=0, strict=True)
    with pytest.raises(BrokenImage, match=r"train2017_5\.png cannot be read"):
        strict.batch(0, 0)
    (root / "train2017/train2017_7.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read, nor any of the 1 behind it"):
        make_dense_data("instance", f"coco:{root}", 40, 64, 2, workers=0).batch(0, 0)


def test_labels_that_are_wrong_in_one_of_many_images_are_named_when_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("runners.dense.data.checking.CHECKED", 2)
    root = write_segfolder(tmp_path)
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)).save(root / "annotations/train/train3.png")
    data = make_dense_data("segment", f"segfolder:{root}", 32, 32, 6, workers=0)
    data.batch(0, 0)
    (reason,) = data.broken.values()
    assert reason == "label 7 in the annotation; the labels of 3 classes are 0 to 2 and 9"


def test_a_split_that_is_learnt_and_tested_warns(tmp_path, capsys):
    spec = f"segfolder:{write_segfolder(tmp_path)},val_split=train,images=4"
    data = make_dense_data("segment", spec, 32, 32, 4, workers=0)
    assert "warning: 4 images of" in capsys.readouterr().out
    assert sum(len(images) for images, _ in data.eval_batches()) == 4


def test_tuning_tests_on_training_images_that_it_does_not_learn(tmp_path):
    data = make_dense_data("segment", f"segfolder:{write_segfolder(tmp_path, 20)}", 36, 40, 2, PLAIN, workers=0)
    part = data.for_tuning()
    assert part.steps_per_epoch == 9 and len(part.parts.val_indices) == 2
    assert not set(part.parts.val_indices) & set(part.parts.train_indices)
    assert sum(len(images) for images, _ in part.eval_batches()) == 2
    scenes = make_dense_data("detect", "scenes", 64, 64, 2, workers=0)
    other = scenes.for_tuning()
    assert not same(next(other.eval_batches())[0], next(scenes.eval_batches())[0])
    assert other.parts.train.size.sum() + other.parts.test.size.sum() == scenes.parts.train.size.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "coco:{}", 40, 16, 2), "sides of at least 32 px"),
        (
            ("detect", "coco:{}", 40, 40, 3),
            "batch size must be 1 to 2, the images that are learnt from, of 3 in the split, got 3",
        ),
        (("detect", "coco:{}", 40, 40, 0), "batch size must be at least 1, got 0"),
        (("segment", "coco:{}", 40, 40, 2), "no annotations for task 'segment'"),
    ],
)
def test_what_does_not_fit_is_one_message(tmp_path, arguments, message):
    task, spec, *rest = arguments
    with pytest.raises(ValueError, match=message):
        make_dense_data(task, spec.format(write_coco(tmp_path)), *rest, workers=0)


@pytest.mark.parametrize(
    ("task", "file", "options", "size"),
    [
        pytest.param("segment", "camvid.tar", "segfolder:{},images=8", (96, 128), marks=pytest.mark.slow),
        pytest.param("detect", "bccd_voc.tar", "voc:{},images=8", (96, 128), marks=pytest.mark.slow),
        ("instance", "coco128.tar", "coco:{},images=8", (96, 96)),
    ],
)
def test_real_images_become_batches(task, file, options, size):
    data = make_dense_data(task, options.format(real(file)), *size, 4, workers=0)
    images, targets = data.batch(0, 0)
    assert images.shape[:2] == (4, 3) and images.isfinite().all() and images.abs().mean() < 2
    if task == "segment":
        assert images.shape[2:] == size and set(targets.unique().tolist()) <= {*range(11), IGNORE}
    for entry in [] if task == "segment" else targets:
        height, width = entry["size"].tolist()
        limit = torch.tensor([width, height, width, height])
        assert len(entry["boxes"]) and (entry["boxes"] <= limit).all() and (entry["boxes"] >= 0).all()
        assert all(side % 32 == 0 for side in images.shape[2:])
        if task == "instance":
            # masks lie where their boxes do
            boxes = tv_tensors.BoundingBoxes(entry["boxes"], format="XYXY", canvas_size=(height, width))
            for mask, (left, top, right, bottom) in zip(entry["masks"], boxes.tolist(), strict=True):
                rows, columns = (mask.any(axis).nonzero() for axis in (1, 0))
                assert rows.min() >= top - 2 and rows.max() <= bottom + 2
                assert columns.min() >= left - 2 and columns.max() <= right + 2
    assert sum(len(batch) for batch, _ in data.eval_batches()) == 8 and not data.broken
    assert json.dumps(data.broken) == "{}" and len(data.fingerprint()) == 16
