import copy
import itertools
import math
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runners.machine.conditions import Conditions
from runners.train import accuracy as train
from runners.train.accuracy import Diverged, prefetch, train_and_evaluate
from runners.train.evaluation import evaluate
from runners.train.optim import make_optimizer
from runners.train.recipe import Recipe
from runners.train.resume import Training
from runners.train.step import train_step

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


class Stripes:
    """Noise in which one of eight rows is bright, and which one is the label; 20 test images, in batches of 8."""

    num_classes, batch_size, steps_per_epoch = 8, 16, None
    ceiling_percent, chance_percent = None, 12.5

    def __init__(self):
        self.drawn = []

    def _draw(self, entropy, count):
        rng = np.random.default_rng(entropy)
        labels = rng.integers(8, size=count)
        images = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
        images[np.arange(count), :, labels] += 4
        return torch.from_numpy(images), torch.from_numpy(labels)

    def batch(self, seed, step):
        self.drawn.append((seed, step, threading.current_thread()))
        return self._draw([seed, step], 16)

    def eval_batches(self):
        yield from zip(*(part.split(8) for part in self._draw([2, 0, 0], 20)), strict=True)


def make_model(dropout=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GELU(), nn.Flatten(), nn.Dropout(dropout), nn.LayerNorm(512), nn.Linear(512, 8)
    )


def run(model=None, data=None, **changes):
    arguments = {"steps": 40, "seed": 0, "device": CPU, **changes}
    return train_and_evaluate(model or make_model(), data or Stripes(), **arguments)[0]


def test_training_learns_and_fills_the_columns():
    row = run()
    assert row["acc1"] == 100 and row["acc5"] == 100 and row["val_loss"] < 1 < math.log(8)
    assert (row["n_eval"], row["steps"]) == (20, 40)
    assert (row["ceiling_percent"], row["chance_percent"]) == (None, 12.5)
    assert row["train_samples_per_sec"] == pytest.approx(16 * 40 / row["train_seconds"])
    assert set(row) == {
        *("acc1", "acc5", "n_eval", "val_loss", "train_loss", "steps", "train_seconds", "train_samples_per_sec"),
        *("data_wait_frac", "steps_to_acc", "seconds_to_acc", "acc1_ema", "acc1_best", "best_step"),
        *("resumed", "world_size", "learning_rate_rule", "ceiling_percent", "chance_percent"),
    }
    assert (row["resumed"], row["world_size"]) == (0, 1)
    assert row["learning_rate_rule"] == (
        "0.001 at any batch size, linear warm-up over 0.1 of the steps, cosine to 0.02 of it"
    )


TIMES = ("train_seconds", "train_samples_per_sec", "data_wait_frac", "seconds_to_acc")


def without_times(row):
    return {name: value for name, value in row.items() if name not in TIMES}


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator():
    first = run(make_model())
    model = make_model()
    torch.manual_seed(99)
    assert without_times(run(model)) == without_times(first)
    assert run(seed=1)["val_loss"] != first["val_loss"]


