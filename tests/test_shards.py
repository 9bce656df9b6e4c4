"""WebDataset's shards: the same images as those of folders, and every way in which they may be wrong."""

import itertools
import json
import os

import pytest
import torch
from image_files import encoded, picture, write_data, write_tar
from timm.data.readers.reader_wds import _parse_split_info

from runners.data.augment import Augmentation
from runners.data.folders import open_folders
from runners.data.image_specs import parse_image_spec
from runners.data.listing import Listing
from runners.data.loading import make_data
from runners.data.shard_names import find_shards, read_info
from runners.data.shards import open_shards
from runners.evaluation.images import eval_set

MIXED = Augmentation(crop="resized", hflip=0.5, color_jitter=0.4, erasing=0.5, mixup=0.8, cutmix=1.0, repeats=3)
PNG = encoded(picture(1))


def write_shards(root, folder, prefix, size=5):
    """Write the images of a folder, in their order, as shards of so many samples; returns the names."""
    images, names = Listing(folder), []
    for first in range(0, len(images), size):
        files = {}
        for index in range(first, min(first + size, len(images))):
            files[f"{index:04}.png"] = (folder / images.name(index)).read_bytes()
            files[f"{index:04}.cls"] = f"{images.labels[index]}\n".encode()
        names.append(f"{prefix}{len(names):02}.tar")
        write_tar(root / names[-1], files)
    return names


@pytest.fixture
def both(tmp_path):
    """The same images in folders and in shards, as specs; 21 training images in 5 shards, 12 test images in 3."""
    folders, root = write_data(tmp_path / "folders", train=7, val=4), tmp_path / "shards"
    root.mkdir()
    write_shards(root, folders / "train", "pets-train-")
    write_shards(root, folders / "val", "pets-val-")
    return f"imagefolder:{folders}", f"timm:wds/pets,root={root}"


def load(spec, workers=0, batch=6):
    return make_data(spec, 32, 40, batch, MIXED, workers=workers, smoothing=0.1)


