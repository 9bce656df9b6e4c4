"""Recipes: their values, the rate of every step, and steps that timm's own parts would take."""

import copy

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from ablations.study import Axes, Cell, cell_key
from attention_zoo import create_model
from runners.cells.plan import command_for, make_plan
from runners.data.seeding import drawn_from
from runners.train.accuracy import train, train_and_evaluate
from runners.train.criterion import make_criterion
from runners.train.optim import Schedule, make_optimizer
from runners.train.recipe import PROBE, Recipe
from runners.train.recipes import DEIT300, RECIPES, make_recipe, read_field
from runners.train.resume import Training
from runners.train.step import train_step

CPU = torch.device("cpu")


def tiny(num_classes=4, width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes)
    )


def drawn(count, seed=0, classes=4, side=16):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side, generator=generator)
    return images, torch.randint(classes, (count,), generator=generator)


def test_deit300_is_what_the_published_configuration_says():
    # configs/train_args.yaml of rayleizhu/BiFormer
    published = {
        **{"epochs": 300, "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5},
        **{"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25},
        **{"color_jitter": 0.4, "interpolation": "bicubic", "repeats": 3, "ema": 0.99996, "drop_path": 0.1},
        **{"clip_norm": None, "eval_crop": 0.875, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.999},
    }
    assert {name: getattr(DEIT300, name) for name in published} == published
    assert DEIT300.peak_lr(1024) == pytest.approx(1e-3)  # linear in the global batch, 512 for the rate itself


def test_the_rate_of_deit300_is_that_of_deits_loop():
    per_epoch, epochs = 3, 300
    model = tiny()
    schedule = Schedule(make_optimizer(model, DEIT300, 1024), DEIT300, epochs * per_epoch, per_epoch, 1024)
    rates = [schedule.set(step) for step in range(epochs * per_epoch)]
    theirs = torch.optim.AdamW(tiny().parameters(), lr=5e-4 * 1024 / 512)
    scheduler = CosineLRScheduler(theirs, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    expected = []
    for epoch in range(epochs):
        expected += [theirs.param_groups[0]["lr"]] * per_epoch
        scheduler.step(epoch)
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] == 1e-6 and max(rates) < 1e-3 and rates[-1] == pytest.approx(1e-5, rel=0.02)
    # any step alone, as a training that goes on sets it
    assert schedule.set(450) == rates[450]


def test_a_rate_by_epochs_needs_epochs():
    model = tiny()
    with pytest.raises(ValueError, match="endless"):
        Schedule(make_optimizer(model, DEIT300), DEIT300, 10, None)


def test_norms_biases_and_tables_do_not_decay():
    model = create_model("small", attn="swin", num_classes=10)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, DEIT300, 512).param_groups
    kept = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0, 0.05}
    assert {"positions.0", "norm.weight", "head.bias", "stages.0.0.attn.bias_table"} <= kept
    assert "head.weight" not in kept and "stages.0.0.attn.qkv.weight" not in kept
    probe = make_optimizer(model, PROBE).param_groups
    assert all(names[id(p)] not in ("positions.0",) for g in probe if g["weight_decay"] == 0 for p in g["params"])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *[("lr", "3e-4", 3e-4), ("clip_norm", "none", None), ("epochs", "90", 90), ("fused", "on", True)],
        *[("crop", "padded", "padded"), ("auto_augment", "rand-m5", "rand-m5"), ("warmup_epochs", "0", 0)],
    ],
)
def test_a_field_is_read_by_its_type(name, text, value):
    assert read_field(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        *[("lrr", "1", "lr"), ("lr", "fast", "number"), ("lr", "-1", "lr must be 0 up, got -1")],
        *[("crop", "random", "resized|padded|none"), ("hflip", "1.5", "hflip must be 0 to 1")],
        *[("checkpointed_stages", "1-5", "stages from 1 to 4"), ("checkpointed_stages", "one", "stages from 1 to 4")],
        *[("accumulate", "0", "accumulate must be 1 up"), ("epochs", "nan", "integer"), ("lr", "nan", "lr must be")],
    ],
)
def test_a_field_that_does_not_fit_is_refused(name, text, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        read_field(name, text)


def test_recipes_and_their_fields_are_axes():
    axes = Axes(recipe=("probe",), settings=(("recipe.lr", ("1e-3", "2e-3")), ("recipe.clip_norm", ("none",))))
    cells = make_plan([axes]).cells
    assert [cell.training for cell in cells] == [(("clip_norm", None),), (("clip_norm", None), ("lr", 2e-3))]
    assert Cell.from_dict(cells[1].to_dict()) == cells[1]
    assert "--set recipe.clip_norm=none --set recipe.lr=0.002" in command_for(cells[1], ["accuracy"])
    assert cell_key(Cell()) == cell_key(Cell(recipe="probe", training=()))
    assert len({cell_key(cell) for cell in cells}) == 2


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (Axes(recipe=("deit",)), "recipe: .*deit300"),
        (Axes(settings=(("recipe.lrr", ("1",)),)), "recipe.lrr=1: .*did you mean|recipe.lrr=1"),
        (Axes(settings=(("recipe.mixup", ("0.8",)),)), "digit-vote: its images are drawn"),
        (Axes(recipe=("deit300",)), "endless stream"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_any_work(axes, message):
    with pytest.raises(ValueError, match=message):
        make_plan([axes])


def test_every_recipe_is_whole():
    assert set(RECIPES) == {
        *("probe", "deit300", "small300", "short"),
        *("dense_short", "fpn80k", "upernet160k", "retinanet1x", "maskrcnn1x"),
    }
    assert all(make_recipe(name, ()) == recipe for name, recipe in RECIPES.items())
    assert {recipe.learning_rate_rule() for recipe in RECIPES.values()} == {
        "0.001 at any batch size, linear warm-up over 0.1 of the steps, cosine to 0.02 of it",
        "0.0005 at a batch of 512, linear in it, linear warm-up from 1e-06 over 5 epochs, cosine to 1e-05 by epochs",
        "0.001 at any batch size, linear warm-up from 1e-06 over 10 epochs, cosine to 1e-05 by epochs",
        "0.001 at any batch size, linear warm-up over 0.05 of the steps, linear to 0",
        "0.0002 at any batch size, linear warm-up over 0.0125 of the steps, cosine to 1e-08 of it",
        "6e-05 at any batch size, linear warm-up over 0.009375 of the steps, linear to 0",
        "0.0001 at any batch size, linear warm-up over 0.0056844 of the steps, a tenth of it after 8/12 and 11/12",
    }


EPOCH = 7_330  # batches of 16 of COCO's 117,266 images with an object


@pytest.mark.parametrize(
    ("name", "steps", "step", "rate"),
    [
        # mmcv: regular rate x (1 - (1 - step / warmup) (1 - ratio)) while it warms up
        ("upernet160k", 160_000, 0, 6e-5 * 1e-6),
        ("upernet160k", 160_000, 750, 6e-5 * (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6))),
        ("upernet160k", 160_000, 1_500, 6e-5 * (1 - 1_500 / 160_000)),
        ("upernet160k", 160_000, 120_000, 1.5e-5),
        ("fpn80k", 80_000, 0, 2e-4 * 0.1),
        ("fpn80k", 80_000, 40_000, 2e-4 * (1e-8 + (1 - 1e-8) / 2)),
        ("fpn80k", 80_000, 60_000, 2e-4 * (1e-8 + (1 - 1e-8) * (1 - 2**-0.5) / 2)),
        ("retinanet1x", 12 * EPOCH, 250, 1e-4 * (1 - 0.5 * (1 - 0.001))),
        ("retinanet1x", 12 * EPOCH, 500, 1e-4),
        ("retinanet1x", 12 * EPOCH, 8 * EPOCH - 1, 1e-4),
        ("retinanet1x", 12 * EPOCH, 8 * EPOCH, 1e-5),
        ("maskrcnn1x", 12 * EPOCH, 11 * EPOCH, 1e-6),
    ],
)
def test_dense_recipes_have_the_rates_of_mmcv(name, steps, step, rate):
    assert make_recipe(name).learning_rate_at(step, steps, 16) == pytest.approx(rate, rel=1e-9)


def test_twenty_steps_are_those_of_timms_own_parts():
    """The same step by timm's optimiser, scheduler, loss and Mixup, on the same images in the same order."""
    recipe = Recipe(
        lr=5e-4, lr_batch=512, schedule="epochs", warmup_epochs=1, mixup=0.8, cutmix=1.0, smoothing=0.1, clip_norm=None
    )
    batch, per_epoch, steps = 512, 4, 20
    images, labels = drawn(64)
    ours, theirs = tiny(), tiny()
    optimizer = make_optimizer(ours, recipe, batch)
    schedule = Schedule(optimizer, recipe, steps, per_epoch, batch)
    criterion = make_criterion(recipe, None)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    losses = []
    for step in range(steps):
        with drawn_from(2, 0, step):
            mixed, targets = mixup(images.clone(), labels)
        schedule.set(step)
        losses.append(train_step(ours, optimizer, mixed, targets, clip_norm=None, criterion=criterion).item())

    reference = create_optimizer_v2(theirs, opt="adamw", lr=5e-4, weight_decay=0.05, betas=(0.9, 0.99))
    scheduler = CosineLRScheduler(reference, t_initial=5, lr_min=1e-5, warmup_t=1, warmup_lr_init=1e-6)
    soft, expected = SoftTargetCrossEntropy(), []
    for step in range(steps):
        with drawn_from(2, 0, step):
            mixed, targets = mixup(images.clone(), labels)
        if step and step % per_epoch == 0:
            scheduler.step(step // per_epoch - 1)
        reference.zero_grad()
        loss = soft(theirs(mixed), targets)
        loss.backward()
        reference.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-6)
    assert expected[0] - expected[-1] > 1e-3  # it does move


@pytest.mark.parametrize("parts", [2, 3, 5, 100])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    images, labels = drawn(10)
    results = []
    for accumulate in (1, parts):
        model = tiny().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss = train_step(model, optimizer, images.double(), labels, accumulate=accumulate, clip_norm=1.0, share=0.7)
        results.append([loss, *(p.detach() for p in model.parameters())])
    # the loss is taken in fp32
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-7)


