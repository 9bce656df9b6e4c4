"""Images with annotations: hand-made data of which every value is known, and every way in which they may be wrong."""

import json

import numpy as np
import pycocotools.mask
import pytest
from dense_files import (
    HEIGHT,
    WIDTH,
    coco_split,
    labels_of,
    rectangle,
    run_lengths,
    voc_xml,
    write_coco,
    write_segfolder,
    write_voc,
)
from image_files import encoded, picture, real, tar_of, write_tar
from PIL import Image

from runners.dense.data.masks import decode_segmentation
from runners.dense.data.opened import open_dense
from runners.dense.data.segfolder import read_values
from runners.dense.data.sources import IGNORE
from runners.dense.data.voc import parse_annotation


def in_tar(folder):
    return tar_of(folder, folder.parent / f"{folder.name}.tar")


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


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_voc_is_read_as_it_was_made(tmp_path, kind):
    root = write_voc(tmp_path / "voc")
    opened = open_dense(f"voc:{in_tar(root) if kind == 'tar' else root}", "detect")
    assert opened.classes == ("cat", "dog", "emu")
    image, objects = opened.train.read(0)
    assert image.size == (WIDTH, HEIGHT) and objects.masks is None
    # pixels from 1, the last one included
    assert objects.boxes.tolist() == [[0, 0, WIDTH, HEIGHT], [10, 11, 20, 22]]
    assert (objects.labels.tolist(), objects.iscrowd.tolist()) == ([2, 1], [False, True])
    assert objects.area.tolist() == [WIDTH * HEIGHT, 110]
    assert opened.train.read(1)[1].boxes.tolist() == [[4, 4, 5, 5]]
    assert opened.train_indices().tolist() == [0, 1]
    assert opened.val.read(0)[1].boxes.tolist() == [[2, 3, 13, 24]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a",
            voc_xml(("dog", 0, 1, 1, 41, 9)),
            r"Annotations/a.xml: box 1, 1, 41, 9 of 'dog' lies outside of the image",
        ),
        ("a", voc_xml(("dog", 0, 9, 1, 5, 9)), "box 9, 1, 5, 9 of .* outside of the image of 40 x 36 px, or is none"),
        ("a", voc_xml(("dog", 0, "x", 1, 5, 9)), "box nan"),
        ("a", voc_xml(("", 0, 1, 1, 5, 9)), "an object has no name"),
        (
            "d",
            voc_xml(("catt", 0, 1, 1, 5, 9)),
            r"Annotations/d.xml: class 'catt' .* did you mean 'cat'\? known: cat, dog",
        ),
        ("a", "<annotation/>", "width and height must be integers"),
        ("a", "<annotation>", "it is no XML in UTF-8"),
        ("a", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>&a;</annotation>', "an annotation has no DOCTYPE"),
    ],
)
def test_a_wrong_annotation_of_voc_is_one_message(tmp_path, name, text, message):
    write_voc(tmp_path, **{name: text})
    with pytest.raises(ValueError, match=f"^data 'voc:.*: {message}") as caught:
        open_dense(f"voc:{tmp_path}", "detect")
    assert "\n" not in str(caught.value)


def test_a_doctype_is_refused_in_every_encoding():
    bomb = '<?xml version="1.0" encoding="{0}"?><!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    for encoding in ("utf-8", "utf-16", "utf-7", "latin-1"):
        with pytest.raises(ValueError, match=r"no DOCTYPE|no XML in UTF-8"):
            parse_annotation(bomb.format(encoding).encode(encoding))


def test_the_names_of_voc_are_names_of_files(tmp_path):
    write_voc(tmp_path)
    for line, message in (("../a", "leads out"), ("e", r"not in JPEGImages/ \(e\)"), ("a\na", "twice"), ("", "no im")):
        (tmp_path / "ImageSets/Main/train.txt").write_text(f"{line}\n")
        open_dense.cache_clear()
        with pytest.raises(ValueError, match=message):
            open_dense(f"voc:{tmp_path}", "detect")


