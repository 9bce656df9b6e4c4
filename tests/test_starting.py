"""Trainings that start from weights, of which only a classifier is trained, or whose rate is chosen first."""

import hashlib
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ablations.study import Axes, Cell
from attention_zoo import create_model
from runners import Sweep
from runners.cells.plan import make_plan
from runners.cells.starting import Start, check_start, find_start, read_start, start_from
from runners.cells.weights import save_checkpoint
from runners.data.loading import make_data
from runners.jobs.options import RunOptions
from runners.store.store import open_store
from runners.train.accuracy import Diverged
from runners.train.distributed import ALONE
from runners.train.freezing import freeze, set_training
from runners.train.recipe import PROBE
from runners.train.tuning import Trial, choose_rate, short_steps

CPU = torch.device("cpu")


def model_of(attn="swin", classes=10, seed=0, **config):
    torch.manual_seed(seed)
    return create_model("small", attn=attn, num_classes=classes, **config)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "swin.pth"
    save_checkpoint(path, model_of(), "small", attn="swin")
    return path


def test_a_model_starts_from_a_file(checkpoint):
    model, other = model_of(seed=0), model_of(seed=1)
    start = read_start(checkpoint)
    start_from(other, start)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert start.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]


def test_another_number_of_classes_needs_a_word(checkpoint):
    model = model_of(classes=3, seed=1)
    head = model.head.weight.detach().clone()
    with pytest.raises(ValueError, match="10 classes and the data have 3; give --reset-classes"):
        start_from(model, read_start(checkpoint))
    start_from(model, read_start(checkpoint), reset_classes=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.stages[0][0].attn.qkv.weight, model_of().stages[0][0].attn.qkv.weight)


@pytest.mark.parametrize(("attn", "config"), [("bra", {}), ("swin", {"qkv_bias": False})])
def test_another_model_is_refused(checkpoint, attn, config):
    with pytest.raises(ValueError, match=r"another model: (unknown|missing)"):
        start_from(model_of(attn, **config), read_start(checkpoint))


def test_tables_of_positions_are_resampled(tmp_path):
    small, large = model_of(window=2), model_of(window=4, seed=1)
    state = small.state_dict()
    # a table that is linear in the offset stays linear in the middle
    name = "stages.0.0.attn.bias_table"
    rows = torch.arange(3.0)[:, None].expand(3, 3).reshape(9, 1)
    state[name] = rows.expand(9, state[name].shape[1]).clone()
    state["positions.0"] = torch.ones(1, state["positions.0"].shape[1], 4, 5)
    start_from(large, Start(state, tmp_path, ""))
    table = large.state_dict()[name][:, 0].reshape(7, 7)
    assert torch.equal(large.positions[0], torch.ones_like(large.positions[0]))
    assert table[3].allclose(torch.tensor(1.0)) and (table.diff(dim=0)[1:-1] > 0).all()
    assert table.diff(dim=1).abs().max() < 1e-5


def test_what_is_no_start_is_said(tmp_path):
    store = open_store(tmp_path / "runs", create=True)
    with pytest.raises(ValueError, match=r"init_from=nofile.pth is neither a file nor the key"):
        find_start("nofile.pth", store)
    with pytest.raises(ValueError, match=r"has no kept weights .*--save-weights"):
        find_start("0123456789abcdef", store)
    assert find_start("0123456789abcdef", None) is None
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"broken.pth"):
        check_start(Cell(attn="swin", init_from=str(broken)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freeze": (True,)}, "freeze needs init_from"),
        ({"reset_classes": (True,)}, "reset_classes needs init_from"),
        ({"init_from": ("none.pth",)}, "init_from=none.pth"),
        ({"tune_lr": "1e-3,2e-3", "settings": (("recipe.lr", ("1e-2",)),)}, "give one of them"),
        ({"settings": (("recipe.checkpointed_stages", ("1-2",)),)}, "needs recipe.checkpointing=on"),
        (
            {
                "model": ("timm:convnext_atto",),
                "settings": (("recipe.checkpointed_stages", ("1",)), ("recipe.checkpointing", ("on",))),
                "attn": None,
            },
            "models of timm have all or none",
        ),
        (
            {"tune_lr": "1e-3,2e-3", "data": ("fashion-mnist",), "batch_size": (55_000,), "epochs": 1},
            "tune_lr=.* nine tenths of the images: batch size must be 1 to 54000",
        ),
    ],
)
def test_a_plan_that_cannot_start_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_plan([Axes(**{"attn": ("swin",), **values})])


