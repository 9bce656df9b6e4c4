"""Folders and tars of images: which images there are, their classes, and every way in which they may be wrong."""

import os
import pickle
import sys
import unicodedata

import numpy as np
import pytest
from image_files import encoded, picture, real, tar_of, write_data, write_folder, write_tar
from timm.data.readers import create_reader

from runners.data import listing
from runners.data.folders import Folders, open_folders
from runners.data.listing import Listing

PNG = encoded(picture(1))


def as_dict(images: Listing) -> dict[str, str]:
    return {images.name(index): images.classes[label] for index, label in enumerate(images.labels)}


def test_classes_are_numbered_by_their_sorted_names(tmp_path):
    names = ("0", "1", "2", "10", "Zebra", "ape", "n01440764", "Äffin", "猫")
    images = Listing(write_folder(tmp_path, dict.fromkeys(names, 2)))
    assert images.classes == ("0", "1", "10", "2", "Zebra", "ape", "n01440764", "Äffin", "猫")
    assert images.labels.tolist() == sorted(images.labels.tolist()) == [i for i in range(9) for _ in range(2)]
    assert as_dict(images)["10/1.png"] == "10"


def test_a_folder_and_its_tar_hold_what_timm_finds_in_them(tmp_path):
    folder = write_folder(tmp_path / "images", {"cat": 3, "birds/emu": 2, "birds/owl": 1})
    tar = tar_of(folder, tmp_path / "images.tar")
    reader = create_reader("", root=str(folder))
    theirs = {
        name: {i: c for c, i in reader.class_to_idx.items()}[t]
        for name, (_, t) in zip(reader.filenames(), reader.samples, strict=True)
    }
    assert as_dict(Listing(folder)) == as_dict(Listing(tar)) == theirs
    assert theirs["birds/emu/1.png"] == "emu"
    for index in range(6):
        pixels = [np.asarray(images.read(index)[0]) for images in (Listing(folder), Listing(tar))]
        assert np.array_equal(*pixels)
    assert list(Listing(folder).identity()) == list(Listing(tar).identity())


def test_tars_in_a_tar_are_classes_as_in_imagenets_own(tmp_path):
    inner = [
        write_tar(tmp_path / f"{name}.tar", {f"{name}_1.JPEG": encoded(picture(seed))})
        for seed, name in enumerate(("n2", "n1"))
    ]
    inner[0].with_name("n1.tar").rename(tmp_path / "kept.tar")
    outer = write_tar(
        tmp_path / "train.tar", {"n2.tar": inner[0].read_bytes(), "n1.tar": (tmp_path / "kept.tar").read_bytes()}
    )
    images = Listing(outer)
    assert as_dict(images) == {"n1/n1_1.JPEG": "n1", "n2/n2_1.JPEG": "n2"}
    assert [np.asarray(images.read(i)[0]).tolist() for i in range(2)] == [
        np.asarray(picture(s)).tolist() for s in (1, 0)
    ]


def test_hidden_names_are_left_out_and_links_followed(tmp_path):
    folder = write_folder(tmp_path / "images", {"cat": 1, "dog": 1, ".checkpoints": 1})
    (folder / "cat" / "._0.png").write_bytes(b"junk of another system")
    (folder / "cat" / "notes.txt").write_text("no image")
    write_folder(tmp_path / "elsewhere", {"emu": 2})
    (folder / "emu").symlink_to(tmp_path / "elsewhere" / "emu")
    (folder / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "emu" / "0.png")
    assert [*as_dict(Listing(folder))] == ["cat/0.png", "dog/0.png", "dog/linked.png", "emu/0.png", "emu/1.png"]
    tar = write_tar(tmp_path / "x.tar", {"./a/1.png": PNG, "a/._1.png": b"", ".b/1.png": PNG})
    assert as_dict(Listing(tar)) == {"a/1.png": "a"}


def test_a_link_that_leads_back_is_an_error(tmp_path):
    folder = write_folder(tmp_path, {"cat": 1})
    (folder / "cat" / "loop").symlink_to(folder)
    with pytest.raises(ValueError, match="loop is a link to a folder that it lies in"):
        Listing(folder)


def test_names_of_any_bytes(tmp_path):
    folder = write_folder(tmp_path, {"cat": 1})
    raw = os.fsencode(folder) + b"/a\xff\nb"
    os.mkdir(raw)
    with open(raw + b"/1.png", "wb") as file:
        file.write(PNG)
    images = Listing(folder)
    assert images.name(0) == "a\\udcff\\nb/1.png"
    assert images.read(0)[0].size == (40, 36)
    # two systems write one name in two ways
    write_folder(folder, {unicodedata.normalize(form, "Käfer"): 1 for form in ("NFC", "NFD")})
    assert Listing(folder).classes == (unicodedata.normalize("NFC", "Käfer"), "a\udcff\nb", "cat")


def test_a_listing_is_arrays_that_processes_share(tmp_path):
    names = {f"class{number}": 1 for number in range(50)}
    images = Listing(write_folder(tmp_path / "images", names))
    assert images.labels.dtype == np.int64
    held = [value for value in vars(images).values() if isinstance(value, (list, dict))]
    assert not held
    assert pickle.loads(pickle.dumps(images)).read(7)[0].tobytes() == images.read(7)[0].tobytes()
    # a tar is opened anew for each image: processes that share an open file would move each other's place in it
    tar = Listing(tar_of(tmp_path / "images", tmp_path / "images.tar"))
    assert not [value for value in vars(tar).values() if hasattr(value, "fileno")]


