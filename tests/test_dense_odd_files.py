"""Annotations as tools of labelling leave them: told before work if they cannot be right, counted where left out.

Each of these was once read wrong, passed over in silence, or found only after the training.
"""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from dense_files import HEIGHT, WIDTH, labels_of, write_coco, write_segfolder, write_voc
from image_files import picture
from PIL import Image

from runners.data.decode import upright_size
from runners.data.dense_augment import DenseAugmentation
from runners.dense.data.batches import make_dense_data
from runners.dense.data.opened import open_dense
from runners.dense.data.segfolder import read_values
from runners.dense.detection import detect_all


@pytest.fixture(autouse=True)
def opened_anew():
    open_dense.cache_clear()


def refusal(spec, task):
    with pytest.raises(ValueError) as caught:
        open_dense(spec, task)
    message = str(caught.value)
    assert message.startswith(f"data '{spec}': ") and "\n" not in message
    return message


def each_annotation(name, value):
    return lambda content: [entry.update({name: value}) for entry in content["annotations"]]


def test_objects_without_polygons_are_no_training_set_of_masks(tmp_path):
    root = write_coco(tmp_path, each_annotation("segmentation", []))
    message = refusal(f"coco:{root}", "instance")
    assert "no image of split 'train2017' has an object that can be learnt" in message
    # of five one is a crowd, one has no area
    assert (
        "of 5 objects these are not learnt: 3 without a mask, 1 crowd or difficult, 1 without area in its image"
        in message
    )
    assert len(open_dense(f"coco:{root}", "detect").train_indices()) == 2


def test_objects_of_the_test_without_polygons_are_refused_where_masks_are_compared(tmp_path):
    root = write_coco(tmp_path)
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["segmentation"] = []
    path.write_text(json.dumps(content))
    assert "1 objects of the test have an empty segmentation; --task detect needs none" in refusal(
        f"coco:{root}", "instance"
    )
    open_dense(f"coco:{root}", "detect")


def test_boxes_beyond_their_images_are_not_learnt(tmp_path):
    root = write_coco(tmp_path, each_annotation("bbox", [1000, 1000, 10, 10]))
    message = refusal(f"coco:{root}", "detect")
    assert "4 without area in its image, 1 crowd or difficult" in message
    assert "of 3 images these are not learnt: 3 without an object to learn, 0 smaller than 32 px" in message


def test_what_is_left_out_is_told(tmp_path, capsys):
    make_dense_data("detect", f"coco:{write_coco(tmp_path / 'coco')}", 40, 64, 2, workers=0)
    assert capsys.readouterr().out.splitlines() == [
        "note: split train2017: of 5 objects these are not learnt: 1 crowd or difficult, 1 without area in its image",
        "note: split train2017: of 3 images these are not learnt: 1 without an object to learn, 0 smaller than 32 px",
    ]
    root = write_segfolder(tmp_path / "labels")
    (root / "images/val/val1.png").unlink()
    make_dense_data("segment", f"segfolder:{root}", 32, 32, 2, workers=0)
    assert capsys.readouterr().out == "note: split val: 1 annotations have no image of their name (val1); left out\n"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_greys_of_few_bits_keep_their_numbers(depth):
    values = [value % 2**depth for value in range(16)]
    bits = "".join(format(value, f"0{depth}b") for value in values)
    row = b"\0" + bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")
    assert read_values(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).tolist() == [values]


