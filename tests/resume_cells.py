"""Short trainings for tests, which are cut off, and what is the same when they go on."""

import json

import pytest
import torch
from test_train import Stripes, without_times
from torch import nn

from runners.train.accuracy import train_and_evaluate
from runners.train.optim import make_optimizer
from runners.train.resume import Training

CPU = torch.device("cpu")
STEPS = 12
NEVER = 1e9


class Noise(nn.Module):
    """Draws in training and in evaluation, and keeps a statistic."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += x.detach().mean()
        return x + 0.3 * torch.randn_like(x)


def make_model(width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), Noise(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * width, 8)
    )


def run(state_path=None, model=None, data=None, every_s=0.0, **changes):
    """Row and weights of a run, the times left out of the row; its states are removed, as when a row is recorded."""
    torch.set_num_threads(1)
    model = model or make_model()
    arguments = {"steps": STEPS, "seed": 0, "device": CPU, **changes}
    row, _ = train_and_evaluate(
        model, data or Stripes(), **arguments, state_path=state_path, checkpoint_every_s=every_s
    )
    for path in state_files(state_path):
        path.unlink()
    return without_times(row), model.state_dict()


def state_files(path):
    return [file for file in path.parent.glob(f"*{path.name}*") if file.is_file()] if path else []


@pytest.fixture(scope="module")
def whole():
    return run()


def assert_same(found, whole, resumed):
    row, weights = found
    assert row == {**whole[0], "resumed": resumed}
    assert weights.keys() == whole[1].keys()
    assert all(torch.equal(weights[name], whole[1][name]) for name in weights)


def saved_step(path):
    return json.loads(path.read_bytes().splitlines()[0])["step"]


class Cut(BaseException):
    """Not an error of training: the process would be gone."""


def cut_at(*steps):
    def progress(step, total, loss):
        if step in steps:
            raise Cut

    return progress


def cut(path, step, **arguments):
    """Run up to a step, whose own state is not saved any more."""
    with pytest.raises(Cut):
        run(path, progress=cut_at(step), **arguments)


def fresh():
    model = make_model()
    return Training(model, make_optimizer(model))