def test_a_run_that_is_resumed_ends_like_one_that_was_not():
    straight = make_model()
    whole = Training(straight, make_optimizer(straight))
    train.train(whole, Stripes(), steps=9, seed=3, device=CPU)

    class Cut(RuntimeError):
        pass

    def cut(step, steps, loss):
        if step == 4:
            raise Cut

    before = make_model()
    half = Training(before, make_optimizer(before))
    with pytest.raises(Cut):
        train.train(half, Stripes(), steps=9, seed=3, device=CPU, progress=cut)
    saved = copy.deepcopy((half.model.state_dict(), half.optimizer.state_dict(), half.losses))

    after = make_model()
    resumed = Training(after, make_optimizer(after), step=half.step, seconds=100.0, losses=saved[2])
    after.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    data = Stripes()
    train.train(resumed, data, steps=9, seed=3, device=CPU)

    assert [step for _, step, _ in data.drawn] == [4, 5, 6, 7, 8]
    assert resumed.step == 9 and resumed.losses == whole.losses
    assert half.seconds > 0 and 100 < resumed.seconds < 200
    for a, b in zip(after.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_two_percent():
    rates = [Recipe().learning_rate_at(step, 300) / 1e-3 for step in range(300)]
    assert rates[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
    assert max(rates) == rates[29] == pytest.approx(1)
    assert rates[299] == pytest.approx(0.02)
    middle = rates[30 + 134], rates[30 + 135]  # the cosine runs over 270 steps
    assert middle[0] > 0.51 > middle[1]
    assert all(a >= b for a, b in itertools.pairwise(rates[29:]))
    assert [Recipe().learning_rate_at(0, 1), Recipe().learning_rate_at(1, 2)] == pytest.approx([1e-3, 2e-5])


def test_the_recipe_reaches_every_step(monkeypatch):
    used = []

    def record(model, optimizer, images, labels, **settings):
        used.append(
            ({group["lr"] for group in optimizer.param_groups}, optimizer.param_groups[-1], settings["clip_norm"])
        )
        return train_step(model, optimizer, images, labels, **settings)

    monkeypatch.setattr(train, "train_step", record)
    recipe = Recipe(lr=0.5, beta1=0.5, beta2=0.6, weight_decay=0.3, clip_norm=7)
    run(steps=12, recipe=recipe)
    assert [rates for rates, *_ in used] == [{recipe.learning_rate_at(step, 12)} for step in range(12)]
    for _, group, clip_norm in used:
        assert (group["betas"], group["weight_decay"], clip_norm) == ((0.5, 0.6), 0.3, 7)


def test_only_parameters_of_two_axes_or_more_decay():
    model = make_model()
    model[0].bias.requires_grad_(False)
    plain, decayed = make_optimizer(model, Recipe(weight_decay=0.3)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[5].weight)]
    assert [id(p) for p in plain["params"]] == [id(p) for p in (model[4].weight, model[4].bias, model[5].bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert decayed["betas"] == plain["betas"] == (0.9, 0.99)


def test_a_step_clips_the_gradient_over_all_parameters():
    images, labels = Stripes().batch(0, 0)

    def moved(clip_norm):
        model = make_model(dropout=0)
        before = [p.detach().clone() for p in model.parameters()]
        train_step(model, torch.optim.SGD(model.parameters(), lr=1), images * 100, labels, clip_norm=clip_norm)
        return math.sqrt(sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True)))

    assert moved(1e9) > 0.2
    assert moved(0.1) == pytest.approx(0.1, rel=1e-3)


def test_a_step_starts_from_no_gradient_and_returns_the_loss_before_it():
    images, labels = Stripes().batch(0, 0)
    model = make_model(dropout=0)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    other = make_model(dropout=0)
    loss = [train_step(m, make_optimizer(m), images, labels) for m in (model, other)]
    assert loss[0] == loss[1] == F.cross_entropy(make_model(dropout=0)(images), labels)
    assert not loss[0].requires_grad
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


class Poison(nn.Module):
    """Turns what passes into NaN from a given call on, in training or in evaluation."""

    def __init__(self, call, training):
        super().__init__()
        self.left, self.when = call, training

    def forward(self, x):
        self.left -= self.training == self.when
        return x * float("nan") if self.left <= 0 and self.training == self.when else x


@pytest.mark.parametrize(
    ("poison", "message"),
    [(Poison(3, True), "training loss is nan at step 3 of 40"), (Poison(1, False), "test loss is nan after 40 steps")],
)
def test_a_loss_that_is_not_finite_ends_the_run(poison, message):
    with pytest.raises(Diverged, match=message):
        run(nn.Sequential(make_model(), poison))


def test_bf16_reaches_the_model_in_training_and_evaluation_and_leaves_its_weights_alone():
    seen = set()
    model = make_model()
    model[5].register_forward_hook(lambda module, inputs, output: seen.add((module.training, output.dtype)))
    row = run(model, conditions=Conditions(precision="amp-bf16"))
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert row["acc1"] == 100


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        run(steps=0)


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (9, 1), (40, 2)])
def test_progress_reports_every_step_and_the_train_loss_is_that_of_the_last_ones(steps, last):
    reports = []
    row = run(steps=steps, progress=lambda *report: reports.append(report))
    assert [report[:2] for report in reports] == [(step, steps) for step in range(1, steps + 1)]
    assert row["train_loss"] == pytest.approx(sum(loss for *_, loss in reports[-last:]) / last)


