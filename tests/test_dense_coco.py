"""Annotations of COCO: read as they were made, masks as those of pycocotools, and one message for all that is wrong."""

import numpy as np
import pycocotools.mask
import pytest
from dense_files import HEIGHT, WIDTH, in_tar, rectangle, run_lengths, write_coco
from image_files import picture, real

from runners.dense.data.masks import decode_segmentation
from runners.dense.data.opened import open_dense


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_coco_is_read_as_it_was_made(tmp_path, kind):
    root = write_coco(tmp_path / "coco")
    opened = open_dense(f"coco:{in_tar(root) if kind == 'tar' else root}", "instance")
    train = opened.train
    # by the ids of the categories: 3, 18, 90
    assert opened.classes == train.classes == ("car", "dog", "toothbrush")
    assert [train.name(i) for i in range(3)] == [f"train2017/train2017_{n}.png" for n in (7, 3, 5)]
    assert [train.is_empty(i) for i in range(3)] == [False, True, False]
    image, objects = train.read(0)
    assert np.array_equal(np.asarray(image), np.asarray(picture(0, (WIDTH, HEIGHT))))
    assert objects.boxes.tolist() == [[2, 4, 10, 10], [20, 10, 30, 20], [4, 6, 6, 10]]
    assert objects.labels.tolist() == [2, 1, 1]
    assert objects.iscrowd.tolist() == [False, True, False]
    assert (objects.area.tolist(), objects.image_id) == ([48, 100, 8], 70)
    masks = [rectangle(2, 4, 10, 10), rectangle(20, 10, 30, 20), rectangle(4, 6, 6, 10)]
    assert np.array_equal(objects.masks, masks)
    empty = train.read(1)[1]
    assert empty.boxes.shape == (0, 4) and empty.masks.shape == (0, HEIGHT, WIDTH) and len(empty.labels) == 0
    assert train.read(2)[1].boxes.tolist() == [[5, 5, 5, 12], [30, 20, 40, 36]]
    assert opened.train_indices().tolist() == [0, 2] and opened.train_indices(keep_empty=True).tolist() == [0, 1, 2]
    assert open_dense(f"coco:{root}", "detect").train.read(0)[1].masks is None


def test_packed_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        packed = pycocotools.mask.encode(np.asfortranarray(mask))
        for counts in (packed["counts"].decode(), run_lengths(mask)):
            found = decode_segmentation({"size": [height, width], "counts": counts}, height, width)
            assert np.array_equal(found, mask)


def test_polygons_are_filled_as_pycocotools_fills_them():
    rng = np.random.default_rng(1)
    for _ in range(20):
        polygons = [(rng.random(2 * rng.integers(3, 8)) * 45 - 3).tolist() for _ in range(rng.integers(1, 4))]
        theirs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, 40, 38))
        assert pycocotools.mask.encode(np.asfortranarray(decode_segmentation(polygons, 40, 38))) == theirs


