import gzip
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from runners.data import fashion
from runners.data.datasets import DATASETS, FASHION_IMAGES, check_data, steps_per_epoch
from runners.data.fashion import PACKAGE_FOLDER, FashionMnist
from runners.data.loading import make_data
from runners.data.probes import bilinear

QUIET = ":noise=0"
COLOURS = torch.tensor([[0.7, 0, 0], [0, 0.7, 0], [0, 0, 0.7]])


@pytest.fixture(scope="module")
def digits():
    """Pixels in [0, 1] and classes of the training and of the test digits, split as the definition says."""
    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    images, classes = torch.from_numpy(bunch.images[order] / 16).float(), bunch.target[order]
    return {"train": (images[:1400], classes[:1400]), "test": (images[1400:], classes[1400:])}


def read_scene(image, pool):
    """Read a normalised, noise-free image back: the colour of each plain cell and the class of each digit by colour."""
    images, classes = pool
    image = image / 2 + 0.4
    height, width = (side // 4 for side in image.shape[1:])
    glyphs = F.interpolate(images[:, None], size=(height, width), mode="bilinear")[:, 0]
    plain, digit_on = {}, {}
    for cell in range(16):
        row, column = divmod(cell, 4)
        tile = image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        flat = tile.mean(dim=(1, 2))
        if torch.allclose(tile, flat[:, None, None].expand_as(tile), atol=1e-5):
            if not torch.allclose(flat, torch.full((3,), 0.5), atol=1e-5):
                plain[cell] = int((COLOURS - flat).abs().sum(1).argmin())
                assert torch.allclose(COLOURS[plain[cell]], flat, atol=1e-5)
            continue
        colour = int(flat.argmax())
        # white on a primary colour: the two other channels are the digit itself
        alpha = tile[(colour + 1) % 3]
        errors = (glyphs - alpha).abs().amax(dim=(1, 2))
        assert errors.min() < 1e-5, "a tile that is no digit of the pool"
        c = COLOURS[colour][:, None, None]
        assert torch.allclose(tile, c * (1 - alpha) + alpha, atol=1e-5)
        assert colour not in digit_on, "two digits on one colour"
        digit_on[colour] = int(classes[errors.argmin()])
    assert len(set(digit_on.values())) == len(digit_on), "two digits of one class"
    return plain, digit_on


def vote(plain, digit_on):
    votes = sorted(((list(plain.values()).count(colour), colour) for colour in set(plain.values())), reverse=True)
    assert [count for count, _ in votes] == [6, 3, 3][: len(digit_on)]
    assert {colour for _, colour in votes} == set(digit_on)
    return digit_on[votes[0][1]]


def recall(plain, digit_on):
    assert list(plain) == [0] and len(digit_on) == 3
    return digit_on[plain[0]]


@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("name", "answer"), [("digit-vote", vote), ("digit-recall", recall)])
def test_the_label_follows_from_the_pixels(name, answer, size, digits):
    data = make_data(name + QUIET, *size, 64)
    for split, (images, labels) in {"train": data.batch(0, 3), "test": next(data.eval_batches())}.items():
        scenes = [read_scene(image, digits[split]) for image in images]
        assert [answer(*scene) for scene in scenes] == labels.tolist()
        assert {len(digit_on) for _, digit_on in scenes} == ({1, 2, 3} if answer is vote else {3})
        assert {cell for plain, _ in scenes for cell in plain} == (set(range(16)) if answer is vote else {0})


@pytest.mark.parametrize("spec", ["digit-vote", "digit-vote:jitter=3", "digit-recall"])
def test_a_batch_is_a_pure_function_of_seed_and_step(spec):
    first, second = make_data(spec, 64, 48, 8), make_data(spec, 64, 48, 8)
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    images, labels = first.batch(4, 7)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert images.shape == (8, 3, 64, 48) and images.dtype == torch.float32
    assert labels.shape == (8,) and labels.dtype == torch.int64
    for seed, step in [(4, 8), (5, 7), (7, 4)]:
        assert not torch.equal(second.batch(seed, step)[0], images)
    again = second.batch(4, 7)
    assert torch.equal(again[0], images) and torch.equal(again[1], labels)


def test_the_test_set_does_not_depend_on_the_batch_size():
    # 50x35 px: an odd number of values per image, where one stream of noise would depend on the cut
    small, large = (list(make_data("digit-vote", 50, 35, size).eval_batches()) for size in (100, 1024))
    assert [len(labels) for _, labels in small] == [100] * 10 + [24]
    assert torch.equal(torch.cat([images for images, _ in small]), large[0][0])
    assert torch.equal(torch.cat([labels for _, labels in small]), large[0][1])