def test_batches_are_drawn_one_ahead_in_one_other_thread():
    data = Stripes()
    batches = prefetch(data, 5, 2, 6)
    for taken, (images, labels) in enumerate(batches, start=1):
        expected = Stripes().batch(5, 1 + taken)
        assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1])
        assert len(data.drawn) <= taken + 1
    assert [(seed, step) for seed, step, _ in data.drawn] == [(5, step) for step in range(2, 6)]
    (thread,) = {thread for *_, thread in data.drawn}
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_what_goes_wrong_in_drawing_a_batch_reaches_the_caller_and_the_thread_ends():
    data = Stripes()
    data.batch = lambda seed, step: 1 / (2 - step)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        list(prefetch(data, 0, 0, 9))
    assert set(threading.enumerate()) == before


def test_evaluation_counts_by_hand():
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 9, 8, 7, 6, 5], [1, 2, 3, 4, 5, 6]])
    labels = torch.tensor([0, 0, 4])  # first place, sixth, second

    class Fixed(Stripes):
        def eval_batches(self):
            yield torch.tensor([0, 1]), labels[:2]
            yield torch.tensor([2]), labels[2:]

    class Lookup(nn.Module):
        def forward(self, index):
            assert not self.training and torch.is_inference_mode_enabled()
            return logits[index]

    found = evaluate(Lookup(), Fixed(), device=CPU)
    assert found["acc1"] == pytest.approx(100 / 3) and found["acc5"] == pytest.approx(200 / 3)
    assert found["n_eval"] == 3
    expected = [
        math.log(sum(math.exp(v) for v in row)) - row[k] for row, k in zip(logits.tolist(), [0, 0, 4], strict=True)
    ]
    assert found["val_loss"] == pytest.approx(sum(expected) / 3)


def test_with_fewer_than_five_classes_every_answer_is_among_the_five():
    class Two(Stripes):
        def eval_batches(self):
            yield torch.eye(2), torch.tensor([0, 0])

    found = evaluate(nn.Identity(), Two(), device=CPU)
    assert (found["acc1"], found["acc5"]) == (50, 100)


@pytest.mark.slow
def test_compiled_steps_train_to_the_same_accuracy():
    assert run(compile_model=True)["acc1"] == 100


# --- a stated accuracy, and the wait for data


def test_the_first_look_that_sees_a_stated_accuracy_is_kept_and_the_training_is_the_same():
    model = make_model()
    plain, same = copy.deepcopy(model), copy.deepcopy(model)
    row = run(plain, target_acc=100)
    assert row["acc1"] == 100 and 2 <= row["steps_to_acc"] <= 40 and row["steps_to_acc"] % 2 == 0
    assert run(copy.deepcopy(model), steps=43, target_acc=100)["steps_to_acc"] <= 43
    assert 0 < row["seconds_to_acc"] <= row["train_seconds"]
    before = run(same)
    assert before["steps_to_acc"] is before["seconds_to_acc"] is None
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))


def test_an_accuracy_that_is_not_reached_has_no_step():
    class Never(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 8) + 0 * x.sum()

    never = nn.Sequential(make_model(), nn.Linear(8, 8), Never())
    assert run(never, target_acc=50)["steps_to_acc"] is None


def test_waiting_for_data_is_a_share_of_the_training():
    class Late(Stripes):
        def batch(self, seed, step):
            time.sleep(0.02)
            return super().batch(seed, step)

    row = run(data=Late())
    assert 0.5 < row["data_wait_frac"] <= 1
