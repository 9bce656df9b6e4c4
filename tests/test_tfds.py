"""TensorFlow Datasets: the real library where it is installed, and a stand-in for it where it is not."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from image_files import encoded, picture

from runners.data.folders import open_folders
from runners.data.loading import make_data
from runners.train.recipe import Recipe

CLASSES = ["a", "b", "c"]


def spec(root, **options):
    return f"timm:tfds/marks,root={root}" + "".join(f",{name}={value}" for name, value in options.items())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of 12 and 6 images, written without TensorFlow; image i has 9 x (8 + i) px and the class i % 3."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="pip install tensorflow-datasets")

    class Marks(tfds.core.GeneratorBasedBuilder):
        """Grey images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": io.BytesIO(encoded(picture(i, (9, 8 + i)))), "label": i % 3}

    root = tmp_path_factory.mktemp("tfds")
    Marks(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_array_records_are_read_by_number(prepared):
    found = open_folders(spec(prepared, val_split="test"))
    assert (found.classes, len(found.train), len(found.val)) == (tuple(CLASSES), 12, 6)
    seen = [found.train.read(index) for index in range(12)]
    assert sorted(image.height for image, _ in seen) == [*range(8, 20)]
    assert all((image.height - 8) % 3 == label for image, label in seen)
    assert "tensorflow" not in sys.modules


def test_a_training_sees_the_same_batches_from_any_step_and_with_any_workers(prepared):
    data = [
        make_data(spec(prepared, val_split="test"), 32, 32, 4, Recipe(hflip=0.5), workers=workers) for workers in (0, 2)
    ]
    whole, other = ([batch.images for batch in each.train_batches(3, 0, 7)] for each in data)
    assert all(torch.equal(*pair) for pair in zip(whole, other, strict=True))
    late = [batch.images for batch in data[0].train_batches(3, 5, 7)]
    assert all(torch.equal(*pair) for pair in zip(whole[5:], late, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "it has no such split; it has: train, test"),
        ({"val_split": "test", "target_key": "image"}, "no ClassLabel 'image'; target_key= may be: label"),
        ({"val_split": "test", "input_key": "photo"}, "no Image 'photo'; input_key= may be: image"),
    ],
)
def test_what_a_data_set_lacks_is_said_in_one_line(prepared, options, words):
    with pytest.raises(ValueError) as caught:
        open_folders(spec(prepared, **options))
    assert words in str(caught.value) and "\n" not in str(caught.value)


# --- a stand-in for the library: examples in a list, and files of another format


@pytest.fixture
def library(monkeypatch):
    """What of tensorflow_datasets is used; no file is read, and `files` says of which format they would be."""

    class Image:
        pass

    class ClassLabel:
        names = CLASSES

    class NotFound(ValueError):
        pass

    class Builder:
        info = types.SimpleNamespace(
            features={"image": Image(), "label": ClassLabel()},
            splits={"train": 0, "validation": 0},
            full_name="marks/1.0.0",
        )

        def as_data_source(self, split, decoders):
            assert list(decoders) == ["image"]
            if package.files != "array_record":
                raise NotImplementedError("no random access")
            return [{"image": encoded(picture(i)) if i else b"junk", "label": i % 3} for i in range(5)]

    def builder(name, data_dir):
        if name != "marks":
            raise NotFound(f"Dataset {name} not found.\nAvailable datasets:\n - all of them")
        return Builder()

    package = types.ModuleType("tensorflow_datasets")
    package.files, package.builder = "array_record", builder
    package.features = types.SimpleNamespace(Image=Image, ClassLabel=ClassLabel)
    package.decode = types.SimpleNamespace(SkipDecoding=object)
    package.core = types.SimpleNamespace(DatasetNotFoundError=NotFound)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", package)
    return package


def test_images_are_decoded_here_and_broken_ones_named(library, tmp_path):
    found = open_folders(spec(tmp_path))
    image, label = found.val.read(4)
    assert (found.classes, label) == (tuple(CLASSES), 1)
    assert np.array_equal(np.asarray(image), np.asarray(picture(4).convert("RGB")))
    with pytest.raises(ValueError, match="no image that Pillow can read"):
        found.train.read(0)
    assert b"marks/1.0.0" in found.train.identity()


def test_files_that_are_a_stream_are_refused_with_what_to_do(library, tmp_path):
    library.files = "tfrecord"
    with pytest.raises(ValueError, match="tfds build marks --file_format=array_record") as caught:
        open_folders(spec(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_one_line(library, tmp_path):
    with pytest.raises(ValueError, match="Dataset none not found") as caught:
        open_folders(f"timm:tfds/none,root={tmp_path}")
    assert "Available" not in str(caught.value)


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_description_imports_nothing_of_its_own(library, tmp_path, key):
    own = {key: "tensorflow_datasets.core.features.image_feature.Image"}
    for name, label in (("good", own), ("bad", {key: "somebody.code.Label"})):
        folder = tmp_path / name / "marks" / "1.0.0"
        folder.mkdir(parents=True)
        described = {"featuresDict": {"features": {"image": own, "label": label}}}
        (folder / "features.json").write_text(json.dumps(described))
    assert len(open_folders(spec(tmp_path / "good")).train) == 5
    library.builder = None
    with pytest.raises(ValueError, match=r"names the class somebody\.code\.Label"):
        open_folders(spec(tmp_path / "bad"))


def test_a_description_with_two_names_is_judged_by_both(library, tmp_path):
    folder = tmp_path / "marks" / "1.0.0"
    folder.mkdir(parents=True)
    described = {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "type": "somebody.code.Label",
    }
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": described}}}))
    library.builder = None
    with pytest.raises(ValueError, match=r"names the class somebody\.code\.Label"):
        open_folders(spec(tmp_path))


@pytest.mark.parametrize("name", ["Marks", "somebody:marks", "marks/version=1.0.0", "../marks", "marks/a/b"])
def test_a_name_whose_folder_would_not_be_looked_into_is_refused(library, tmp_path, name):
    library.builder = None
    with pytest.raises(ValueError, match="NAME in small letters") as caught:
        open_folders(f"timm:tfds/{name},root={tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match="pip install tensorflow-datasets"):
        open_folders(spec(tmp_path))
