"""Annotations of Pascal VOC: boxes of known pixels, classes from the files or a list, and every way to be wrong."""

import json

import pytest
from dense_files import HEIGHT, WIDTH, in_tar, voc_xml, write_voc
from image_files import real

from runners.dense.data.opened import open_dense
from runners.dense.data.voc import parse_annotation


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


def test_bccd():
    opened = open_dense(f"voc:{real('bccd_voc.tar')},train_split=trainval,val_split=test", "detect")
    assert opened.classes == ("Platelets", "RBC", "WBC") and (len(opened.train), len(opened.val)) == (292, 72)
    boxes = [len(opened.train.read(index)[1].labels) for index in range(3)]
    assert opened.train.name(0) == "JPEGImages/BloodImage_00000.jpg" and boxes[0] == 20 and opened.warnings == ()