def test_voc_takes_its_classes_from_a_list_where_there_is_one(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["emu", "cat", "dog", "fox"]}))
    opened = open_dense(f"voc:{tmp_path}", "detect")
    assert opened.classes == ("emu", "cat", "dog", "fox") and opened.train.read(0)[1].labels.tolist() == [3, 2]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_labels_are_read_as_they_were_made(tmp_path, kind):
    root = write_segfolder(tmp_path / "labels")
    opened = open_dense(f"segfolder:{in_tar(root) if kind == 'tar' else root}", "segment")
    assert opened.classes == ("sky", "road", "tree") and (len(opened.train), len(opened.val)) == (6, 3)
    image, labels = opened.train.read(4)
    assert np.array_equal(np.asarray(image), np.asarray(picture(4, (WIDTH, HEIGHT))))
    expected = labels_of(4)
    assert labels.dtype == np.uint8 and np.array_equal(labels, np.where(expected == 9, IGNORE, expected))


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        picture(1, (4, 2)).save(tmp_path / "images" / split / f"{split}.jpg")
        values = np.array([[0, 1, 2, 150], [0, 0, 75, 149]], dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "annotations" / split / f"{split}.png")
    opened = open_dense(f"ade20k:{tmp_path}", "segment")
    assert opened.classes[:2] == ("class 1", "class 2") and len(opened.classes) == 150
    assert opened.val.read(0)[1].tolist() == [[255, 0, 1, 149], [255, 255, 74, 148]]
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0\t1\t1\t1\tname {i}, other" for i in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    open_dense.cache_clear()
    assert open_dense(f"ade20k:{tmp_path}", "segment").classes[149] == "name 150, other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "classes.json is no JSON"),
        ("[]", "classes.json must be an object"),
        ('{"names": []}', "with 1 to 255 names"),
        ('{"names": ["a", "a"]}', "all different"),
        ('{"names": ["a", 2]}', "classes.json must be"),
        ('{"names": ["a", "b", "c"], "ignore_index": 2}', "ignore_index must be an integer from 3, behind the classes"),
        ('{"names": ["a", "b", "c"], "ignore_index": "9"}', "ignore_index must be an integer"),
        ('{"names": ["a", "b", "c"], "ignore": 9}', "unknown entries ignore; known: names, ignore_index"),
        (
            '{"names": ["a", "b"], "ignore_index": 9}',
            r"label 2 in the annotation; the labels of 2 classes are 0 to 1 and",
        ),
        ('{"names": ["a", "b", "c"]}', r"train0.png: label 9 in the annotation; .* 0 to 2 and 255"),
    ],
)
def test_a_wrong_list_of_classes_is_one_message(tmp_path, content, message):
    (write_segfolder(tmp_path) / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=f"^data 'segfolder:.*{message}") as caught:
        open_dense(f"segfolder:{tmp_path}", "segment")
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_their_images_are_found_before_work(tmp_path):
    root = write_segfolder(tmp_path)
    annotation = root / "annotations/train/train3.png"

    def message():
        open_dense.cache_clear()
        with pytest.raises(ValueError) as caught:
            open_dense(f"segfolder:{root}", "segment")
        return str(caught.value)

    Image.fromarray(labels_of(0).T.copy()).save(annotation)
    assert "train3.png: the annotation has 36 x 40 pixels and its image 40 x 36" in message()
    picture(1, (WIDTH, HEIGHT)).save(annotation)
    assert "the annotation has colours (RGB)" in message()
    annotation.unlink()
    assert "1 of 6 images of images/train/ have no annotation of the same name" in message()
    for path in (root / "images/train").iterdir():
        path.unlink()
    assert "images/train/ holds no images" in message()


def test_annotations_of_all_kinds_of_pixels_are_read():
    values = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([9, 8, 7, 200, 100, 50])
    images = [Image.fromarray(values), palette, Image.fromarray(values.astype(bool))]
    deep = Image.fromarray(values.astype(np.uint16) * 300)
    assert [read_values(encoded(image)).tolist() for image in images] == [values.tolist()] * 3
    assert read_values(encoded(deep)).tolist() == (values.astype(int) * 300).tolist()
    with pytest.raises(ValueError, match="its annotation cannot be read"):
        read_values(encoded(palette)[:40])


