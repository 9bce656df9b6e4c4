"""Evaluations between the steps of a training: they change no bit of it, go on with it, and tell the best."""

import copy
import signal

import pytest
import torch
from resume_cells import CPU, STEPS, Cut, cut_at, fresh, make_model, run, saved_step, whole
from test_train import Stripes

from runners.train import accuracy
from runners.train.accuracy import train_and_evaluate
from runners.train.recipe import Recipe
from runners.train.resume import Evaluation

__all__ = ["whole"]  # a fixture

# --- evaluations between steps


class Epochs(Stripes):
    steps_per_epoch = 2


EVALUATED = Recipe(eval_every=2, lr=3e-3)


def train_evaluated(path=None, recipe=EVALUATED, data=None, progress=None, **changes):
    """Row, samples, model and best model of a run."""
    torch.set_num_threads(1)
    model, best = make_model(), make_model()
    row, samples = train_and_evaluate(
        model,
        data or Epochs(),
        **{"steps": STEPS, "seed": 0, "device": CPU, **changes},
        recipe=recipe,
        best=best,
        state_path=path,
        checkpoint_every_s=0,
        progress=progress,
    )
    return row, samples, model, best


def test_evaluations_change_no_bit_of_a_training_and_tell_the_best(tmp_path):
    weights = {}

    def keep(step, steps, loss):
        weights[step] = copy.deepcopy(tracked.state_dict())

    tracked = make_model()
    best = make_model()
    row, samples = train_and_evaluate(
        tracked, Epochs(), steps=STEPS, seed=0, device=CPU, recipe=EVALUATED, best=best, progress=keep
    )
    plain_row, plain_samples, plain, _ = train_evaluated(recipe=Recipe(lr=3e-3))
    assert all(torch.equal(a, b) for a, b in zip(tracked.parameters(), plain.parameters(), strict=True))
    same = ("acc1", "val_loss", "train_loss")
    assert [row[name] for name in same] == [plain_row[name] for name in same]
    assert (plain_row["acc1_best"], plain_row["best_step"], plain_samples.keys()) == (None, None, {"loss"})
    assert samples["eval_step"] == [4, 8, 12]
    assert samples["eval_acc1"][-1] == row["acc1"] and samples["eval_val_loss"][-1] == row["val_loss"]
    assert row["acc1_best"] == max(samples["eval_acc1"])
    assert row["best_step"] == samples["eval_step"][samples["eval_acc1"].index(row["acc1_best"])]
    expected = weights[row["best_step"]]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in best.state_dict().items())


def test_a_look_at_the_last_step_draws_nothing_from_the_evaluation_after_it(whole):
    row, _ = run(target_acc=100)
    assert row["steps_to_acc"] is None  # so that there was one
    assert row == whole[0]


@pytest.mark.parametrize("step", [4, 5, 9, 12])
def test_a_resumed_run_has_the_same_evaluations_and_best_weights(step, tmp_path):
    row, samples, _, best = train_evaluated()
    with pytest.raises(Cut):
        train_evaluated(tmp_path / "state", progress=cut_at(step))
    found_row, found, _, found_best = train_evaluated(tmp_path / "state")
    assert found == samples and found_row["resumed"] == 1
    assert (found_row["acc1_best"], found_row["best_step"]) == (row["acc1_best"], row["best_step"])
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), found_best.parameters(), strict=True))


def test_the_first_of_equal_evaluations_is_the_best():
    training = fresh()
    for step, acc1 in enumerate((10.0, 30.0, 20.0, 30.0), 1):
        with torch.no_grad():
            training.model[0].weight.fill_(step)
        training.note(Evaluation(step, acc1, 1.0))
    assert training.best["0.weight"].unique().tolist() == [2.0] and len(training.evaluations) == 4


def test_a_signal_in_an_evaluation_saves_the_step_at_once(tmp_path):
    path, expected = tmp_path / "state", train_evaluated()

    class Noticed(Epochs):
        def eval_batches(self):
            signal.raise_signal(signal.SIGUSR2)
            raise AssertionError("the evaluation goes on")

    def leave(number, frame):
        assert saved_step(path) == 4
        raise Cut

    earlier = signal.signal(signal.SIGUSR2, leave)
    try:
        with pytest.raises(Cut):
            train_evaluated(path, data=Noticed())
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert train_evaluated(path)[1] == expected[1]


def test_the_time_of_evaluations_is_no_time_of_training(monkeypatch):
    now = 0.0

    class Slow(Epochs):
        def batch(self, seed, step):
            nonlocal now
            now += 1
            return super().batch(seed, step)

        def eval_batches(self):
            nonlocal now
            now += 1000
            return super().eval_batches()

    monkeypatch.setattr(accuracy.time, "perf_counter", lambda: now)
    monkeypatch.setattr(
        accuracy, "prefetch", lambda data, seed, start, stop: (data.batch(seed, step) for step in range(start, stop))
    )
    row, *_ = train_evaluated(data=Slow())
    assert row["train_seconds"] == STEPS and now == STEPS + 3000


def test_epochs_between_evaluations_need_data_with_epochs():
    with pytest.raises(ValueError, match="eval_every=1 counts epochs"):
        train_evaluated(recipe=Recipe(eval_every=1), data=Stripes())