def test_the_classes_are_balanced():
    counts = np.bincount(np.concatenate([labels for _, labels in make_data("digit-vote", 32, 32, 64).eval_batches()]))
    assert len(counts) == 10 and counts.min() > 70 and counts.max() < 140


def test_noise_is_gaussian_with_the_given_deviation():
    noisy, quiet = (make_data(f"digit-vote:noise={noise}", 64, 64, 64).batch(0, 0)[0] for noise in (0.2, 0))
    noise = (noisy - quiet) / 2
    assert noise.mean().abs() < 1e-3 and abs(noise.std() - 0.2) < 1e-3
    assert abs((noise.abs() < 0.2).float().mean() - 0.6827) < 0.005
    default, stated = (make_data(spec, 32, 32, 2).batch(0, 0)[0] for spec in ("digit-vote", "digit-vote:noise=0.05"))
    assert torch.equal(default, stated)


def test_jitter_moves_the_whole_grid_and_uncovers_grey():
    still, moved = (make_data(f"digit-vote:jitter={j}{QUIET}", 32, 64, 200).batch(0, 0)[0] for j in (0, 2))
    padded = F.pad(still, (2, 2, 2, 2), value=(0.5 - 0.4) * 2)
    shifts = {}
    for index, image in enumerate(moved):
        for down, right in itertools.product(range(-2, 3), repeat=2):
            window = padded[index, :, 2 - down :, 2 - right :][:, :32, :64]
            if torch.allclose(image, window, atol=1e-6):
                shifts[index] = (down, right)
    assert len(shifts) == 200
    assert len(set(shifts.values())) == 25


def test_a_side_that_is_no_multiple_of_four_gets_a_grey_margin():
    odd, even = (make_data("digit-vote" + QUIET, *size, 4).batch(0, 0)[0] for size in ((67, 90), (64, 88)))
    expected = torch.full_like(odd, (0.5 - 0.4) * 2)
    expected[:, :, 1:65, 1:89] = even
    torch.testing.assert_close(odd, expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 16), (8, 56), (32, 45)])
def test_resizing_equals_torch(inputs, outputs):
    expected = F.interpolate(torch.eye(inputs)[None], size=outputs, mode="linear")[0].T
    torch.testing.assert_close(torch.from_numpy(bilinear(inputs, outputs)), expected)


def test_what_a_probe_says_of_itself():
    for name, ceiling in {"digit-vote": 61.1, "digit-recall": 33.3}.items():
        data = make_data(name, 32, 32, 2)
        assert data.ceiling_percent == pytest.approx(ceiling, abs=0.05)
        assert (data.num_classes, data.batch_size, data.chance_percent) == (10, 2, 10.0)
        assert data.steps_per_epoch is None and steps_per_epoch(name, 64) is None


@pytest.mark.parametrize("spec", [*DATASETS, "digit-vote:jitter=3", "digit-recall:noise=1:jitter=0"])
def test_specs_that_are_allowed(spec):
    check_data(spec)
    check_data(spec, 64, 64)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit-vot", "unknown data 'digit-vot'; did you mean 'digit-vote'.*digit-recall, fashion-mnist"),
        ("", "unknown data ''; known"),
        ("jitter=3", "no name"),
        ("digit-vote:jiter=3", "unknown option 'jiter'.*did you mean 'jitter'.*jitter, noise"),
        ("digit-vote:", "unknown option ''"),
        ("digit-vote:jitter", "must be given once, as jitter=VALUE"),
        ("digit-vote:jitter=1:jitter=2", "must be given once"),
        ("digit-vote:jitter=1.5", "an integer from 0 up.*got '1.5'"),
        ("digit-vote:jitter=-1", "got '-1'"),
        ("digit-vote:noise=nan", "a number from 0 to 1.*got 'nan'"),
        ("digit-vote:noise=1.1", "got '1.1'"),
        ("fashion-mnist:noise=0.1", "unknown option 'noise'.*options of fashion-mnist: none"),
    ],
)
def test_specs_that_are_not(spec, message):
    with pytest.raises(ValueError, match=message):
        check_data(spec)


def test_a_jitter_must_leave_something_of_every_tile():
    check_data("digit-vote:jitter=15", 64, 80)
    for check in (check_data, lambda *arguments: make_data(*arguments, 4)):
        with pytest.raises(ValueError, match=r"80x60 px.*jitter.*15 px.*got 15"):
            check("digit-vote:jitter=15", 80, 60)


@pytest.mark.parametrize("arguments", [(28, 64, 4), (64, 31, 4), (64, 64, 0)])
def test_sizes_that_no_data_has(arguments):
    with pytest.raises(ValueError, match="at least"):
        make_data("digit-vote", *arguments)
    with pytest.raises(ValueError, match="1 to 60000 for fashion-mnist, got 60001"):
        steps_per_epoch("fashion-mnist", 60_001)