class Fixed:
    """The same labelled images at every step and for the test."""

    ceiling_percent, chance_percent, steps_per_epoch = None, 25.0, 4

    def __init__(self, images, labels, classes):
        self.images, self.labels = images, labels
        self.num_classes, self.batch_size = classes, len(labels)

    def batch(self, seed, step):
        return self.images, self.labels

    def eval_batches(self):
        yield self.images, self.labels


def test_the_average_of_the_weights_is_trained_and_the_raw_model_is_reported():
    data = Fixed(*drawn(32), 4)
    model, recipe = tiny(), Recipe(lr=1e-2, ema=0.5)
    training = Training(model, make_optimizer(model, recipe))
    weights = []

    def look():
        weights.append(copy.deepcopy(model.state_dict()))

    training.average = ModelEmaV3(model, decay=0.5)
    start = copy.deepcopy(model.state_dict())
    train(training, data, steps=3, seed=0, device=CPU, recipe=recipe, look=look)
    expected = start["0.weight"]
    for state in weights:
        expected = 0.5 * expected + 0.5 * state["0.weight"]
    torch.testing.assert_close(training.average.module.state_dict()["0.weight"], expected)
    row, _ = train_and_evaluate(tiny(), data, steps=30, seed=0, device=CPU, recipe=Recipe(lr=1e-2, ema=0.999999))
    # an average that hardly moves is the model of the start
    assert row["acc1"] > 60 > row["acc1_ema"]
    assert train_and_evaluate(tiny(), data, steps=2, seed=0, device=CPU)[0]["acc1_ema"] is None