def test_what_is_not_there_is_one_message(tmp_path):
    root = write_coco(tmp_path / "coco")
    cut = in_tar(root)
    cut.write_bytes(cut.read_bytes()[:-20_000])
    (tmp_path / "list.txt").write_text("")
    for spec, task, message in (
        (f"coco:{tmp_path}/none", "detect", "none does not exist"),
        (f"coco:{tmp_path}/list.txt", "detect", "is neither a folder nor a .tar"),
        (f"coco:{cut}", "detect", "is damaged or cut off"),
        (f"voc:{root}", "detect", "has no JPEGImages/; its layout is JPEGImages/, Annotations/, ImageSets/Main/"),
        (f"coco:{root},val_split=test2017", "detect", "has no test2017/"),
        (f"segfolder:{root}", "segment", "has no images/train/"),
    ):
        with pytest.raises(ValueError, match=f"^data '.*{message}"):
            open_dense(spec, task)


def test_names_in_a_tar_that_lead_out_of_it_are_not_files(tmp_path):
    content = coco_split("train2017")
    name = "train2017/../../train2017_7.png"
    files = {name: encoded(picture(1)), "annotations/instances_train2017.json": json.dumps(content).encode()}
    write_tar(tmp_path / "x.tar", {**files, "train2017/train2017_3.png": b"", "val2017/x.png": b""})
    with pytest.raises(ValueError, match=r"2 of its 3 images are not in train2017/"):
        open_dense(f"coco:{tmp_path}/x.tar", "detect")


def test_images_in_both_splits_are_told(tmp_path):
    root = write_segfolder(tmp_path)
    assert open_dense(f"segfolder:{root}", "segment").warnings == ()
    for kind in ("images", "annotations"):
        (root / kind / "val/train2.png").write_bytes((root / kind / "train/train2.png").read_bytes())
        # of the same name alone
        (root / kind / "val/train3.png").write_bytes((root / kind / "train/train2.png").read_bytes())
    open_dense.cache_clear()
    (warning,) = open_dense(f"segfolder:{root}", "segment").warnings
    assert "1 images" in warning and "images/train/train2.png" in warning
    (warning,) = open_dense(f"segfolder:{root},val_split=train", "segment").warnings
    assert warning.startswith("6 images")


def test_the_hash_follows_names_annotations_and_code(tmp_path):
    coco = write_coco(tmp_path / "coco")

    def fingerprint(code=""):
        open_dense.cache_clear()
        return open_dense(f"coco:{coco}", "detect").fingerprint(code)

    first, other_code = fingerprint(), fingerprint("2")
    path = coco / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("[2, 4, 8, 6]", "[2, 4, 8, 7]"))
    assert len({first, other_code, fingerprint()}) == 3
    tar = open_dense(f"coco:{in_tar(coco)}", "detect")
    assert tar.fingerprint() == fingerprint()
    scenes = {open_dense(spec, "detect").fingerprint() for spec in ("scenes", "scenes:objects=2")}
    assert len(scenes) == 2


def test_camvid():
    opened = open_dense(f"segfolder:{real('camvid.tar')}", "segment")
    assert (len(opened.train), len(opened.val), len(opened.classes)) == (367, 101, 11)
    image, labels = opened.val.read(0)
    assert image.size == (480, 360) and labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), IGNORE} and opened.warnings == ()


def test_bccd():
    opened = open_dense(f"voc:{real('bccd_voc.tar')},train_split=trainval,val_split=test", "detect")
    assert opened.classes == ("Platelets", "RBC", "WBC") and (len(opened.train), len(opened.val)) == (292, 72)
    boxes = [len(opened.train.read(index)[1].labels) for index in range(3)]
    assert opened.train.name(0) == "JPEGImages/BloodImage_00000.jpg" and boxes[0] == 20 and opened.warnings == ()


def test_coco128():
    opened = open_dense(f"coco:{real('coco128.tar')}", "instance")
    assert (len(opened.classes), opened.classes[0], opened.classes[79]) == (80, "person", "toothbrush")
    assert (len(opened.train), len(opened.train_indices())) == (128, 98)
    objects = opened.train.read(0)[1]
    assert (objects.image_id, objects.boxes[0].tolist()) == (9, [0, 14, 432, 387])
    # the areas of the file are those of the polygons
    assert np.allclose(objects.masks.sum((1, 2)), objects.area, rtol=0.1)