def test_the_planner_reads_the_catalogue_without_torch():
    code = (
        "import sys; from runners.data.datasets import check_data, steps_per_epoch;"
        "check_data('fashion-mnist', 64, 64);"
        "steps_per_epoch('fashion-mnist', 64);"
        "assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=1))


@pytest.fixture
def fashion_folder(tmp_path, monkeypatch):
    """A dataset of 300 and 25 images in which image i says so: i in base 256 in its first pixels, i % 10 its label."""
    monkeypatch.setitem(FASHION_IMAGES, "train", 300)
    monkeypatch.setitem(FASHION_IMAGES, "t10k", 25)
    for split, count in FASHION_IMAGES.items():
        index = np.arange(count)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = index // 256, index % 256
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", (index % 10).astype(np.uint8))
    return tmp_path


def written_index(images):
    """Invert what `fashion_folder` wrote, of images padded to 32x32 px."""
    pixels = ((images * fashion.STD + fashion.MEAN) * 255).round().long()
    assert torch.equal(pixels[:, 0], pixels[:, 1]) and torch.equal(pixels[:, 0], pixels[:, 2])
    return pixels[:, 0, 2, 2] * 256 + pixels[:, 0, 2, 3]


def test_an_epoch_of_fashion_mnist_shows_each_image_once(fashion_folder):
    data = FashionMnist(fashion_folder, 32, 32, 70)
    assert data.steps_per_epoch == steps_per_epoch("fashion-mnist", 70) == 4
    epochs = []
    for epoch in range(2):
        batches = [data.batch(3, step) for step in range(epoch * 4, epoch * 4 + 4)]
        epochs.append(torch.cat([written_index(images) for images, _ in batches]))
        assert torch.equal(torch.cat([labels for _, labels in batches]), epochs[-1] % 10)
        assert len(epochs[-1].unique()) == 280
    assert not torch.equal(*epochs)
    assert torch.equal(written_index(data.batch(3, 2)[0]), epochs[0][140:210])
    assert not torch.equal(written_index(data.batch(4, 2)[0]), epochs[0][140:210])


def test_the_test_set_of_fashion_mnist_is_whole_and_in_order(fashion_folder):
    data = FashionMnist(fashion_folder, 32, 32, 10)
    batches = list(data.eval_batches())
    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    assert torch.equal(torch.cat([written_index(images) for images, _ in batches]), torch.arange(25))
    assert data.ceiling_percent is None


def test_fashion_mnist_is_padded_then_resized(fashion_folder):
    small, large = (FashionMnist(fashion_folder, *size, 2).batch(0, 0)[0] for size in ((32, 32), (40, 64)))
    assert large.shape == (2, 3, 40, 64) and large.dtype == torch.float32
    torch.testing.assert_close(large, F.interpolate(small, size=(40, 64), mode="bilinear"))


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"x" * 99], ids=["cut", "empty", "text"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(path, np.arange(40, dtype=np.uint8))
    assert fashion.read_idx(path, (40,)).tolist() == list(range(40))
    for shape in [(41,), (4, 10)]:
        with pytest.raises(ValueError, match=r"train-labels.*must be an idx file"):
            fashion.read_idx(path, shape)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="train-labels"):
        fashion.read_idx(path, (40,))


@pytest.mark.parametrize("change", ["byte missing", "byte too many", "signed bytes"])
def test_a_whole_gzip_with_the_wrong_content_is_named(change, tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(path, np.arange(40, dtype=np.uint8))
    raw = gzip.decompress(path.read_bytes())
    wrong = {"byte missing": raw[:-1], "byte too many": raw + b"x", "signed bytes": raw[:2] + b"\x09" + raw[3:]}
    path.write_bytes(gzip.compress(wrong[change]))
    with pytest.raises(ValueError, match=r"train-labels.*must be an idx file"):
        fashion.read_idx(path, (40,))


def test_without_package_and_network_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "PACKAGE_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(FileNotFoundError, match=r"dataset-fashion-mnist"):
        make_data("fashion-mnist", 32, 32, 4)


@pytest.mark.skipif(not PACKAGE_FOLDER.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = make_data("fashion-mnist", 32, 32, 3000)
    assert (data.steps_per_epoch, data.num_classes) == (20, 10)
    _, labels = next(data.eval_batches())
    assert labels[:5].tolist() == [9, 2, 1, 1, 6]  # ankle boot, pullover, trouser, trouser, shirt
    # the constants describe the 28x28 px inside the padding
    inside = data.batch(0, 0)[0][:, 0, 2:30, 2:30]
    assert inside.mean().abs() < 0.03 and abs(inside.std() - 1) < 0.03