def test_recomputed_blocks_train_to_the_same_weights():
    images, labels = drawn(4, classes=10, side=64)
    states = []
    for checkpointing, stages in ((False, "all"), (True, "all"), (True, "1-3")):
        torch.manual_seed(0)
        model = create_model("small", attn="bra", num_classes=10).double()
        data = Fixed(images.double(), labels, 10)
        recipe = Recipe(checkpointing=checkpointing, checkpointed_stages=stages)
        train_and_evaluate(model, data, steps=2, seed=0, device=CPU, recipe=recipe)
        assert model.grad_checkpointing == checkpointing
        assert model.checkpointed_stages == ({0, 2} if stages == "1-3" else {0, 1, 2, 3} if checkpointing else set())
        states.append(model.state_dict())
    for recomputed in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(recomputed[name], value, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="set_grad_checkpointing"):
        train_and_evaluate(tiny(), Fixed(*drawn(8), 4), steps=1, seed=0, device=CPU, recipe=Recipe(checkpointing=True))


def test_draws_follow_from_their_words_and_disturb_nobody():
    import random

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first, again, other = [], [], []
    for words, into in (((0, 5), first), ((0, 5), again), ((0, 6), other)):
        with drawn_from(*words):
            into += [random.random(), np.random.rand(), torch.rand(1).item()]
    assert first == again and not set(first) & set(other)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
