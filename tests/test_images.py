"""Batches of images follow from seed and step alone: whoever reads them, from wherever, and however they are shared."""

import itertools

import numpy as np
import pytest
import torch
from image_files import encoded, picture, tar_of, write_data
from PIL import Image

from runners.data.augment import Augmentation, Pixels, eval_transform, train_transform
from runners.data.image_specs import IMAGENET_MEAN, IMAGENET_STD
from runners.data.images import BrokenImage, DataError, ImageData, part_of_batch
from runners.data.loading import make_data, spare_processors
from runners.data.order import epoch_order
from runners.data.seeding import drawn_from
from runners.train.recipes import DEIT300

SPREAD = Augmentation(crop="resized", hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
MIXED = Augmentation(crop="padded", hflip=0.5, erasing=0.5, mixup=0.8, cutmix=1.0, repeats=3)


@pytest.fixture
def spec(tmp_path):
    return f"imagefolder:{write_data(tmp_path / 'data', train=7, val=4)}"


def load(spec: str, augmentation: Augmentation = SPREAD, batch: int = 6, workers: int = 0, **more) -> ImageData:
    data = make_data(spec, 32, 40, batch, augmentation, workers=workers, smoothing=0.1, **more)
    assert isinstance(data, ImageData)
    return data


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


def test_shapes_and_counts(spec):
    data = load(spec)
    assert (data.num_classes, data.steps_per_epoch, data.chance_percent) == (3, 3, pytest.approx(100 / 3))
    images, labels = data.batch(0, 0)
    assert (images.shape, images.dtype, labels.dtype) == ((6, 3, 32, 40), torch.float32, torch.int64)
    assert [len(labels) for _, labels in data.eval_batches()] == [6, 6]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("augmentation", [SPREAD, MIXED], ids=["spread", "mixed"])
def test_the_number_of_workers_changes_no_bit(spec, augmentation):
    by_workers = [list(load(spec, augmentation, workers=workers).train_batches(3, 1, 8)) for workers in (0, 1, 3)]
    assert all(same(*pair) for others in by_workers[1:] for pair in zip(by_workers[0], others, strict=True))


@pytest.mark.parametrize("augmentation", [SPREAD, MIXED], ids=["spread", "mixed"])
def test_a_step_is_the_same_wherever_a_run_begins(spec, augmentation):
    data = load(spec, augmentation)
    whole = list(data.train_batches(5, 0, 8))
    for start in (1, 3, 4, 7):  # in an epoch, at its end, in the second and the third
        assert all(same(*pair) for pair in zip(whole[start:], data.train_batches(5, start, 8), strict=True))
    assert not same(whole[0], whole[3])
    assert not same(whole[0], data.batch(6, 0))


def test_an_epoch_has_each_image_once_in_an_order_of_its_own(spec):
    data = load(spec, Augmentation(), batch=7)
    epochs = [torch.cat([b.images for b in data.train_batches(0, 3 * e, 3 * e + 3)]) for e in (0, 1)]
    keys = [sorted(image.sum().item() for image in epoch) for epoch in epochs]
    assert keys[0] == pytest.approx(keys[1]) and len(set(keys[0])) == 21
    assert not torch.equal(*epochs)


def test_repeats_take_a_third_of_the_images_three_times():
    places, repeats = epoch_order(600, 3, seed=1, epoch=2)
    assert len(places) == 512  # 600 rounded down to a multiple of 256
    assert repeats[:7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(set(places.tolist())) == 171 and (places[0::3][:170] == places[1::3][:170]).all()
    once, zeros = epoch_order(600, 1, seed=1, epoch=2)
    assert sorted(once.tolist()) == list(range(600)) and not zeros.any()
    assert not np.array_equal(once, epoch_order(600, 1, seed=1, epoch=3)[0])


def test_repeats_of_an_image_are_changed_otherwise(spec):
    batch = load(spec, Augmentation(crop="resized", repeats=3), batch=3).batch(0, 0)
    assert len(set(batch[1].tolist())) == 1
    assert not torch.equal(batch[0][0], batch[0][1])


@pytest.mark.parametrize("augmentation", [SPREAD, MIXED, Augmentation(cutmix=1.0)], ids=["spread", "mixed", "cutmix"])
def test_ranks_together_see_the_whole_batch(spec, augmentation):
    data = load(spec, augmentation, batch=10)
    for step, whole in enumerate(data.train_batches(2, 0, 4)):
        for world_size in (2, 3):
            images, targets = torch.zeros_like(whole.images), torch.zeros_like(whole.targets)
            shares = []
            for rank in range(world_size):
                part = next(data.train_batches(2, step, step + 1, rank, world_size))
                places = part_of_batch(10, rank, world_size)
                images[places], targets[places] = part.images, part.targets
                shares.append(part.share)
            assert torch.equal(images, whole.images) and torch.equal(targets, whole.targets)
            assert sum(shares) == pytest.approx(world_size)


def test_places_of_a_batch_go_to_one_rank_each():
    for size, world_size in itertools.product((6, 7, 12, 13), (1, 2, 3)):
        parts = [part_of_batch(size, rank, world_size) for rank in range(world_size)]
        assert sorted(itertools.chain(*parts)) == list(range(size))
        for part in parts:
            assert [size - 1 - place for place in part] == part[::-1]
    with pytest.raises(ValueError, match="--batch-size 6 or more, or fewer processes"):
        part_of_batch(4, 0, 3)


def test_test_images_are_the_same_at_any_batch_size_and_number_of_processes(spec):
    whole = torch.cat([images for images, _ in load(spec, batch=20).eval_batches()])
    assert torch.equal(whole, torch.cat([images for images, _ in load(spec, batch=5, workers=1).eval_batches()]))
    parts = [torch.cat([images for images, _ in load(spec).eval_batches(rank, 5)]) for rank in range(5)]
    assert sum(map(len, parts)) == 12
    assert all(torch.equal(part, whole[rank::5]) for rank, part in enumerate(parts))


def test_reading_leaves_the_generators_as_they_were(spec):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = load(spec, MIXED)
    next(data.train_batches(0, 0, 1))
    next(data.eval_batches())
    assert torch.equal(torch.get_rng_state(), before)
    with drawn_from(1, 2):
        first = torch.rand(2), np.random.rand(2)
    with drawn_from(1, 2):
        assert all((a == b).all() for a, b in zip(first, (torch.rand(2), np.random.rand(2)), strict=True))


def test_pixels_of_a_test_image(tmp_path):
    """Resized to int(256 / 224 of the side), the centre taken, and normalised."""
    root = write_data(tmp_path)
    left, right = (200, 100, 50), (0, 0, 0)
    image = Image.new("RGB", (74, 37), left)
    image.paste(right, (37, 0, 74, 37))
    image.save(root / "val" / "cat" / "0.png")
    data = load(f"imagefolder:{root},mean=0.5/0.5/0.5,std=0.5/0.5/0.5", Augmentation(eval_crop=0.875))
    shown = next(data.eval_batches())[0][0]
    expected = 2 * torch.tensor(left) / 255 - 1
    assert torch.allclose(shown[:, 5, 5], expected, atol=1e-6)
    assert torch.equal(shown[:, 30, 39], torch.tensor([-1.0, -1.0, -1.0]))


def test_the_images_own_mean_and_deviation(tmp_path):
    root = write_data(tmp_path, train=2, classes=("a", "b"))
    for name, level in (("a", 51), ("b", 153)):
        for index in range(2):
            Image.new("RGB", (40, 40), (level, 2 * level // 3, 255 - level)).save(
                root / "train" / name / f"{index}.png"
            )
    (root / "train" / "b" / "9.png").write_bytes(b"broken")
    pixels = load(f"imagefolder:{root},norm=data", batch=2).pixels
    assert pixels.mean == pytest.approx((0.4, 0.2667, 0.6), abs=1e-4)
    assert pixels.std == pytest.approx((0.2, 0.1333, 0.2), abs=1e-4)
    assert load(f"imagefolder:{root}", batch=2).pixels.mean == IMAGENET_MEAN
    for path in (root / "train").rglob("*.png"):
        Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(ValueError, match="a channel of one value"):
        load(f"imagefolder:{root},norm=data", batch=2)


def with_broken(root):
    """Three broken training images of 21, two of which follow each other, and one of 12 test images."""
    (root / "train" / "cat" / "2.png").write_bytes(encoded(picture(9, (200, 100)))[:900])
    (root / "train" / "cat" / "3.png").write_text("text")
    (root / "train" / "emu" / "6.png").write_bytes(b"")
    (root / "val" / "dog" / "1.png").unlink()
    (root / "val" / "dog" / "1.png").symlink_to(root / "gone.png")


def test_broken_images_are_counted_named_and_replaced_alike_by_any_worker(spec, tmp_path, capsys):
    with_broken(tmp_path / "data")
    found = []
    for workers in (0, 2):
        data = load(spec, batch=7, workers=workers)
        batches = list(data.train_batches(0, 0, 3))
        labels = torch.cat([batch.targets for batch in batches]).bincount().tolist()
        assert labels == [8, 7, 6]  # the first cat stands in for the last emu, another cat for two
        tested = torch.cat([labels for _, labels in data.eval_batches()])
        assert len(tested) == 11
        assert sorted(data.broken) == ["cat/2.png", "cat/3.png", "dog/1.png", "emu/6.png"]
        assert data.broken["cat/3.png"] == "no image that Pillow can read"
        assert capsys.readouterr().out.count("warning: ") == 4
        found.append(batches)
    assert all(same(*pair) for pair in zip(*found, strict=True))


def test_a_tar_is_read_by_several_processes_at_once(spec, tmp_path):
    for part in ("train", "val"):
        tar_of(tmp_path / "data" / part, tmp_path / f"{part}.tar")
    tars = load(f"imagefolder:{tmp_path}", workers=2)
    tars.batch(0, 0)  # opened in this process first
    assert all(same(*pair) for pair in zip(tars.train_batches(0, 0, 3), load(spec).train_batches(0, 0, 3), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_data_ends_the_run_with_the_name(spec, tmp_path, workers):
    with_broken(tmp_path / "data")
    data = load(spec, batch=7, workers=workers, strict=True)
    with pytest.raises(BrokenImage, match=r"^(cat/[23]|emu/6)\.png cannot be read: "):
        list(data.train_batches(0, 0, 3))
    with pytest.raises(BrokenImage, match=r"^dog/1\.png cannot be read: No such file or directory$"):
        list(data.eval_batches())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_is_gone_ends_the_run(spec, tmp_path, workers):
    data = load(spec, workers=workers)
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "unmounted")
    with pytest.raises(DataError, match=r"\.png cannot be read, nor any of the 20 behind it: No such file") as caught:
        list(data.train_batches(0, 0, 1))
    assert "\n" not in str(caught.value)


def test_a_test_without_any_image_is_an_error(spec, tmp_path):
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 12 test images can be read"):
        list(load(spec).eval_batches())


def test_the_batch_must_fit(spec):
    with pytest.raises(ValueError, match="1 to 21 for this data, got 22"):
        load(spec, batch=22)
    with pytest.raises(ValueError, match="even for Mixup and CutMix, got 5"):
        load(spec, MIXED, batch=5)


def test_processors_to_spare(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert spare_processors() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert spare_processors() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "12")
    assert spare_processors() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert spare_processors() == 8


def pixels(size: int) -> Pixels:
    return Pixels(size, size, IMAGENET_MEAN, IMAGENET_STD)


def zero_bits(transform) -> list[str]:
    policies = [*getattr(transform, "ops", ()), *itertools.chain(*getattr(transform, "policy", ()))]
    return [
        op.name
        for op in policies
        if "Posterize" in op.name and op.aug_fn(Image.new("RGB", (2, 2), "white"), 0).getpixel((0, 0)) == (0, 0, 0)
    ]


@pytest.mark.parametrize(("policy", "count"), [("rand-m9-inc1", 1), ("rand-m9", 1), ("v0", 2), ("augmix-m3", 1)])
def test_posterize_by_zero_bits_is_black(policy, count):
    transform = train_transform(Augmentation(crop="resized", auto_augment=policy), pixels(8))
    assert sum(len(zero_bits(step)) for step in transform.transforms) == count


@pytest.mark.slow
def test_deits_augmentation_never_fails_in_20000_draws():
    transform = train_transform(DEIT300, pixels(16))
    image = picture(0, (20, 18))
    black = 0
    for number in range(20_000):
        with drawn_from(number):
            changed = transform(image)
        assert changed.shape == (3, 16, 16) and changed.isfinite().all()
        black += bool((changed.amax((1, 2)) < -1.5).all())
    assert black  # posterize by 0 bits was among them


@pytest.mark.parametrize("side", [(1, 1), (1, 400), (400, 1), (3, 2)])
def test_the_smallest_images_go_through_every_transform(side):
    image = picture(0, side)
    for seed in range(20):
        with drawn_from(seed):
            assert train_transform(DEIT300, pixels(32))(image).shape == (3, 32, 32)
    assert eval_transform(DEIT300, pixels(32))(image).shape == (3, 32, 32)