@pytest.mark.parametrize("label", [-1, -254])
def test_a_negative_label_is_no_class(tmp_path, label):
    root = write_segfolder(tmp_path)
    (root / "annotations/train/train0.png").unlink()
    values = labels_of(0).astype(np.int32)
    values[0, 0] = label
    Image.fromarray(values).save(root / "annotations/train/train0.tif")
    assert f"train0.tif: label {label} in the annotation; the labels of 3 classes are 0 to 2 and 9" in refusal(
        f"segfolder:{root}", "segment"
    )


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), "3", True])
@pytest.mark.parametrize("name", ["bbox", "area"])
def test_numbers_that_are_none_are_one_message(tmp_path, name, value):
    root = write_coco(tmp_path, each_annotation(name, [value, 0, 1, 1] if name == "bbox" else value))
    assert f"annotation 1: {name} must be" in refusal(f"coco:{root}", "detect")


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_an_image_of_another_size_than_its_annotation_is_found_before_work(tmp_path, task):
    if task == "detect":
        root = write_coco(tmp_path)
        picture(1, (WIDTH + 1, HEIGHT)).save(root / "val2017/val2017_3.png")
        message = refusal(f"coco:{root}", task)
        assert "val2017_3.png: it has 41 x 36 pixels, its annotation says 40 x 36" in message
    else:
        root = write_segfolder(tmp_path)
        picture(1, (WIDTH + 1, HEIGHT)).save(root / "images/val/val2.png")
        message = refusal(f"segfolder:{root}", task)
        assert "val2.png: the annotation has 40 x 36 pixels and its image 41 x 36" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_nothing_can_be_read_is_found_before_work(tmp_path, split):
    root = write_coco(tmp_path / "coco")
    for path in (root / f"{split}2017").iterdir():
        path.write_bytes(b"no image")
    assert "none of the 3 images that were looked at can be read" in refusal(f"coco:{root}", "detect")
    root = write_segfolder(tmp_path / "labels", train=3)
    for path in (root / f"annotations/{split}").iterdir():
        picture(1, (WIDTH, HEIGHT)).save(path, "JPEG")
    message = refusal(f"segfolder:{root}", "segment")
    assert message.endswith(f"{split}0.png: its annotation cannot be read: it is no PNG, BMP, TIFF or GIF)")


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_are_all_ignored_are_found_before_work(tmp_path, split):
    root = write_segfolder(tmp_path)
    for path in (root / f"annotations/{split}").iterdir():
        Image.fromarray(np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)).save(path)
    assert f"annotations of annotations/{split}/ has a class" in refusal(f"segfolder:{root}", "segment")


def test_labels_in_images_that_were_not_looked_at_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("runners.dense.data.checking.CHECKED", 2)
    root = write_segfolder(tmp_path)
    for number in (0, 5):
        Image.fromarray(np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)).save(root / f"annotations/train/train{number}.png")
    assert len(open_dense(f"segfolder:{root}", "segment").train) == 6


def test_images_that_cannot_be_read_are_named_and_not_their_annotations(tmp_path):
    root = write_segfolder(tmp_path)
    for path in (root / "images/val").iterdir():
        path.write_bytes(b"no image")
    message = refusal(f"segfolder:{root}", "segment")
    assert (
        "of the 3 images that were looked at can be read (images/val/val0.png: no image that Pillow can read)"
        in message
    )


def test_polygons_that_are_shares_of_the_image_are_refused(tmp_path):
    shares = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]
    root = write_coco(tmp_path, each_annotation("segmentation", shares))
    assert "of 3 masks that were looked at none can be read and has a pixel; are polygons in px?" in refusal(
        f"coco:{root}", "instance"
    )


def test_boxes_that_were_left_empty_are_no_shares(tmp_path):
    root = write_coco(tmp_path, each_annotation("bbox", [0, 0, 0, 0]))
    assert "4 without area in its image" in refusal(f"coco:{root}", "detect")


def test_images_without_an_object_that_are_learnt_from_are_not_told_as_left_out(tmp_path, capsys):
    data = make_dense_data(
        "detect", f"coco:{write_coco(tmp_path)}", 40, 64, 3, DenseAugmentation(keep_empty=True), workers=0
    )
    assert data.n_train == 3 and "of 3 images" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("orientation", "ending"), [("6", "jpg"), (6, "jpg"), (3, "jpg"), (1, "jpg"), (6, "tif"), (3, "tif"), (8, "png")]
)
def test_what_a_camera_wrote_may_be_anything(tmp_path, orientation, ending):
    """A text in the place of a number turns nothing, neither here nor where the image is read."""
    root = write_segfolder(tmp_path)
    turned = picture(0, (HEIGHT, WIDTH) if orientation in (6, 8) else (WIDTH, HEIGHT))
    value = orientation.encode() + b"\0" if isinstance(orientation, str) else struct.pack("<H", orientation)
    entry = struct.pack("<HHI4s", 0x0112, *((2, 2) if isinstance(orientation, str) else (3, 1)), value)
    (root / "images/train/train0.png").unlink()
    path = root / f"images/train/train0.{ending}"
    # one entry, a text or a number of 16 bits
    turned.save(path, exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4))
    with path.open("rb") as file:
        assert upright_size(file) == (WIDTH, HEIGHT)
    image, labels = open_dense(f"segfolder:{root}", "segment").train.read(0)
    assert image.size == labels.shape[::-1] == (WIDTH, HEIGHT)