def test_a_plan_checks_the_model_of_the_file(checkpoint):
    assert len(make_plan([Axes(attn=("swin",), init_from=(str(checkpoint),))]).cells) == 1
    with pytest.raises(ValueError, match="another model"):
        make_plan([Axes(attn=("bra",), init_from=(str(checkpoint),))])


def test_of_a_frozen_model_the_classifier_alone_moves():
    model = create_model("stl", attn="swin", num_classes=3)
    freeze(model)
    set_training(model, frozen=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}  # the statistics of BatchNorm stay too
    assert model.head.training and not model.stages.training


class Curved:
    """Pretends that trainings come to an accuracy that depends on the rate alone."""

    def __init__(self, accuracy):
        self.accuracy, self.asked = accuracy, []

    def __call__(self, model, data, recipe, steps, seed):
        self.asked.append((recipe.lr, steps, seed, data, model))
        return self.accuracy[recipe.lr]


class Divided:
    def for_tuning(self):
        return "training images alone"


def choose(train, kept, run="r", group=ALONE):
    rates = (1e-4, 1e-3, 1e-2)
    return choose_rate(
        rates, Divided(), PROBE, 400, build=lambda: "fresh", train=train, kept=kept, run=run, group=group
    )


def test_the_rate_with_the_best_accuracy_is_chosen(tmp_path):
    kept = (tmp_path / str(number) for number in itertools.count())
    train = Curved({1e-4: (40.0, 2.0), 1e-3: (60.0, 1.5), 1e-2: None})
    trials = choose(train, next(kept))
    assert trials == [Trial(1e-3, 60.0, 1.5), Trial(1e-4, 40.0, 2.0), Trial(1e-2, None, None)]
    assert train.asked == [(rate, 40, 0, "training images alone", "fresh") for rate in (1e-4, 1e-3, 1e-2)]
    assert choose(Curved({1e-4: (60.0, 1.4), 1e-3: (60.0, 1.5), 1e-2: (0.0, 9.0)}), next(kept))[0].lr == 1e-4
    assert choose(Curved({1e-4: (0.0, 2.4), 1e-3: None, 1e-2: None}), next(kept))[0].lr == 1e-4
    with pytest.raises(Diverged, match=r"all rates diverged: 0\.0001, 0\.001, 0\.01"):
        choose(Curved(dict.fromkeys((1e-4, 1e-3, 1e-2))), next(kept))
    assert [short_steps(steps) for steps in (1, 4, 400, 1562)] == [1, 1, 40, 156]


def test_finished_trials_are_not_repeated(tmp_path):
    kept = tmp_path / "rates"

    def dies(model, data, recipe, steps, seed):
        if recipe.lr == 1e-2:
            raise KeyboardInterrupt
        return recipe.lr, 1.0

    with pytest.raises(KeyboardInterrupt):
        choose(dies, kept=kept)
    train = Curved({1e-2: (0.5, 1.0), 1e-4: (9.0, 1.0), 1e-3: (9.0, 1.0)})
    assert choose(train, kept=kept)[0] == Trial(1e-2, 0.5, 1.0)
    assert [lr for lr, *_ in train.asked] == [1e-2]
    assert [lr for lr, *_ in (choose(train, kept=kept, run="other"), train.asked)[1][1:]] == [1e-4, 1e-3, 1e-2]
    for damaged in ("", "[]", json.dumps({"run": "r", "trials": [[1]]}), json.dumps({"run": "r", "trials": 3})):
        kept.write_text(damaged)
        again = Curved({1e-4: (1.0, 1.0), 1e-3: (2.0, 1.0), 1e-2: (3.0, 1.0)})
        assert choose(again, kept=kept)[0].lr == 1e-2 and len(again.asked) == 3