def spoil(name, place, key, value):
    def change(content):
        content[name][place][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("images", 0, "file_name", "../../x.png"), "file_name of image 70 '../../x.png' leads out of the folder"),
        (spoil("images", 0, "file_name", "/etc/passwd"), "leads out of the folder"),
        (
            spoil("images", 0, "file_name", "val2017_7.png"),
            r"1 of its 3 images are not in train2017/ \(train2017/val20",
        ),
        (spoil("images", 0, "width", 4.5), "image 70: width and height must be integers"),
        (spoil("images", 0, "height", 1 << 40), "image 70: 40 x 1099511627776 pixels, the limit is"),
        (spoil("images", 0, "id", 30), "two images have the id 30"),
        (spoil("annotations", 0, "category_id", 4), "annotation 1: category_id 4 is none of the categories"),
        (spoil("annotations", 0, "image_id", 4), "annotation 1: image_id 4 is none of the images"),
        (spoil("annotations", 0, "bbox", [1, 2, 3]), "annotation 1: bbox must be four numbers"),
        (spoil("annotations", 0, "bbox", [1, 2, 3, float("nan")]), "bbox must be four numbers"),
        (spoil("annotations", 0, "bbox", [1, 2, -3, 4]), "bbox must be four numbers"),
        (spoil("annotations", 0, "iscrowd", 2), "iscrowd 0 or 1"),
        (spoil("annotations", 0, "segmentation", [[1, 2, 3, 4]]), "at least three corners"),
        (spoil("annotations", 0, "segmentation", None), "annotation 1: segmentation must be a list of polygons"),
        (
            spoil("annotations", 0, "segmentation", {"size": [40, 36], "counts": [1440]}),
            r"annotation 1: its mask has the size \[40, 36\] and its image \[36, 40\]",
        ),
        (lambda content: content.pop("annotations"), "it is not COCO: 'annotations' must be a list of objects with"),
        (lambda content: content["annotations"].clear(), "none of 3 images has an annotation"),
        (spoil("categories", 0, "name", "hair drier"), "its categories are others than those of the training images"),
        (spoil("categories", 0, "id", 3), "ids that are all different"),
    ],
)
def test_a_wrong_annotation_of_coco_is_one_message(tmp_path, change, message):
    write_coco(tmp_path, change)
    with pytest.raises(ValueError, match=rf"^data 'coco:.*instances_(train|val)2017\.json: .*{message}") as caught:
        open_dense(f"coco:{tmp_path}", "instance")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2", "[]", "3", '{"images": 1}', "[" * 100_000, '{"a": ' + "9" * 5000])
def test_a_json_that_is_no_coco_is_one_message(tmp_path, content):
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"is no JSON|it is not COCO"):
        open_dense(f"coco:{tmp_path}", "detect")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [36, 40], "counts": [1000, 441]}, "do not fill its 36 x 40 pixels"),
        ({"size": [36, 40], "counts": [-1, 1441]}, "do not fill"),
        ({"size": [36, 40], "counts": [1 << 70]}, "do not fill"),
        ({"size": [36, 40], "counts": "zzzz"}, "no packed string"),
        ({"size": [36, 40], "counts": "o" * 10_000}, "no packed string"),
        ({"size": [36, 40], "counts": "T"}, "are cut off"),
        ([[1, 1, 1e7, 1, 1e7, 9]], "in or near its image of 40 x 36 px, got 10000000.0"),
        ([[1, 1, float("nan"), 1, 5, 9]], "got nan"),
        ([["a", 1, 2, 1, 5, 9]], "got a"),
        ([[10**400, 1, 2, 1, 5, 9]], "got 1000"),
    ],
)
def test_a_mask_that_cannot_be_is_a_broken_image(tmp_path, segmentation, message):
    write_coco(tmp_path, spoil("annotations", 0, "segmentation", segmentation))
    train = open_dense(f"coco:{tmp_path}", "instance").train
    with pytest.raises(ValueError, match=message):
        train.read(0)
    assert len(train.read(2)[1].labels) == 2


def test_an_image_of_another_size_than_its_annotation_is_broken(tmp_path):
    picture(1, (30, 36)).save(write_coco(tmp_path) / "train2017/train2017_7.png")
    with pytest.raises(ValueError, match="it has 30 x 36 pixels, its annotation says 40 x 36"):
        open_dense(f"coco:{tmp_path}", "detect").train.read(0)


def test_coco128():
    opened = open_dense(f"coco:{real('coco128.tar')}", "instance")
    assert (len(opened.classes), opened.classes[0], opened.classes[79]) == (80, "person", "toothbrush")
    assert (len(opened.train), len(opened.train_indices())) == (128, 98)
    objects = opened.train.read(0)[1]
    assert (objects.image_id, objects.boxes[0].tolist()) == (9, [0, 14, 432, 387])
    # the areas of the file are those of the polygons
    assert np.allclose(objects.masks.sum((1, 2)), objects.area, rtol=0.1)
