"""Learning from a teacher: DeiT's equations in float64, what the teacher sees, and what a plan refuses."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from test_train import CPU, Stripes, make_model, without_times
from torch import nn
from torch.nn import functional as F
from training_ranks import assert_one_run, processes, spread

from ablations.study import Axes
from attention_zoo import create_model
from runners.cells.plan import as_flag, make_plan
from runners.cells.teachers import load_teacher
from runners.cells.weights import save_checkpoint
from runners.machine.conditions import Conditions
from runners.train.accuracy import train_and_evaluate
from runners.train.criterion import make_criterion
from runners.train.distillation import as_teacher, hard_distillation, soft_distillation, weights_hash
from runners.train.recipe import Recipe
from runners.train.step import train_step

__all__ = ["processes", "spread"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_equation_2(tau):
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    p, q = softmax(teacher.numpy() / tau), softmax(student.numpy() / tau)
    expected = tau**2 * (p * np.log(p / q)).sum(1).mean()
    assert soft_distillation(student, teacher, tau).item() == pytest.approx(expected, rel=1e-12)


def test_hard_distillation_is_equation_3():
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    expected = -np.log(softmax(student.numpy())[np.arange(5), teacher.numpy().argmax(1)]).mean()
    assert hard_distillation(student, teacher).item() == pytest.approx(expected, rel=1e-12)


class Fixed(nn.Module):
    """Gives the same logits whatever it sees, and keeps what it saw."""

    def __init__(self, given):
        super().__init__()
        self.given, self.seen = given, []

    def forward(self, images):
        self.seen.append(images)
        return self.given


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_weighs_labels_and_teacher(kind):
    student, teacher = logits(0, 4, 8).float(), logits(1, 4, 8).float()
    shares, images = logits(2, 4, 8).softmax(1).float(), torch.zeros(4, 3, 8, 8)
    recipe = Recipe(distillation=kind, distillation_alpha=0.3, distillation_tau=2.0, mixup=0.8)
    fixed = Fixed(teacher)
    loss = make_criterion(recipe, fixed)(student, shares, images)
    label = -(shares * F.log_softmax(student, 1)).sum(1).mean()
    taught = soft_distillation(student, teacher, 2.0) if kind == "soft" else hard_distillation(student, teacher)
    assert loss.item() == pytest.approx((0.7 * label + 0.3 * taught).item(), rel=1e-6)
    assert fixed.seen[0] is images


def run(model=None, data=None, **changes):
    arguments = {"steps": 40, "seed": 0, "device": CPU, **changes}
    return train_and_evaluate(model or make_model(), data or Stripes(), **arguments)


@pytest.fixture(scope="module")
def teacher():
    model = make_model()
    run(model, steps=40)
    return model


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teacher_without_weight_changes_no_bit(teacher, kind):
    alone, taught = make_model(), make_model()
    row, samples = run(alone, steps=12)
    recipe = Recipe(distillation=kind, distillation_alpha=0.0)
    other, others = run(taught, steps=12, recipe=recipe, teacher=copy.deepcopy(teacher))
    assert others == samples and without_times(other) == without_times(row) and same(alone, taught)


class Unlabelled(Stripes):
    """Every training image has the label 0; those of the test are right."""

    def batch(self, seed, step):
        images, labels = super().batch(seed, step)
        return images, torch.zeros_like(labels)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_learns_from_the_teacher_what_the_labels_do_not_say(teacher, kind):
    recipe = Recipe(distillation=kind, distillation_alpha=1.0)
    assert run(data=Unlabelled())[0]["acc1"] < 20
    assert run(data=Unlabelled(), recipe=recipe, teacher=copy.deepcopy(teacher))[0]["acc1"] == 100


def test_the_teacher_stays_as_it_is_and_has_no_gradient():
    before = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    taught = copy.deepcopy(before)
    run(steps=3, recipe=Recipe(distillation="soft"), teacher=taught)
    assert same(before, taught) and not taught.training
    assert all(p.grad is None and not p.requires_grad for p in taught.parameters())


@pytest.mark.parametrize("conditions", [{}, {"precision": "amp-bf16", "memory_format": "channels_last"}], ids=str)
def test_parts_of_a_batch_learn_from_the_teacher_what_the_whole_does(teacher, conditions):
    images, labels = Stripes().batch(0, 0)
    losses, moved = [], []
    for parts in (1, 3):
        model = make_model(dropout=0)
        criterion = make_criterion(
            Recipe(distillation="soft", distillation_tau=2.0), as_teacher(copy.deepcopy(teacher))
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"criterion": criterion, "conditions": Conditions(**conditions), "accumulate": parts}
        losses.append(train_step(model, optimizer, images, labels, **settings).item())
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if conditions else 1e-5)
    assert torch.allclose(*moved, atol=1e-3 if conditions else 1e-6)


class Stop(Exception):
    pass


def stop(step, *_):
    if step == 3:
        raise Stop


def test_a_saved_state_goes_on_with_the_same_teacher_alone(teacher, tmp_path, capsys):
    settings = {"steps": 5, "recipe": Recipe(distillation="soft"), "checkpoint_every_s": 0.0}
    straight = make_model()
    run(straight, teacher=copy.deepcopy(teacher), **settings)
    for taught, resumed in ((teacher, 1), (make_model(), 0)):
        path, model = tmp_path / f"state{resumed}", make_model()
        with pytest.raises(Stop):
            run(teacher=copy.deepcopy(teacher), state_path=path, progress=stop, **settings)
        row, _ = run(model, teacher=copy.deepcopy(taught), state_path=path, **settings)
        assert row["resumed"] == resumed and same(model, straight) == bool(resumed)
    assert "is of a run with other settings" in capsys.readouterr().out


def test_the_teacher_is_not_in_the_saved_state(teacher, tmp_path):
    for name, settings in (
        ("alone", {}),
        ("taught", {"recipe": Recipe(distillation="soft"), "teacher": copy.deepcopy(teacher)}),
    ):
        with pytest.raises(Stop):
            run(state_path=tmp_path / name, checkpoint_every_s=0.0, progress=stop, **settings)
    assert (tmp_path / "alone").stat().st_size == pytest.approx((tmp_path / "taught").stat().st_size, abs=100)


def taught_on_a_rank(group, taught):
    model = make_model(dropout=0.0)
    with group.joined(CPU):
        row, samples = train_and_evaluate(
            model,
            Stripes(),
            steps=6,
            seed=0,
            device=CPU,
            recipe=Recipe(distillation="soft", distillation_tau=2.0),
            teacher=taught,
            group=group,
        )
    return samples["loss"], row, model.state_dict()


@pytest.mark.slow
def test_two_processes_learn_from_the_teacher_what_one_does(spread, teacher):
    found = spread(taught_on_a_rank, copy.deepcopy(teacher))
    assert_one_run(found)
    one = make_model(dropout=0.0)
    recipe = Recipe(distillation="soft", distillation_tau=2.0)
    losses = run(one, steps=6, recipe=recipe, teacher=copy.deepcopy(teacher))[1]["loss"]
    assert found[0][0] == pytest.approx(losses, rel=1e-5)


def plan(data="digit-vote", batch_size=64, **fields):
    settings = tuple((f"recipe.{name}", (str(value),)) for name, value in fields.items())
    return make_plan([Axes(attn=("vanilla",), data=(data,), batch_size=(batch_size,), settings=settings)], as_flag)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for classes in (10, 7):
        torch.manual_seed(classes)
        swin = create_model("small", attn="swin", num_classes=classes, window=4)
        save_checkpoint(folder / f"swin{classes}.pth", swin, "small", attn="swin", window=4)
        resnet = timm.create_model("test_resnet", num_classes=classes)
        torch.save({"state_dict": resnet.state_dict()}, folder / f"test_resnet{classes}.pth")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    torch.save({"state_dict": vit.state_dict()}, folder / "vit_tiny_patch16_224.pth")
    (folder / "cut.pth").write_bytes((folder / "swin10.pth").read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("name", "file"), [("small/swin", "swin10.pth"), ("", "swin10.pth"), ("timm:test_resnet", "test_resnet10.pth")]
)
def test_a_teacher_is_built_from_its_name_and_its_file(files, name, file):
    recipe = Recipe(distillation="soft", teacher=name, teacher_checkpoint=str(files / file))
    assert plan(**{field: value for field, value in vars(recipe).items() if "teacher" in field and value}).cells
    loaded = load_teacher(recipe, 10)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    wanted = torch.load(files / file, weights_only=True)
    wanted = wanted.get("model") or wanted["state_dict"]
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in loaded.state_dict().items())
    assert load_teacher(replace(recipe, distillation="none"), 10) is None


REFUSED = [
    ({"teacher": "small/swin"}, ("recipe.teacher=small/swin", "random weights", "recipe.teacher_checkpoint")),
    ({}, ("names none", "recipe.teacher_checkpoint")),
    ({"teacher": "smal/swin", "teacher_checkpoint": "swin10.pth"}, ("'smal/swin'", "small/MECHANISM", "timm:NAME")),
    ({"teacher": "small/swim", "teacher_checkpoint": "swin10.pth"}, ("swim", "swin")),
    ({"teacher": "small/bra", "teacher_checkpoint": "swin10.pth"}, ("small, swin", "attn=bra")),
    ({"teacher": "timm:test_resnett", "teacher_checkpoint": "swin10.pth"}, ("'test_resnett'", "'test_resnet'")),
    ({"teacher": "timm:test_resnet", "teacher_checkpoint": "swin10.pth"}, ("unknown: ", "missing: ")),
    ({"teacher": "small/swin", "teacher_checkpoint": "none.pth"}, ("none.pth", "no such file")),
    ({"teacher": "timm:test_resnet", "teacher_checkpoint": "none.pth"}, ("none.pth", "cannot be read")),
    ({"teacher": "small/swin", "teacher_checkpoint": "cut.pth"}, ("cut.pth",)),
    ({"teacher": "small/swin", "teacher_checkpoint": "swin7.pth"}, ("knows 7 classes", "the data have 10")),
    ({"teacher": "timm:test_resnet", "teacher_checkpoint": "test_resnet7.pth"}, ("knows 7 classes", "10")),
    (
        {"teacher": "timm:vit_tiny_patch16_224", "teacher_checkpoint": "vit_tiny_patch16_224.pth"},
        ("timm:vit_tiny_patch16_224", "64x64 px"),
    ),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[" ".join(fields.values()) for fields, _ in REFUSED])
def test_a_plan_refuses_a_teacher_that_cannot_teach(files, fields, words):
    given = {**fields}
    if "teacher_checkpoint" in given:
        given["teacher_checkpoint"] = str(files / given["teacher_checkpoint"])
    with pytest.raises(ValueError) as refusal:
        plan(distillation="hard", **given)
    message = str(refusal.value)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize(
    ("field", "value"),
    [("distillation", "warm"), ("distillation_alpha", "1.1"), ("distillation_tau", "0"), ("token_weight", "-1")],
)
def test_a_field_outside_its_range_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"--set recipe\.{field}={value}: {field} "):
        plan(**{field: value})


def test_the_hash_tells_weights_apart(teacher):
    assert weights_hash(teacher) == weights_hash(copy.deepcopy(teacher)) != weights_hash(make_model())