def test_processes_that_train_together_try_the_same_rates(tmp_path):
    """What an interrupted run has finished lies in a file that the first process alone reads."""
    told = []

    class Rank:
        def __init__(self, rank):
            self.rank = rank

        def broadcast(self, content):
            told.append(content)
            return told[0]

    kept, found = tmp_path / "rates", {1e-4: (1.0, 1.0), 1e-3: (3.0, 1.0), 1e-2: (2.0, 1.0)}
    kept.write_text(json.dumps({"run": "r", "trials": [[1e-4, 9.0, 1.0], [1e-3, None, None]]}))
    trainings = [Curved(found), Curved(found)]
    trials = [choose(train, kept, group=Rank(rank)) for rank, train in enumerate(trainings)]
    assert told[1] is None
    assert trials[0] == trials[1] == [Trial(1e-4, 9.0, 1.0), Trial(1e-2, 2.0, 1.0), Trial(1e-3, None, None)]
    assert [[lr for lr, *_ in train.asked] for train in trainings] == [[1e-2], [1e-2]]


def test_weights_behind_a_link_are_no_weights_of_a_cell(tmp_path, checkpoint):
    store, key = open_store(tmp_path / "runs", create=True), "0123456789abcdef"
    store.folder(key).mkdir(parents=True)
    (store.folder(key) / "weights.cpu-x.pth").symlink_to(checkpoint)
    with pytest.raises(ValueError, match=r"has no kept weights"):
        find_start(key, store)
    (store.folder(key) / "weights.cpu-y.best.pth").write_bytes(b"")
    (store.folder(key) / "weights.cpu-y.pth").write_bytes(b"")
    assert find_start(key, store, "cpu-z") == store.folder(key) / "weights.cpu-y.pth"


def colours(folder, per_class=12, side=40):
    """Noise with one bright channel, which is the class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in enumerate(("red", "green", "blue")):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 120, (side, side, 3))
                pixels[..., channel] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("spec", ["digit-vote", "images"])
def test_rates_are_chosen_on_training_images_alone(spec, tmp_path):
    spec = colours(tmp_path) if spec == "images" else spec
    data = make_data(spec, 32, 32, 6)
    part = data.for_tuning()
    if spec.startswith("imagefolder"):
        trained, kept = set(part.folders.train_indices), set(part.folders.val_indices)
        assert trained | kept == set(data.folders.train_indices) and not trained & kept
        assert np.bincount(part.folders.val.labels[sorted(kept)]).tolist() == [1, 1, 1]
        assert part.folders.val.path == data.folders.train.path
    else:
        trained, kept = ({image.tobytes() for image in digits.images} for digits in (part.train, part.test))
        assert trained | kept == {image.tobytes() for image in data.train.images} and not trained & kept
        assert (part.test.size >= 1).all() and part.test.size.sum() == pytest.approx(140, abs=5)
    images, labels = part.batch(0, 0)
    assert len(images) == len(labels) == 6
    assert sum(len(some) for _, some in part.eval_batches()) == (3 if "folder" in spec else 1024)


@pytest.mark.slow
def test_a_sweep_tunes_keeps_and_starts_from(tmp_path):
    spec = colours(tmp_path / "images")
    common = {"attn": "swin", "data": spec, "recipe": "short", "threads": 1, "batch_size": 9, "measures": ["accuracy"]}
    rows = Sweep(**common, epochs=4, tune_lr=[1e-7, 1e-3]).run(tmp_path / "runs", save_weights=True)
    row = rows.iloc[0]
    assert (row.status, row.acc1, row.tuned_lr, row.tune_lr) == ("ok", 100, 1e-3, "1e-07,0.001")
    assert (row.n_train, row.num_classes, row.broken_images) == (36, 3, 0)
    probed = Sweep(**common, steps=1, init_from=row.cell_key, freeze=True).run(tmp_path / "runs").iloc[0]
    assert probed.acc1 == 100 and probed.freeze and len(probed.init_hash) == 16
    fresh = Sweep(**common, steps=1).run(tmp_path / "runs").iloc[0]
    assert pd.isna(fresh.tuned_lr) and pd.isna(fresh.init_hash)
    # one step of the classifier hardly moves what was there, one of all weights is far from it
    assert abs(math.log(probed.val_loss / row.val_loss)) < 1 < abs(math.log(fresh.val_loss / row.val_loss))
    with pytest.raises(ValueError, match="3 classes and the data have 10; give --reset-classes"):
        Sweep(attn="swin", init_from=row.cell_key, measures=["accuracy"]).open(tmp_path / "runs", RunOptions())