def same(first, second):
    return all(torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_of_the_same_images_in_folders(both, workers):
    folders, shards = load(both[0]), load(both[1], workers)
    assert [len(shards.folders.train), len(shards.folders.val), shards.num_classes] == [21, 12, 3]
    assert shards.folders.classes == ("0", "1", "2")
    whole = list(folders.train_batches(3, 0, 7))
    for start in (0, 2, 3):  # the first and the middle of an epoch
        found = shards.train_batches(3, start, 7)
        assert same([batch[:2] for batch in found], [batch[:2] for batch in whole[start:]])
    for rank in (0, 1):
        parts = [data.train_batches(3, 1, 3, rank, 2) for data in (folders, shards)]
        assert same(*([batch[:2] for batch in part] for part in parts))
        assert same(folders.eval_batches(rank, 2), shards.eval_batches(rank, 2))
    assert same(folders.eval_batches(), shards.eval_batches())
    assert same(folders.for_tuning().eval_batches(), shards.for_tuning().eval_batches())


def test_what_is_said_of_them(both, tmp_path):
    images = open_folders(both[1])
    assert [images.train.name(index) for index in (0, 20)] == [
        "pets-train-00.tar/0000.png",
        "pets-train-04.tar/0020.png",
    ]
    assert images.train.where == "split 'train' of wds/pets"
    before = images.fingerprint()
    (tmp_path / "shards" / "_info.json").write_text(json.dumps({"classes": ["ape", "bee", "cat", "dog"]}))
    open_folders.cache_clear()
    named = open_folders(both[1])
    assert named.classes == named.val.classes == ("ape", "bee", "cat", "dog")
    assert named.fingerprint() != before
    found = eval_set(both[1])
    assert (found.classes[2], found.labels[:5]) == ("cat", [0, 0, 0, 0, 1])


def test_a_broken_image_is_counted_and_named(both, tmp_path):
    folder = tmp_path / "folders" / "train" / "cat"
    (folder / "2.png").write_bytes(PNG[:200])
    (folder / "3.png").write_bytes(b"")
    write_shards(tmp_path / "shards", tmp_path / "folders" / "train", "pets-train-")
    folders, shards = load(both[0]), load(both[1])
    assert same(*([batch[:2] for batch in data.train_batches(0, 0, 6)] for data in (folders, shards)))
    assert sorted(shards.broken) == ["pets-train-00.tar/0002.png", "pets-train-00.tar/0003.png"]
    assert [*shards.broken.values()] == [*folders.broken.values()]


@pytest.mark.parametrize("labels", ["0123", "1220"])
def test_splits_of_info_are_those_that_timm_finds(tmp_path, labels):
    splits = {
        "train": {"name": "train", "num_samples": 4, "filenames": ["b.tar", "sub/a.tar"], "shard_lengths": [2, 2]},
        "val": {"name": "val", "num_samples": 2, "filenames": ["sub/c.tar"], "shard_lengths": [2], "alt_label": "y/z"},
    }
    (tmp_path / "sub").mkdir()
    for name, two in (("b.tar", labels[:2]), ("sub/a.tar", labels[2:])):
        write_tar(
            tmp_path / name,
            {f"{i}.{end}": PNG if end == "jpg" else n.encode() for i, n in enumerate(two) for end in ("cls", "jpg")},
        )
    meta = [json.dumps({"y": {"z": number}}).encode() for number in (1, -1)]
    write_tar(tmp_path / "sub/c.tar", {"0.json": meta[0], "0.jpg": PNG, "1.json": meta[1], "1.jpg": PNG})
    (tmp_path / "info.json").write_text(json.dumps({"name": "x", "splits": splits}))
    for split in ("train", "val"):
        theirs = _parse_split_info(split, {"splits": splits})
        ours = find_shards(tmp_path, "x", split, read_info(tmp_path))
        assert ours == (theirs.filenames, theirs.num_samples, theirs.alt_label)
    train, val = open_shards(parse_image_spec(f"timm:wds/x,root={tmp_path}"))
    assert train.labels.tolist() == [*map(int, labels)]
    assert [train.name(0), train.name(3)] == ["b.tar/0.jpg", "sub/a.tar/1.jpg"]
    assert val.labels.tolist() == [1]  # of the others the label is below 0


NAMES = {
    "train": ["pets-train-0.tar", "pets-train-1.tar"],
    "validation": ["val.tar"],
    "val": ["val.tar"],
    "test": ["test-00000-of-00002.tar", "test-00001-of-00002.tar"],
    "sub/x-{08..10}.tar|12": ["sub/x-08.tar", "sub/x-09.tar", "sub/x-10.tar"],
    "a{1..2}-{0..1}.tar::val.tar": ["a1-0.tar", "a1-1.tar", "a2-0.tar", "a2-1.tar", "val.tar"],
}


@pytest.mark.parametrize("split", NAMES)
def test_shards_by_their_names(tmp_path, split):
    (tmp_path / "sub").mkdir()
    others = ["pets-trained.tar", "cats-train-0.tar", "pets-train-x.tar", "train.txt"]
    for name in {*itertools.chain(*NAMES.values()), *others}:
        (tmp_path / name).touch()
    assert find_shards(tmp_path, "wds/pets", split, read_info(tmp_path))[0] == tuple(NAMES[split])


GOOD = {
    "1.jpg": PNG,
    "1.cls": b"0",
    "2.png": PNG,
    "2.cls": b" 1\n",
    "3.WEBP": PNG,
    "3.cls": b"2",
    "__key__": b"",
    "notes.txt": b"",
}
SHARDS = {
    "no label, KEY.cls; the files of a key must follow": GOOD | {"4.jpg": PNG},
    "no label, KEY.cls; target_key= names a field": GOOD | {"4.jpg": PNG, "4.json": b"{}"},
    "4: no image, KEY.jpg or KEY.jpeg or": GOOD | {"4.cls": b"1"},
    "5: no image, KEY.jpg or KEY.jpeg or": GOOD | {"5.left.jpg": PNG, "5.seg.cls": b"1"},
    "6: no image, KEY.jpg or KEY.jpeg or": GOOD | {"6.bmp": PNG, "6.cls": b"1"},
    "4: no image": GOOD | {"4.cls": b"0", "5.cls": b"1", "4.jpg": PNG, "5.jpg": PNG},
    "its label 'one' is no number": GOOD | {"4.jpg": PNG, "4.cls": b"one"},
    "its label '-1' is no number": GOOD | {"4.jpg": PNG, "4.cls": b"-1"},
    "its label '' is no number": GOOD | {"4.jpg": PNG, "4.cls": b""},
    "its label '1.5' is no number": GOOD | {"4.jpg": PNG, "4.cls": b"1.5"},
    r"its label '\n\x1b�": GOOD | {"4.jpg": PNG, "4.cls": b"\n\x1b\xff"},
    "a label of 2000000 bytes": GOOD | {"4.jpg": PNG, "4.cls": b"1" * 2_000_000},
    "4: two files end in .jpg": GOOD | {"4.jpg": PNG, "4.JPG": PNG, "4.cls": b"1"},
    "1: two samples have this key": GOOD | {"./1.jpg": PNG, "./1.cls": b"1"},
    "labels up to 4 and none of class 3": GOOD | {"4.jpg": PNG, "4.cls": b"4"},
    "labels up to 999999999999999999 and none of class 3": GOOD | {"4.jpg": PNG, "4.cls": b"9" * 18},
    "holds no samples, a KEY.jpg beside a KEY.cls": {"notes.txt": b""},
}


def refused(spec):
    with pytest.raises(ValueError) as caught:
        open_folders(spec)
    open_folders.cache_clear()
    assert repr(spec) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("words", SHARDS)
def test_a_strange_shard_is_refused_in_one_line(tmp_path, words):
    write_tar(tmp_path / "train.tar", SHARDS[words])
    write_tar(tmp_path / "val.tar", GOOD)
    assert words in refused(f"timm:wds/x,root={tmp_path}")


def test_one_class_is_refused(tmp_path):
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", {"1.jpg": PNG, "1.cls": b"0"})
    assert "split 'train' of wds/x holds images of one class, '0'" in refused(f"timm:wds/x,root={tmp_path}")


def test_a_test_image_of_another_class_is_refused(tmp_path):
    write_tar(tmp_path / "train.tar", GOOD)
    write_tar(tmp_path / "val.tar", GOOD | {"4.jpg": PNG, "4.cls": b"3"})
    assert "val.tar/4.jpg is of class 3, classes are 0 to 2" in refused(f"timm:wds/x,root={tmp_path}")


@pytest.mark.parametrize("size", [0, 100, 600, 1100, -1024])
def test_a_shard_that_is_cut_off_is_refused_by_its_name(tmp_path, size):
    for split in ("train-0", "train-1", "val-0"):
        write_tar(tmp_path / f"{split}.tar", GOOD)
    shard = tmp_path / "train-1.tar"
    content = shard.read_bytes()
    end = content.rstrip(b"\0")
    os.truncate(shard, size if size >= 0 else len(end))
    assert "train-1.tar is damaged or cut off" in refused(f"timm:wds/x,root={tmp_path}")


JSON = {
    "no JSON": b'{"y": ',
    "has no field 'y'": b'{"x": 1}',
    "its JSON has no field 'y'": b"[1]",
    "its label 'True' is no number": b'{"y": true}',
    "its label '[1, 2]' is no number": b'{"y": [1, 2]}',
    "its label '1.0' is no number": b'{"y": 1.0}',
    "its label is no JSON": b"[" * 100_000,
}


@pytest.mark.parametrize("words", JSON)
def test_a_strange_label_in_json_is_refused_in_one_line(tmp_path, words):
    good = {"0.jpg": PNG, "0.json": b'{"y": "0"}', "1.json": b'{"y": 1}', "1.jpg": PNG, "about.json": b"{}"}
    write_tar(tmp_path / "train.tar", good)
    write_tar(tmp_path / "val.tar", good)
    spec = f"timm:wds/x,root={tmp_path},target_key=y,input_key=png;jpg"
    assert open_folders(spec).train.labels.tolist() == [0, 1]
    open_folders.cache_clear()
    write_tar(tmp_path / "train.tar", {**good, "2.jpg": PNG, "2.json": JSON[words]})
    assert words in refused(spec)


INFOS = {
    "_info.json is no JSON": "{",
    "_info.json is not as timm writes it": "[]",
    "_info.json is not as timm writes it, splits": '{"splits": {"train": {"filenames": "train.tar"}}}',
    "lists of filenames, and at most a list": '{"classes": {"0": "cat"}}',
    "has no split 'train'; it has test": '{"splits": {"test": {"filenames": ["train.tar"]}}}',
    "names no file of split 'train'": '{"splits": {"train": {"filenames": []}}}',
    r"gone\n.tar does not exist": '{"splits": {"train": {"filenames": ["gone\\n.tar"]}}}',
    "train.tar is named twice": '{"splits": {"train": {"filenames": ["train.tar", "train.tar"]}}}',
    "holds 3 samples, not the 4": '{"splits": {"train": {"filenames": ["train.tar"], "num_samples": 4}}}',
    "3.WEBP is of class 2, classes are 0 to 1": '{"classes": ["cat", "dog"]}',
}


@pytest.mark.parametrize("words", INFOS)
def test_a_strange_info_is_refused_in_one_line(tmp_path, words):
    write_tar(tmp_path / "train.tar", GOOD)
    write_tar(tmp_path / "val.tar", GOOD)
    (tmp_path / "_info.json").write_text(INFOS[words])
    assert words in refused(f"timm:wds/x,root={tmp_path}")


PATTERNS = {
    "x-{3..1}.tar": "stands for 0 shards",
    "x-{0..99999999}.tar": "stands for 100000000 shards",
    "x-{0..9999}{0..9999}.tar": "stands for 100000000 shards",
    "x-{a..c}.tar": "is no pattern; ranges are written {0000..0099}",
    "val.tar|some": "'some' behind | is no number of samples",
    "val.tar|2": "holds 3 samples, not the 2",
    "x-{0..1}.tar": "x-0.tar does not exist",
    "pipe:touch ran; cat val.tar": "does not exist",
    "test": "has no shards x-test-*.tar or test-*.tar, nor _info.json",
}


@pytest.mark.parametrize("split", PATTERNS)
def test_a_strange_pattern_is_refused_in_one_line(tmp_path, split):
    write_tar(tmp_path / "val.tar", GOOD)
    assert PATTERNS[split] in refused(f"timm:wds/x,root={tmp_path},train_split={split}")
    assert os.listdir(tmp_path) == ["val.tar"]


def test_a_root_that_is_none(tmp_path):
    assert "gone does not exist" in refused(f"timm:wds/x,root={tmp_path / 'gone'}")
    write_tar(tmp_path / "val.tar", GOOD)
    assert "val.tar is no folder of shards" in refused(f"timm:wds/x,root={tmp_path / 'val.tar'}")
