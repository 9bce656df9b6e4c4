"""Images with a label for each pixel: values are those that were drawn, and what does not fit is told before work."""

import numpy as np
import pytest
from dense_files import HEIGHT, WIDTH, in_tar, labels_of, write_segfolder
from image_files import encoded, picture, real
from PIL import Image

from runners.dense.data.opened import open_dense
from runners.dense.data.segfolder import read_values
from runners.dense.data.sources import IGNORE


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


def test_camvid():
    opened = open_dense(f"segfolder:{real('camvid.tar')}", "segment")
    assert (len(opened.train), len(opened.val), len(opened.classes)) == (367, 101, 11)
    image, labels = opened.val.read(0)
    assert image.size == (480, 360) and labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), IGNORE} and opened.warnings == ()