def test_other_images_are_other_data(tmp_path):
    def fingerprint() -> str:
        open_folders.cache_clear()
        return open_folders(f"imagefolder:{tmp_path}").fingerprint()

    write_data(tmp_path)
    first = fingerprint()
    assert first == fingerprint() and len(first) == 16
    (tmp_path / "val" / "cat" / "2.png").rename(tmp_path / "val" / "cat" / "7.png")
    second = fingerprint()
    (tmp_path / "val" / "cat" / "7.png").rename(tmp_path / "val" / "dog" / "7.png")
    third = fingerprint()
    folders = open_folders(f"imagefolder:{tmp_path}")
    fewer = Folders(folders.train, folders.val, folders.train_indices[1:], folders.val_indices)
    found = [first, second, third, fewer.fingerprint(), folders.fingerprint("other code")]
    assert len(set(found)) == 5


def test_a_long_search_says_what_it_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(listing, "SLOW_S", 0.0)
    search = listing._of_folder

    def slow(*given):
        for _ in range(200):
            if "searching" in capsys.readouterr().err:
                sys.stdout.write("told")
                break
            listing.threading.Event().wait(0.01)
        return search(*given)

    monkeypatch.setattr(listing, "_of_folder", slow)
    Listing(write_folder(tmp_path, {"a": 1}))
    assert capsys.readouterr().out == "told"


def test_split_divides_each_class_once(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 20, "c": 2})
    folders = open_folders(f"imagefolder:{tmp_path},split=0.1")
    counts = [np.bincount(folders.train.labels[part]).tolist() for part in (folders.train_indices, folders.val_indices)]
    assert counts == [[9, 18, 1], [1, 2, 1]]
    assert not set(folders.train_indices) & set(folders.val_indices)


def cut_tar(tmp_path, keep) -> str:
    """train.tar and val.tar, the first cut: inside a file, before the last block of one, between two, in a header."""
    write_data(tmp_path / "whole")
    for part in ("train", "val"):
        tar_of(tmp_path / "whole" / part, tmp_path / f"{part}.tar")
    content = (tmp_path / "train.tar").read_bytes()
    header = content.index(b"dog/3.png")
    (tmp_path / "train.tar").write_bytes(content[: header + keep])
    return f"imagefolder:{tmp_path}"


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024], ids=["between", "header", "data", "in data", "a block"])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, keep):
    with pytest.raises(ValueError, match=r"train\.tar is damaged or cut off: ") as caught:
        open_folders(cut_tar(tmp_path, keep))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_data_is_said_in_one_line(tmp_path):
    write_data(tmp_path / "good")
    write_data(tmp_path / "one", classes=("cat",))
    for part in ("train", "val"):
        (tmp_path / "none" / part / "cat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "flat", {".": 2})
    (tmp_path / "a.tar").write_bytes(b"text")
    (tmp_path / "plain.txt").write_text("text")
    write_data(tmp_path / "more")
    write_folder(tmp_path / "more" / "val", {"yak": 1})
    write_data(tmp_path / "fewer", classes=("cat", "dog"))
    write_folder(tmp_path / "fewer" / "train", {"yak": 1})
    wrong = {
        "nowhere": "does not exist",
        "plain.txt": "is no folder",
        "a.tar": "is no folder; of one tar give split",
        "a.tar,split=0.2": "is damaged or cut off",
        "plain.txt,split=0.2": "is neither a folder nor a .tar",
        "empty": "has neither train/ nor train.tar; of one folder give split=0.1",
        "empty,split=0.1": "holds no images in folders of classes",
        "flat,split=0.1": "0.png lies in no folder of a class",
        "none": "holds no images in folders of classes",
        "one": "holds images of one class, 'cat'; at least two",
        "more": "1 only in the test images (yak)",
        "fewer": "1 only in the training images (yak)",
        "good/train": "has neither train/ nor train.tar",
    }
    for name, words in wrong.items():
        with pytest.raises(ValueError) as caught:
            open_folders(f"imagefolder:{tmp_path}/{name}")
        assert words in str(caught.value) and str(tmp_path) in str(caught.value), name
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path):
    write_data(tmp_path)
    (tmp_path / "train" / "cat").chmod(0)
    with pytest.raises(ValueError, match=r"train/cat cannot be read: Permission denied"):
        open_folders(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "cat").chmod(0o700)


def test_cifar10_as_it_is_packed():
    folders = open_folders(f"imagefolder:train={real('cifar10_train.tar')},val={real('cifar10_val.tar')}")
    assert (len(folders.train), len(folders.val)) == (50_000, 10_000)
    assert folders.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(folders.train.labels).tolist() == [5000] * 10
    assert folders.train.read(49_999)[0].size == (32, 32)


def test_imagenets_classes_come_in_their_order():
    images = Listing(real("imagenet_one_per_class.tar"))
    assert len(images.classes) == 1000
    assert (images.classes[0], images.classes[-1]) == ("n01440764", "n15075141")
    assert images.labels.tolist() == list(range(1000))
