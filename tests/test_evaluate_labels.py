"""Which class of a model an image has: ImageNet's folders, numbers, label maps, and real labels."""

import json
import os
from pathlib import Path

import pytest
import torch
from crafted_images import ACC1, CLASSES, OFFSETS, ROOT, crafted, run
from PIL import Image
from timm.data import ImageNetInfo, RealLabelsImagenet

from runners.evaluation.images import eval_set
from runners.evaluation.labels import class_indices, read_real_labels
from runners.evaluation.scoring import Answers, score

__all__ = ["crafted", "run"]  # fixtures

DATA = Path(os.environ.get("ZOO_DATA", ROOT.parent / "shared" / "data"))
PHOTOGRAPHS = DATA / "imagenet_one_per_class.tar"
WNIDS = ImageNetInfo().label_names()


def test_folders_of_imagenet_have_their_place_among_its_classes():
    assert class_indices("", [WNIDS[7], WNIDS[993]], 1000) == [7, 993]
    assert class_indices("", WNIDS, 1000) == list(range(1000))
    # a model of a part of the classes has them in their own order
    assert class_indices("", [WNIDS[7], WNIDS[993]], 2) == [0, 1]


def test_folders_that_are_numbers_have_their_number(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / str(number) / "image.png")
    found = eval_set(f"imagefolder:{tmp_path}")
    # in the order of training, which is that of the sorted names
    assert found.classes == sorted(map(str, range(12))) and class_indices("", found.classes, 12) == list(range(12))
    assert {name.partition("/")[0]: label for name, label in zip(found.names, found.labels, strict=True)}["10"] == 2
    # ImageNet-V2
    names = sorted(map(str, range(1000)))
    assert class_indices("", names, 1000) == [int(name) for name in names]
    assert class_indices("", ["1", "2", "3"], 3) == [0, 1, 2]


def test_a_label_map_says_which_class_is_which(run, tmp_path):
    (tmp_path / "map.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    (row,) = run("--label-map", tmp_path / "map.txt")
    right = [(7 - (index + offset)) % 8 == index % 8 for index, offset in enumerate(OFFSETS)]
    assert row["acc1"] == 100 * sum(right) / 19
    (tmp_path / "map.txt").write_text("ant\nbee\n")
    assert "does not name cat, dog, eel, ..., of which there are images" in run(
        "--label-map", tmp_path / "map.txt", code=2
    )


def test_real_labels_are_counted_as_timm_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 20, generator=generator)
    real = [[], *([index % 20, (index * 7) % 20] for index in range(1, 30))]
    (tmp_path / "real.json").write_text(json.dumps(real))
    names = [f"n01440764/ILSVRC2012_val_{index + 1:08d}.JPEG" for index in range(30)]
    theirs = RealLabelsImagenet(names, real_json=str(tmp_path / "real.json"))
    theirs.add_result(logits)
    expected = theirs.get_accuracy()
    answers = Answers(torch.arange(30), logits.argsort(1, descending=True)[:, :5], torch.zeros(30), ())
    found = score(answers, [0] * 30, read_real_labels(tmp_path / "real.json", names))
    assert (found["real_acc1"], found["real_acc5"]) == pytest.approx((expected[1], expected[5]))
    assert (found["real_n_eval"], found["n_eval"]) == (29, 30)
    assert 0 < expected[1] < expected[5] < 100
    # a part of the images, by their number; others by the order of their names
    assert read_real_labels(tmp_path / "real.json", [names[4], names[0]]) == [frozenset(real[4]), frozenset()]
    others = [f"class/{index}.jpg" for index in range(30)]
    in_order = sorted(range(30), key=lambda index: others[index])
    assert read_real_labels(tmp_path / "real.json", others)[in_order[3]] == frozenset(real[3])


def test_real_labels_are_columns_of_the_row(run, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([list(range(8))] * 9 + [[]] * 10))
    (row,) = run("--real-labels", tmp_path / "real.json")
    assert (row["real_acc1"], row["real_acc5"], row["real_n_eval"], row["acc1"]) == (100, 100, 9, ACC1)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason=f"{PHOTOGRAPHS} is not there")
def test_photographs_of_imagenets_classes_are_in_its_order(run):
    images = eval_set(f"imagefolder:{PHOTOGRAPHS}")
    indices = class_indices("", images.classes, 1000)
    assert len(images) == len(set(images.labels)) == 1000
    for name, label in zip(images.names, images.labels, strict=True):
        assert WNIDS[indices[label]] == Path(name).parent.name
    (row,) = run("--data", f"imagefolder:{PHOTOGRAPHS}", "--model", "small", "--attn", "vanilla", "--resolution", "32")
    assert (row["n_eval"], row["unread"], row["num_classes"]) == (1000, 0, 1000)
    assert row["acc1"] < 2 and row["loss"] > 6
