"""Data sets in Python: timm's, and a class of the user's."""

import io
import itertools
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from image_files import encoded, picture, write_data
from PIL import Image

from runners.data.folders import open_folders
from runners.data.images import DataError
from runners.data.loading import make_data

OWN = """
import torch
from pathlib import Path
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Mine(Dataset):
    classes = ["cat", "dog"]

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return {"train": 6, "val": 4}[self.split]

    def __getitem__(self, index):
        if index == 3:
            raise OSError("not today")
        colour = (40 * index, 100, 200)
        image = Image.new("RGB", (32, 32), colour)
        if index == 1:
            image.save("1.png")
            return Path("1.png"), 1
        if index == 2:
            return torch.full((3, 32, 32), 0.5), 0
        return (image, index % 2) if index else (torch.full((3, 32, 32), 255, dtype=torch.uint8), 0)

class Drawing(Mine):
    def __getitem__(self, index):
        return torch.rand(3, 32, 32), index % 2

class Numbered(Mine):
    classes = None
    num_classes = 7
    targets = [0, 6, 1, 2, 3, 5]
    def __len__(self):
        return 6

class Wrong(Mine):
    def __getitem__(self, index):
        return {}["key"]

class Many(Mine):
    def __getitem__(self, index):
        return Image.new("RGB", (32, 32)), 2

class Odd(Mine):
    def __getitem__(self, index):
        return "image", 1, 2

class Outside(Numbered):
    targets = [0, 7, 1, 2, 3, 5]

class Stream(IterableDataset):
    classes = ["a", "b"]
    def __init__(self, split):
        pass
    def __iter__(self):
        return iter(())

class Nameless(Dataset):
    def __init__(self, split):
        pass

class Failing(Dataset):
    def __init__(self, split):
        raise RuntimeError("the server\\nis away")

class Empty(Mine):
    def __len__(self):
        return 0

class Apart(Mine):
    def __init__(self, split):
        super().__init__(split)
        self.classes = ["cat", "dog"] if split == "train" else ["dog", "cat"]
"""

numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module with the classes above, in the working directory."""
    name = f"own_data_{next(numbers)}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def load(spec, batch=3, workers=0, **more):
    return make_data(spec, 32, 32, batch, workers=workers, **more)


def test_a_class_of_ones_own(module):
    data = load(f"{module}:Mine,mean=0/0/0,std=1/1/1", batch=6)
    assert (data.num_classes, data.folders.classes, data.steps_per_epoch) == (2, ("cat", "dog"), 1)
    images, labels = next(data.eval_batches())
    assert labels.tolist() == [0, 1, 0]
    assert images[:, :, 0, 0].tolist() == pytest.approx(np.array([[255] * 3, [40, 100, 200], [127] * 3]) / 255)
    assert [*data.broken.values()] == ["not today"]
    images, labels = data.batch(0, 0)
    assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 1]  # image 4 stands in for image 3


def test_its_own_draws_follow_from_the_seed_too(module):
    runs = [
        (list(data.train_batches(0, 0, 3)), list(data.eval_batches()))
        for data in (load(f"{module}:Drawing", workers=workers) for workers in (0, 2))
    ]
    for first, second in zip(*(itertools.chain(*run) for run in runs), strict=True):
        assert torch.equal(first[0], second[0])


def test_it_may_have_numbers_for_classes(module):
    folders = open_folders(f"{module}:Numbered")
    assert folders.classes == tuple("0123456")
    assert folders.fingerprint() != folders.fingerprint("code")


WRONG = {
    "nowhere_to_be_found:Mine": "it cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    "MODULE:Missing": "it cannot be imported: AttributeError",
    "MODULE:Stream": "a torch Dataset is needed",
    "MODULE:Nameless": "it has neither classes, a list of names, nor num_classes",
    "MODULE:Failing": "Failing(split='train') fails: RuntimeError: the server is away",
    "MODULE:Empty": "Empty(split='train') holds no images",
    "MODULE:Outside": "has 6 labels from 0 to 7, of 6 images and 7 classes",
    "MODULE:Apart": "the same names in another order",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_with_it_is_said_in_one_line(module, spec):
    with pytest.raises(ValueError) as caught:
        open_folders(spec.replace("MODULE", module))
    assert WRONG[spec] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Wrong", "KeyError: 'key'"),
        ("Many", r"is of class 2, classes are 0 to 1"),
        ("Odd", "is no pair of an image and the number of its class"),
    ],
)
def test_what_it_does_wrong_later_ends_the_run_in_one_line(module, name, words, workers):
    with pytest.raises(DataError, match=rf"^image \d of {name}\(split='train'\).*{words}") as caught:
        load(f"{module}:{name}", workers=workers).batch(0, 0)
    assert "\n" not in str(caught.value)


def test_torchvision_through_timm(tmp_path):
    write_data(tmp_path, train=3, val=2)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"")
    data = load(f"timm:torch/image_folder,root={tmp_path}")
    assert (data.folders.classes, data.steps_per_epoch) == (("cat", "dog", "emu"), 3)
    images, labels = next(data.eval_batches())
    assert (images.shape, labels.tolist()) == ((3, 3, 32, 32), [0, 0, 1])
    list(data.train_batches(0, 0, 3))
    assert [*data.broken.values()] == ["cannot identify image file"] or len(data.broken) == 1


def write_cifar(root):
    """The files of CIFAR-10, of 5 images each, and their checksums, by which torchvision knows them."""
    import hashlib

    folder, sums = root / "cifar-10-batches-py", {}
    folder.mkdir()
    files = {f"data_batch_{n}": n for n in range(1, 6)} | {"test_batch": 6}
    for name, seed in files.items():
        values = np.random.default_rng(seed).integers(0, 255, (5, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": values, "labels": [seed % 10, 1, 2, 3, 9]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(meta)
    return sums, hashlib.md5(meta).hexdigest()


def test_cifar10_through_timm(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    sums, meta = write_cifar(tmp_path)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, s] for n, s in sums.items() if n != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    folders = open_folders(f"timm:torch/cifar10,root={tmp_path}")
    assert (len(folders.train), len(folders.val), folders.classes) == (25, 5, tuple("abcdefghij"))
    assert folders.val.labels.tolist() == [6, 1, 2, 3, 9]


class Rows:
    """As much of a data set of Hugging Face as timm's reader needs."""

    def __init__(self, count, classes):
        feature = types.SimpleNamespace(names=list(classes), str2int=classes.index)
        self.classes, self.count = classes, count
        self.info = types.SimpleNamespace(features={"label": feature, "img": None}, splits={})

    def cast_column(self, name, kind):
        return self

    def remove_columns(self, name):
        return self

    def __len__(self):
        return self.count

    def __iter__(self):
        return (self[index] for index in range(self.count))

    def __getitem__(self, index):
        content = encoded(picture(index)) if index != 1 else b"junk"
        return {"img": {"bytes": content, "path": None}, "image": {"bytes": content, "path": None}, "label": index % 3}


