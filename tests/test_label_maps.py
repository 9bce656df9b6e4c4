"""Label maps of files: what is read, and that crop, flip, Mixup and CutMix are followed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_distillation import plan

from runners.data.augment import Augmentation, Pixels, train_transform
from runners.data.images import ImageData
from runners.data.loading import make_data
from runners.data.seeding import drawn_from
from runners.data.token_labels import Box, LabelMaps, drawn_box, file_of

SCORE = 9.0
"""So large that a place has but one class."""


def write_map(folder, name, classes):
    """A map (h, w) of one class at each place, and of the next one with score 0, as the official code stores five."""
    classes = torch.tensor(classes)
    scores = torch.stack([torch.full(classes.shape, SCORE), torch.zeros(classes.shape)])
    path = folder / file_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.stack([scores, torch.stack([classes, classes ^ 1])]).half(), path)


def test_names_of_files():
    assert file_of("train/n01440764/n01440764_10026.JPEG") == "n01440764/n01440764_10026.pt"
    assert file_of("cat/one.small.jpg") == "cat/one.pt"


def test_the_whole_map_a_part_of_it_and_its_mirror_image(tmp_path):
    write_map(tmp_path, "cat/one.jpg", [[0, 1, 2, 3]] * 2)
    maps = LabelMaps(tmp_path, 5, (2, 4))
    whole = maps.labels("cat/one.jpg", Box(0, 0, 1, 1, False))
    score = np.exp(SCORE)
    assert whole.shape == (2, 4, 5) and torch.allclose(whole.sum(-1), torch.ones(2, 4))
    assert whole[0, 2, 2].item() == pytest.approx(score / (score + 4), rel=1e-4)
    assert whole.argmax(-1).tolist() == [[0, 1, 2, 3]] * 2
    assert maps.labels("cat/one.jpg", Box(0, 0, 1, 1, True)).argmax(-1).tolist() == [[3, 2, 1, 0]] * 2
    half = LabelMaps(tmp_path, 5, (1, 2)).labels("cat/one.jpg", Box(0.5, 0, 1, 0.5, False))
    assert half.argmax(-1).tolist() == [[2, 3]]


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_the_box_is_what_the_changed_image_shows(crop):
    """Of an image whose colours say where a pixel was, the changed one must show the box that is drawn for it."""
    height, width = 90, 130
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, x * 0], -1).astype(np.uint8))
    pixels = Pixels(64, 96, (0.0,) * 3, (1.0,) * 3)
    transform = train_transform(Augmentation(crop=crop, hflip=0.5, scale_min=0.3), pixels)
    flips = set()
    for seed in range(8):
        with drawn_from(seed):
            shown = transform(image)
        with drawn_from(seed):
            box = drawn_box(transform, image)
        across = [box.left + (box.right - box.left) * share for share in (0.25, 0.75)]
        down = [box.top + (box.bottom - box.top) * share for share in (0.25, 0.75)]
        columns = (-25, 24) if box.flipped else (24, -25)
        assert [shown[0, 32, c].item() for c in columns] == pytest.approx(across, abs=0.02)
        assert [shown[1, r, 48].item() for r in (16, 47)] == pytest.approx(down, abs=0.02)
        flips.add(box.flipped)
    assert flips == {False, True}


@pytest.fixture
def folders(tmp_path):
    """Images of two classes whose left half is dark and right half bright; of cats the left half is of class 0."""
    for split, count in (("train", 4), ("val", 1)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                values = np.zeros((64, 64, 3), np.uint8)
                values[:, 32:] = 100 * (number + 1)
                Image.fromarray(values).save(folder / f"{index}.png")
                if split == "train":
                    write_map(tmp_path / "maps", f"{name}/{index}.png", [[number, 1 - number]] * 2)
    return tmp_path


def data_of(root, **augmentation):
    data = make_data(f"imagefolder:{root / 'data'}", 64, 64, 8, Augmentation(**augmentation), workers=0)
    assert isinstance(data, ImageData)
    data.label_maps = LabelMaps(root / "maps", 2, (2, 2))
    return data


def test_a_batch_has_labels_of_places_that_follow_its_flips(folders):
    (batch,) = data_of(folders, hflip=0.5).train_batches(0, 0, 1)
    assert batch.tokens.shape == (8, 2, 2, 2)
    left_is_dark = batch.images[:, 0, :, :32].mean((1, 2)) < batch.images[:, 0, :, 32:].mean((1, 2))
    assert {*left_is_dark.tolist()} == {False, True}
    first = torch.where(left_is_dark, batch.targets, 1 - batch.targets)
    assert torch.equal(batch.tokens.argmax(-1)[:, :, 0], first[:, None].expand(-1, 2))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels(folders, kind):
    data = data_of(folders, **{kind: 1.0})
    mixed = next(data.train_batches(0, 3, 4))
    data.augmentation = Augmentation()
    plain = next(data.train_batches(0, 3, 4))
    pairs = [i for i in range(8) if plain.targets[i] != plain.targets[7 - i]]
    assert pairs
    for i in pairs:  # the right halves differ there, and say how much of a pixel is the image's own
        own, other, found = (
            images[j, 0, :, 32:] for images, j in ((plain.images, i), (plain.images, 7 - i), (mixed.images, i))
        )
        share = ((found - other) / (own - other)).unflatten(0, (2, 32)).mean((1, 2))[:, None]
        expected = share * plain.tokens[i, :, 1] + (1 - share) * plain.tokens[7 - i, :, 1]
        assert torch.allclose(mixed.tokens[i, :, 1], expected, atol=1e-4)
        assert not torch.allclose(mixed.tokens[i], plain.tokens[i], atol=0.02)


def test_without_label_maps_a_batch_is_what_it_was(folders):
    data = data_of(folders, hflip=0.5, crop="resized", mixup=0.8)
    with_maps = next(data.train_batches(0, 0, 1))
    data.label_maps = None
    without = next(data.train_batches(0, 0, 1))
    assert torch.equal(with_maps.images, without.images) and torch.equal(with_maps.targets, without.targets)
    assert without.tokens is None


def saved(tensor):
    content = io.BytesIO()
    torch.save(tensor, content)
    return content.getvalue()


def refusal(root, spec=None, folder=None):
    with pytest.raises(ValueError) as error:
        plan(spec or f"imagefolder:{root / 'data'}", batch_size=8, token_labels=folder or root / "maps")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_plan_refuses_label_maps_that_are_not_there(folders, tmp_path):
    spec = f"imagefolder:{folders / 'data'}"
    assert "no such folder" in refusal(folders, folder=tmp_path / "none")
    assert "digit-vote are drawn" in refusal(folders, spec="digit-vote")
    assert plan(spec, batch_size=8, token_labels=folders / "maps").cells
    for content, word in (
        (saved(torch.zeros(3, 4)), "(2, K, height, width), got [3, 4]"),
        (saved(torch.full((2, 1, 2, 2), 2.0)), "classes 0 to 1"),
        (saved(torch.full((2, 1, 2, 2), float("nan"))), "scores must be finite"),
        (b"", "cannot be read"),
        (b"cos\nsystem\n(S'true'\ntR.", "cannot be read"),
    ):
        other = tmp_path / f"maps of {len(content)} {word[:3]}"
        for path in (folders / "maps").glob("*/*.pt"):
            (other / path.parent.name).mkdir(parents=True, exist_ok=True)
            (other / path.parent.name / path.name).write_bytes(content)
        assert word in refusal(folders, folder=other)
    (folders / "maps" / "dog" / "3.pt").unlink()
    gone = tmp_path / "gone"
    (folders / "maps").rename(gone)
    assert "lacks the label maps of 1 training images, dog/3.pt" in refusal(folders, folder=gone)
