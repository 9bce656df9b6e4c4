"""Names of the data of dense tasks: what is read from them, and one line for everything that is wrong."""

import subprocess
import sys

import pytest
from dense_files import write_coco, write_segfolder

from runners.data.dense_augment import DenseAugmentation, fitted, padded
from runners.dense.data.opened import count_dense_classes, dense_steps_per_epoch
from runners.dense.data.specs import (
    DenseSpec,
    check_dense_spec,
    check_name,
    is_dense_spec,
    parse_dense_spec,
)


def test_a_spec_says_kind_place_and_options():
    assert parse_dense_spec("coco:/data/x:y") == DenseSpec(
        kind="coco", root="/data/x:y", train_split="train2017", val_split="val2017"
    )
    assert parse_dense_spec("voc:d,train_split=trainval,val_split=test,images=4") == DenseSpec(
        kind="voc", root="d", train_split="trainval", val_split="test", images=4
    )
    ade = parse_dense_spec("ade20k:ADEChallengeData2016")
    assert (ade.train_split, ade.val_split) == ("training", "validation")
    assert parse_dense_spec("scenes:objects=2:noise=0.5") == DenseSpec(kind="scenes", objects=2, noise=0.5)


def test_dense_specs_are_told_from_others():
    assert all(map(is_dense_spec, ("scenes", "scenes:objects=2", "coco:data", "segfolder:a.tar", "coco:")))
    others = ("digit-vote", "imagefolder:x", "package.module:Class", "coco", "cocoa:data", "timm:hfds/coco")
    assert not any(map(is_dense_spec, others))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("segfoldr:x", r"unknown data 'segfoldr' of a dense task; did you mean 'segfolder'\? known: scenes, segfolder"),
        ("coco:", "data 'coco:' must name a folder or a tar; write coco:PATH"),
        ("coco:images=3", "must name a folder or a tar"),
        ("coco:x,image=3", r"unknown option 'image' in data 'coco:x,image=3'; did you mean 'images'\?"),
        ("coco:x,images=0", "images=0 must be an integer from 1 up"),
        ("coco:x,images=1,images=2", "option 'images' .* must be given once"),
        ("coco:x,train_split=../y", "train_split '../y' leads out of the folder"),
        ("scenes:object=3", r"unknown option 'object' .* did you mean 'objects'\?"),
        ("scenes:objects=0", "objects must be at least 1, got 0"),
        ("scenes:noise=2", "data option 'noise' must be a number from 0 to 1"),
    ],
)
def test_a_malformed_spec_is_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_dense_spec(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "spec", "size", "message"),
    [
        ("segmnt", "scenes", (64, 64), r"unknown task 'segmnt' .* did you mean 'segment'\? known: segment, detect"),
        (
            "segment",
            "coco:x",
            (64, 64),
            "no annotations for task 'segment'; coco is for detect and instance, segment t",
        ),
        ("instance", "voc:x", (64, 64), "instance takes scenes, coco$"),
        ("segment", "segfolder:x", (64, 31), "needs sides of at least 32 px, .* got 64x31 px"),
    ],
)
def test_a_spec_is_checked_for_its_task_before_work(task, spec, size, message):
    with pytest.raises(ValueError, match=message):
        check_dense_spec(task, spec, *size)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "..\\b.jpg", "C:/a.jpg", "\\\\host\\a", 3, None, "a\0b"]
)
def test_no_name_leads_out_of_the_folder(name):
    with pytest.raises(ValueError, match=r"file_name .*(leads out of the folder|must be the name of a file)"):
        check_name(name, "file_name")


def test_names_below_the_folder_stay_as_they_are():
    assert [check_name(name, "x") for name in ("a.jpg", "b/c..d.jpg", "ü.png")] == ["a.jpg", "b/c..d.jpg", "ü.png"]


def test_classes_and_steps_are_counted(tmp_path):
    coco, labels = f"coco:{write_coco(tmp_path / 'coco')}", f"segfolder:{write_segfolder(tmp_path / 'labels')}"
    assert [count_dense_classes(spec) for spec in (coco, labels, "scenes")] == [3, 3, 11]
    assert count_dense_classes("scenes", "detect") == 10
    # two of the three images have an object
    assert dense_steps_per_epoch(coco, "detect", 2) == 1
    assert dense_steps_per_epoch(labels, "segment", 4) == 1
    assert dense_steps_per_epoch("scenes", "segment", 4) is None
    with pytest.raises(
        ValueError, match="batch size must be 1 to 2, the images that are learnt from, of 3 in the split, got 3"
    ):
        dense_steps_per_epoch(coco, "detect", 3)


def test_specs_and_files_are_checked_without_torch(tmp_path):
    spec = f"segfolder:{write_segfolder(tmp_path)}"
    program = (
        "import sys; from runners.dense.data.opened import count_dense_classes; "
        f"print(count_dense_classes({spec!r}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]


def test_sizes_are_those_of_mmcv():
    # mmcv.rescale_size((w, h), (1333, 800)) and ((w, h), (2048, 512))
    assert fitted(480, 640, 800, 1333) == (800, 1067)
    assert fitted(427, 640, 800, 1333) == (800, 1199)
    assert fitted(640, 427, 800, 1333) == (1199, 800)
    assert fitted(300, 900, 800, 1333) == (444, 1333)
    assert fitted(683, 512, 512, 2048) == (683, 512)
    assert fitted(1, 400, 32, 128) == (1, 128)
    assert padded(800, 1199) == (800, 1216)
    assert padded(5, 7, 1) == (5, 7)


@pytest.mark.parametrize(
    "fields", [{"zoom_min": 2.0}, {"hflip": 1.5}, {"cat_max_ratio": 0.0}, {"long_px": 8, "short_px": 9}]
)
def test_fields_are_checked(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must be .*, got"):
        DenseAugmentation(**fields)