@pytest.fixture
def hub(monkeypatch):
    """A package `datasets` whose load_dataset notes how it was called."""
    calls = []
    config = types.ModuleType("datasets.config")
    config.HF_HUB_OFFLINE = False
    package = types.ModuleType("datasets")
    package.config, package.Image = config, lambda decode: None

    def load_dataset(name, split, cache_dir, **more):
        calls.append((name, split, cache_dir, config.HF_HUB_OFFLINE))
        if split == "absent":
            raise FileNotFoundError(f"Couldn't find {split}\nanywhere")
        return Rows(9 if split == "train" else 6, ("x", "y", "z"))

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setitem(sys.modules, "datasets.config", config)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    yield calls
    sys.modules.pop("timm.data.readers.reader_hfds", None)


def test_data_sets_of_hugging_face_through_timm(hub, tmp_path):
    data = load(f"timm:hfds/lab/Things,root={tmp_path},val_split=test")
    assert hub == [("lab/Things", "train", str(tmp_path), True), ("lab/Things", "test", str(tmp_path), True)]
    assert (data.folders.classes, data.folders.train.labels.tolist()) == (("x", "y", "z"), [0, 1, 2] * 3)
    images, labels = next(data.eval_batches())
    assert (len(images), labels.tolist()) == (2, [0, 2])
    assert [*data.broken.values()] == ["no image that Pillow can read"]
    first = [b.images for b in data.train_batches(0, 0, 3)]
    assert all(torch.equal(*pair) for pair in zip(first, (b.images for b in data.train_batches(0, 0, 3)), strict=True))


def test_nothing_is_downloaded_unless_it_may(hub):
    open_folders("timm:hfds/lab/Things,download=on")
    assert [offline for *_, offline in hub] == [False, False]
    with pytest.raises(ValueError, match="Couldn't find absent anywhere; nothing is downloaded without download=on"):
        open_folders("timm:hfds/lab/Things,train_split=absent")


TIMM = {
    "timm:torch/cifar10": "torch/ needs root=PATH",
    "timm:torch/cifar10,root=ROOT": "cannot be opened: RuntimeError: Dataset not found or corrupted",
    "timm:torch/cifar1000,root=ROOT": "Unknown torchvision dataset cifar1000",
}


@pytest.mark.parametrize("spec", TIMM)
def test_what_timm_cannot_open_is_said_in_one_line(spec, tmp_path, capsys):
    with pytest.raises(ValueError) as caught:
        open_folders(spec.replace("ROOT", str(tmp_path)))
    assert TIMM[spec] in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(ValueError, match=r"needs a package that is not here: .*; pip install datasets$"):
        open_folders("timm:hfds/lab/Things")
    assert capsys.readouterr().out == ""


def test_an_image_of_a_data_set_is_checked_like_a_file(module, monkeypatch):
    monkeypatch.setattr("runners.data.decode.MAX_PIXELS", 1000)
    data = load(f"{module}:Mine")
    with pytest.raises(DataError, match="32 x 32 pixels, the limit is 1000"):
        data.batch(0, 0)
    assert Image.open(io.BytesIO(encoded(picture(0)))).size == (40, 36)


def test_a_part_can_be_held_out_where_only_reading_tells_the_label(module):
    part = load(f"{module}:Drawing").for_tuning()
    assert (len(part.folders.train_indices), len(part.folders.val_indices), part.steps_per_epoch) == (5, 1, 1)
