"""Token labelling: what a model says of its places, the paper's equations, and labels from a teacher."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from test_distillation import logits, plan, softmax
from test_train import CPU, Stripes, without_times
from torch import nn
from training_ranks import assert_one_run, processes, spread

from attention_zoo import LAYOUTS, create_model
from runners.cells.weights import save_checkpoint
from runners.machine.conditions import Conditions
from runners.train.accuracy import train_and_evaluate
from runners.train.criterion import make_criterion
from runners.train.distillation import as_teacher
from runners.train.recipe import Recipe
from runners.train.step import train_step
from runners.train.token_labels import Dense, labels_of, token_loss

__all__ = ["processes", "spread"]  # fixtures

SMALL = replace(LAYOUTS["small"], depths=(1, 1, 1, 1), dims=(16, 16, 16, 32))


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(layout=SMALL, seed=0, num_classes=8):
    torch.manual_seed(seed)
    return create_model(layout, attn="vanilla", num_classes=num_classes)


def test_the_loss_of_the_places_is_equation_3():
    places, labels = logits(0, 3, 2, 4, 7), logits(1, 3, 2, 4, 7).softmax(-1)
    log = np.log(softmax(places.numpy()))
    expected = np.mean([[-(labels[b].numpy() * log[b]).sum(-1).mean()] for b in range(3)])
    assert token_loss(places, labels).item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_a_recipe_is_equation_4():
    given, places, targets = logits(0, 3, 7), logits(1, 3, 2, 4, 7), torch.tensor([1, 0, 6])
    labels = logits(2, 3, 2, 4, 7).softmax(-1)
    criterion = make_criterion(Recipe(token_labels="somewhere", token_weight=0.25))
    label = -np.log(softmax(given.numpy())[range(3), targets]).mean()
    expected = label + 0.25 * token_loss(places, labels).item()
    assert criterion((given, places), targets, None, labels).item() == pytest.approx(expected, rel=1e-6)


def test_a_teacher_is_asked_once_for_images_and_places():
    given, places, targets = logits(0, 3, 7), logits(1, 3, 2, 2, 7), torch.tensor([1, 0, 6])
    taught, taught_places = logits(2, 3, 7), logits(3, 3, 4, 4, 7)
    asked = []

    class Teacher(nn.Module):
        def forward(self, images):
            asked.append(images)
            return taught, taught_places

    recipe = Recipe(distillation="hard", token_labels="teacher")
    loss = make_criterion(recipe, Teacher())((given, places), targets, torch.zeros(3))
    log = np.log(softmax(given.numpy()))
    expected = -0.5 * log[range(3), targets].mean() - 0.5 * log[range(3), taught.argmax(1)].mean()
    expected += 0.5 * token_loss(places, labels_of(taught_places, 2, 2)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6) and len(asked) == 1


def test_labels_for_a_smaller_map_come_from_the_mean_of_logits():
    # on a ramp the window of antialiasing, wider than the places that it halves, has their mean, but for the borders
    ramp = torch.arange(16.0)[None, :, None, None].expand(1, 16, 4, 2) * torch.tensor([0.1, 0.3])
    halved = ramp.unflatten(1, (8, 2)).unflatten(3, (2, 2)).mean((2, 4))
    assert torch.allclose(labels_of(ramp, 8, 2)[:, 1:-1], halved.softmax(-1)[:, 1:-1])
    assert torch.equal(labels_of(ramp, 16, 4), ramp.softmax(-1))


LAYOUTS_BY_NORM = {
    "batch": replace(SMALL, norm="batch", pool="norm_mean"),
    "layer": replace(SMALL, norm="layer", pool="norm_mean"),
    "after the mean": replace(SMALL, norm="layer", pool="mean_norm"),
}


@pytest.mark.parametrize("layout", LAYOUTS_BY_NORM.values(), ids=LAYOUTS_BY_NORM)
@pytest.mark.parametrize("training", [False, True])
def test_places_are_classified_by_the_classifier_of_the_model(layout, training):
    model = make_model(layout).train(training)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1), norm.weight.data.uniform_(0.5, 2)
    alone, images = copy.deepcopy(model), torch.randn(3, 3, 64, 96)
    given, places = Dense(model)(images)
    assert places.shape == (3, *layout.maps(64, 96)[-1], 8)
    assert torch.allclose(given, alone(images), atol=1e-5)
    # each batch counts once in the statistics
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.buffers(), alone.buffers(), strict=True))
    by_timm = copy.deepcopy(alone).train(training)
    by_timm.set_global_pool("")
    assert torch.allclose(places, by_timm(images), atol=1e-5)


SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "settings"), [("test_resnet", {}), ("test_convnext", {}), ("swin_tiny_patch4_window7_224", SWIN)]
)
def test_places_of_a_model_of_timm(name, settings):
    model, images = timm.create_model(name, num_classes=5, **settings).eval(), torch.randn(2, 3, 64, 64)
    given, places = Dense(model)(images)
    assert torch.allclose(given, model(images)) and places.shape[::3] == (2, 5)
    if name != "test_convnext":  # its norm comes after the mean
        assert torch.allclose(places.mean((1, 2)), given, atol=1e-5)


class Wide(Stripes):
    """The same at 64 px."""

    def _draw(self, entropy, count):
        images, labels = super()._draw(entropy, count)
        return images.repeat_interleave(8, 2).repeat_interleave(8, 3), labels


def run(model, **changes):
    arguments = {"steps": 4, "seed": 0, "device": CPU, **changes}
    return train_and_evaluate(model, Wide(), **arguments)


@pytest.mark.parametrize("conditions", [{}, {"precision": "amp-bf16", "memory_format": "channels_last"}], ids=str)
def test_places_learn_what_the_teacher_says_of_them(conditions):
    """Against a teacher whose answers differ from the labels, the places follow the teacher."""
    taught, model, images = make_model(seed=5), make_model(), Wide().batch(0, 0)[0]
    with torch.no_grad():
        taught.head.weight *= 8
    held = Conditions(**conditions)
    recipe = Recipe(token_labels="teacher", token_weight=5.0, lr=1e-2)

    def distance():
        a, b = (Dense(m.float().eval())(images)[1].log_softmax(-1) for m in (taught, model))
        return torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum(-1).mean().item()

    before = distance()
    row, _ = run(model, steps=20, recipe=recipe, teacher=taught, conditions=held)
    assert distance() < 0.7 * before and row["steps"] == 20


def test_no_weight_of_the_places_changes_no_loss():
    plain, places = (run(make_model(), **changes)[1]["loss"] for changes in ({}, zero_weight()))
    assert places == pytest.approx(plain, rel=1e-5)


def zero_weight():
    return {"recipe": Recipe(token_labels="teacher", token_weight=0.0), "teacher": make_model(seed=5)}


def test_parts_of_a_batch_and_shares_of_classes():
    images, labels = Wide().batch(0, 0)
    shares = nn.functional.one_hot(labels, 8) * 0.7 + 0.3 / 8
    layout, moved = replace(SMALL, norm="layer"), []
    for parts in (1, 3):
        model, recipe = make_model(layout), Recipe(token_labels="teacher", mixup=0.8)
        criterion = make_criterion(recipe, Dense(as_teacher(make_model(layout, seed=5))))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_step(Dense(model), optimizer, images, shares, criterion=criterion, accumulate=parts)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*moved, atol=1e-6)


def test_parts_of_a_batch_have_their_own_labels_of_places():
    images, labels = Wide().batch(0, 0)
    wanted, layout, moved = torch.rand(16, 2, 2, 8).softmax(-1), replace(SMALL, norm="layer"), []
    for parts in (1, 3):
        model, criterion = make_model(layout), make_criterion(Recipe(token_labels="somewhere"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"criterion": criterion, "token_targets": wanted, "accumulate": parts}
        train_step(Dense(model), optimizer, images, labels, **settings)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*moved, atol=1e-6)


def taught_on_a_rank(group):
    model = make_model()
    with group.joined(CPU):
        row, samples = run(
            model, recipe=Recipe(token_labels="teacher"), teacher=make_model(seed=5), group=group, steps=4
        )
    return samples["loss"], row, model.state_dict()


@pytest.mark.slow
def test_two_processes_learn_of_places_what_one_does(spread):
    found = spread(taught_on_a_rank)
    assert_one_run(found)
    one = run(make_model(), recipe=Recipe(token_labels="teacher"), teacher=make_model(seed=5), steps=4)
    assert found[0][0] == pytest.approx(one[1]["loss"], rel=1e-4)
    assert without_times(found[0][1])["acc1"] == pytest.approx(one[0]["acc1"], abs=5)


def test_a_plan_refuses_a_teacher_without_a_last_map(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "vit.pth")
    given = {"teacher": "timm:test_vit", "teacher_checkpoint": tmp_path / "vit.pth"}
    assert plan(distillation="soft", **given).cells
    with pytest.raises(
        ValueError, match=r"timm:test_vit cannot teach with recipe.token_labels=teacher: .* no last map"
    ):
        plan(token_labels="teacher", **given)


def test_a_plan_takes_a_pyramid_for_a_teacher(tmp_path):
    save_checkpoint(tmp_path / "t.pth", create_model("small", attn="swin", num_classes=10), "small", attn="swin")
    assert plan(token_labels="teacher", teacher="small/swin", teacher_checkpoint=tmp_path / "t.pth").cells
