"""Folders and tars of annotated images: what is missing, names that lead out, both splits, and the hash."""

import json

import pytest
from dense_files import coco_split, in_tar, write_coco, write_segfolder
from image_files import encoded, picture, write_tar

from runners.dense.data.opened import open_dense


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
