"""Trainings over several real processes for tests, by gloo on this machine."""

import multiprocessing
import pickle
import socket
import traceback

import pytest
import torch
from test_train import Stripes, without_times
from torch import nn

from runners.machine.failures import ChildFailed
from runners.train.accuracy import train_and_evaluate
from runners.train.distributed import setup

CPU = torch.device("cpu")


def make_model(dropout=0.0, norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        # BatchNorm takes a bias away again, and AdamW would make steps of the rounding errors that are its gradient
        nn.Conv2d(3, 8, 1, bias=not norm),
        nn.Sequential(nn.BatchNorm2d(8), nn.GELU()) if norm else nn.GELU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.LayerNorm(512),
        nn.Linear(512, 8),
    )


class Wide(Stripes):
    """Batches of a given size."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def batch(self, seed, step):
        return self._draw([seed, step], self.batch_size)


def run(group, model, data, *, steps=20, progress=None, state_path=None):
    """Losses, row and weights of a run on this rank."""
    with group.joined(CPU):
        row, samples = train_and_evaluate(
            model,
            data,
            steps=steps,
            seed=0,
            device=CPU,
            progress=(lambda step, *_: progress(step)) if progress else None,
            group=group,
            state_path=state_path,
            checkpoint_every_s=0.0,
        )
    return samples["loss"], row, model.state_dict()


def enter(body, rank, world_size, port, results, timeout_s, arguments):
    """A process of a group."""
    torch.set_num_threads(1)
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with setup(world_size, environment, timeout_s) as group:
            result = body(group, *arguments)
    except Exception as error:
        traceback.print_exc()
        result = error if isinstance(error, ChildFailed) else RuntimeError(f"{type(error).__name__}: {error}")
    # multiprocessing would share the memory of tensors with this process, which is about to end
    results.send_bytes(pickle.dumps(result))


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "runners.train.accuracy",
            "hypothesis",
            "pytest",
            "torch._dynamo",
            "hypothesis.strategies",
            "runners.cells.models",
        ]
    )
    return context


@pytest.fixture
def spread(processes):
    """Run a function on several ranks; return what each returned or raised, None for one that was killed."""
    started = []

    def start(body, *arguments, world_size=2, timeout_s=60.0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = []
        for rank in range(world_size):
            pipe, theirs = processes.Pipe(duplex=False)
            process = processes.Process(target=enter, args=(body, rank, world_size, port, theirs, timeout_s, arguments))
            process.start()
            theirs.close()
            started.append(process)
            pipes.append(pipe)
        found = []
        for pipe in pipes:
            try:
                found.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                found.append(None)
        for process in started:
            process.join(30)
        return found

    yield start
    for process in started:
        assert process.exitcode is not None, "a rank did not leave"


def assert_one_run(found):
    """Every rank says the same, to the bit."""
    (losses, row, weights), *others = found
    for other_losses, other_row, other_weights in others:
        assert other_losses == losses
        assert without_times(other_row) == without_times(row)
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def toy_run(group, batch_size, norm):
    return run(group, make_model(norm=norm), Wide(batch_size))