def test_an_image_as_large_as_a_bomb_is_a_broken_one(tmp_path):
    root = write_segfolder(tmp_path)
    path = root / "images/train/train0.png"
    content = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 30_000, 30_000) + content[24:29]
    path.write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    train = open_dense(f"segfolder:{root}", "segment").train
    with pytest.raises(ValueError, match=r"30000 x 30000 pixels|decompression bomb"):
        train.read(0)


@pytest.mark.parametrize(
    ("first", "second", "task"),
    [
        ("images/train/train0.png", "images/train/train0.bmp", "segment"),
        ("annotations/val/val1.png", "annotations/val/val1.tif", "segment"),
        ("JPEGImages/a.png", "JPEGImages/a.tif", "detect"),
    ],
)
def test_two_files_of_one_name_are_refused(tmp_path, first, second, task):
    root = write_voc(tmp_path) if task == "detect" else write_segfolder(tmp_path)
    with Image.open(root / first) as image:
        image.save(root / second)
    message = refusal(f"{'voc' if task == 'detect' else 'segfolder'}:{root}", task)
    assert first in message and second in message and "have one name" in message


def test_two_images_of_coco_may_not_be_one_file(tmp_path):
    root = write_coco(tmp_path, lambda content: content["images"][1].update(file_name="train2017_7.png"))
    assert "two images have the file_name of train2017/train2017_7.png" in refusal(f"coco:{root}", "detect")


def test_boxes_that_are_shares_of_the_image_are_refused(tmp_path):
    root = write_coco(tmp_path, each_annotation("bbox", [0.25, 0.5, 0.5, 0.25]))
    assert "all boxes end within the first pixel" in refusal(f"coco:{root}", "detect")


def test_an_identifier_below_0_is_one_like_any_other(tmp_path):
    root = write_coco(tmp_path)
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] *= -1
    for annotation in content["annotations"]:
        annotation["image_id"] *= -1
    path.write_text(json.dumps(content))
    found = []
    for spec in (f"coco:{root}", f"coco:{write_coco(tmp_path / 'as_it_was')}"):
        data = make_dense_data("instance", spec, HEIGHT, WIDTH, 2, workers=0)
        columns = detect_all(Knowing(data), data, device=torch.device("cpu"), masks=True).columns()
        found.append(columns)
    # of the two dogs one has a box without area, which cannot be found: precision is 1 up to a recall of 0.5
    assert found[0] == found[1]
    assert found[0]["ap"] == pytest.approx(100 * (1 + 1 + 51 / 101) / 3) == found[0]["ap_mask"]


class Knowing(torch.nn.Module):
    """Finds what the truth says, image by image in the order of the test."""

    def __init__(self, data):
        super().__init__()
        self.targets = [target for _, targets in data.eval_batches() for target in targets]

    def forward(self, images):
        own, self.targets = self.targets[: len(images)], self.targets[len(images) :]
        return [
            {
                "boxes": target["boxes"],
                "labels": target["labels"],
                "scores": torch.ones(len(target["labels"])),
                "masks": target["masks"][:, None].float(),
            }
            for target in own
        ]


def test_names_of_voc_may_have_spaces_and_a_byte_order_mark(tmp_path):
    root = write_voc(tmp_path)
    for old, new in (("a", "img 1"), ("b", "img 2")):
        (root / f"JPEGImages/{old}.png").rename(root / f"JPEGImages/{new}.png")
        (root / f"Annotations/{old}.xml").rename(root / f"Annotations/{new}.xml")
    (root / "ImageSets/Main/train.txt").write_text("\ufeffimg 1\nimg 2\t1\nc  -1\n")
    train = open_dense(f"voc:{root}", "detect").train
    assert [train.name(index) for index in range(3)] == [
        "JPEGImages/img 1.png",
        "JPEGImages/img 2.png",
        "JPEGImages/c.png",
    ]


def test_a_class_of_the_test_alone_tells_where_classes_come_from(tmp_path):
    root = write_voc(tmp_path, a="<annotation><size><width>40</width><height>36</height></size></annotation>")
    message = refusal(f"voc:{root}", "detect")
    assert "class 'cat' is not known" in message and "without a classes.json, classes are those of training" in message
