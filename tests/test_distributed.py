"""One cell's training over several real processes, by gloo on this machine."""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback

import numpy as np
import pytest
import torch
from conftest import slow_but
from PIL import Image
from test_train import Stripes, without_times
from torch import nn

from runners.data.loading import make_data
from runners.machine.failures import ChildFailed
from runners.measures import MEASURES
from runners.train.accuracy import train_and_evaluate
from runners.train.batch_norm import SyncedBatchNorm, synchronise_batch_norm
from runners.train.distributed import ALONE, Group, _reachable, setup
from runners.train.recipes import make_recipe

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


def gathered(group):
    with group.joined(CPU):
        return group.gather({group.rank: "broken"})


def test_each_rank_gets_what_all_have(spread):
    assert spread(gathered) == [[{0: "broken"}, {1: "broken"}]] * 2
    assert ALONE.gather(3) == [3]


def cell_run(group):
    from ablations.study import Cell
    from runners.cells.models import build_model
    from runners.data.loading import make_data

    cell = Cell(attn="bra", height_px=32, width_px=32, batch_size=64)
    return run(group, build_model(cell), make_data(cell.data, 32, 32, 64))


@pytest.mark.slow
def test_two_ranks_follow_the_loss_curve_of_one_process(spread, one_thread):
    found = spread(cell_run)
    assert_one_run(found)
    losses, row, weights = found[0]
    one_losses, one_row, one_weights = cell_run(ALONE)
    assert len(losses) == 20
    assert losses == pytest.approx(one_losses, rel=1e-5)
    assert (row["world_size"], one_row["world_size"], row["n_eval"]) == (2, 1, one_row["n_eval"])
    assert row["acc1"] == pytest.approx(one_row["acc1"], abs=0.5)
    assert row["val_loss"] == pytest.approx(one_row["val_loss"], rel=1e-3)
    assert weights.keys() == one_weights.keys()


def toy_run(group, batch_size, norm):
    return run(group, make_model(norm=norm), Wide(batch_size))


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 64), (3, 16)], ids=["even", "uneven"])
@pytest.mark.parametrize("norm", slow_but(True, of=[True, False]))
def test_the_gradient_is_that_of_the_whole_batch(norm, world_size, batch_size, spread, one_thread):
    found = spread(toy_run, batch_size, norm, world_size=world_size)
    assert_one_run(found)
    one_losses, _, one_weights = toy_run(ALONE, batch_size, norm)
    assert found[0][0] == pytest.approx(one_losses, rel=1e-5)
    for name, tensor in found[0][2].items():
        torch.testing.assert_close(tensor, one_weights[name], rtol=1e-3, atol=1e-4)


def one_step(group, batch_size):
    """Gradients of the first step, in float64."""
    model = make_model().double()
    images, labels = Wide(batch_size).batch(0, 0)
    with group.joined(CPU):
        network = group.wrap(model, CPU)
        images, labels, share = group.shard(images.double(), labels)
        (nn.functional.cross_entropy(network(images), labels) * share).backward()
    statistics = {name: value for name, value in model.named_buffers()}
    return {name: p.grad for name, p in model.named_parameters()}, statistics


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_and_statistics_to_the_last_digits(world_size, spread):
    expected = one_step(ALONE, 16)
    for found in spread(one_step, 16, world_size=world_size):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_batch_norm_of_one_rank_is_torchs(settings, monkeypatch):
    from runners.train import batch_norm

    monkeypatch.setattr(batch_norm.distributed, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, **settings)).double()
    synced = nn.Sequential(nn.BatchNorm2d(3, **settings)).double()
    synced.load_state_dict(plain.state_dict())
    before = {name: id(tensor) for name, tensor in itertools.chain(synced.named_parameters(), synced.named_buffers())}
    synchronise_batch_norm(synced)
    after = {name: id(tensor) for name, tensor in itertools.chain(synced.named_parameters(), synced.named_buffers())}
    assert isinstance(synced[0], SyncedBatchNorm) and before == after
    for step in range(3):
        inputs = [(torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(step)).double() + 7) for _ in "ab"]
        outputs = [module(x.requires_grad_()) for module, x in zip((plain, synced), inputs, strict=True)]
        for y in outputs:
            y.square().mul(torch.arange(6.0)).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(dict(synced.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(synced.eval()(inputs[0]), plain.eval()(inputs[0]))
    assert synced.train()(torch.randn(2, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


def dropped(group):
    """What dropout leaves of ones, in every step."""
    seen = []
    model = make_model(dropout=0.5)
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output.detach() == 0))
    run(group, model, Wide(4), steps=3)
    return torch.stack([mask[:2] for mask in seen[:3]])


def test_dropout_draws_per_step_and_rank_and_rank_0_as_one_process(spread, one_thread):
    first, second = spread(dropped)
    alone = dropped(ALONE)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, spread(dropped)[0])
    assert alone.shape == first.shape


@pytest.mark.parametrize("count", [2, 5, 64])
def test_ranks_share_out_every_image_once(count):
    images, labels = torch.arange(count * 3.0).view(count, 3), torch.arange(count)
    for world_size in range(1, count + 1):
        parts = [Group(rank, world_size).shard(images, labels) for rank in range(world_size)]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        for _, mine, share in parts:
            assert share == pytest.approx(len(mine) * world_size / count)


def test_fewer_images_than_ranks_are_refused(spread):
    message = "a global batch of 2 images cannot be shared out to 3 processes; give --batch-size 3 or more"
    found = spread(toy_run, 2, False, world_size=3)
    assert all(message in str(error) for error in found)


def test_one_process_asks_for_no_environment():
    with setup(1, {}) as group:
        assert group is ALONE
        with group.joined(CPU):
            assert not torch.distributed.is_initialized()
        group.lead("nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "this job has 2 processes and its environment does not place this one"),
        ({"MASTER_PORT": "x"}, "this job has 2 processes and its environment does not place this one"),
        ({"WORLD_SIZE": "4"}, "this job has 2 processes, its environment says rank 1 of 4"),
        ({"RANK": "2"}, "this job has 2 processes, its environment says rank 2 of 2"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(changes, message):
    whole = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    environment = {name: text for name, text in {**whole, **changes}.items() if text is not None}
    with pytest.raises(ValueError, match=message), setup(2, environment):
        pass


def test_a_node_that_only_slurm_knows_is_reached_by_the_address_of_srun():
    environment = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.7"}
    assert _reachable("localhost", environment) == "localhost"
    assert _reachable("no-such-node.invalid", environment) == "127.0.0.7"
    assert _reachable("no-such-node.invalid", {}) == "no-such-node.invalid"


def led(group):
    """Rank 0 gives two orders between which it does other things; the others note them."""
    if group.rank:
        return list(group.orders())
    time.sleep(0.2)
    group.lead("first")
    group.lead("second")
    return "led"


def test_ranks_follow_orders_until_the_end(spread):
    assert spread(led, world_size=3) == ["led", ["first", "second"], ["first", "second"]]


def fail(group, rank, how):
    """One rank fails at its third step."""

    def progress(step):
        if group.rank == rank and step == 3:
            how()

    started = time.monotonic()
    try:
        return run(group, make_model(), Wide(16), steps=1000, progress=progress)
    finally:
        assert time.monotonic() - started < 50


def out_of_memory():
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_failed_on_another_rank_is_what_rank_0_reports(spread):
    first, second = spread(fail, 1, out_of_memory)
    assert isinstance(first, ChildFailed) and first.status == "oom"
    assert "rank 1 of 2: RuntimeError: [enforce fail" in str(first)
    assert "can't allocate memory" in str(second)


def test_what_failed_on_rank_0_is_its_own_and_the_others_leave(spread):
    first, second = spread(fail, 0, out_of_memory)
    assert not isinstance(first, ChildFailed) and "can't allocate memory" in str(first)
    assert isinstance(second, ChildFailed) and "rank 0 of 2" in str(second)


def test_a_rank_that_is_killed_is_reported_as_killed(spread):
    first, second = spread(fail, 1, killed)
    assert second is None
    assert isinstance(first, ChildFailed) and first.status == "killed"
    assert "one of the 2 ranks ended without a word" in str(first)


def test_when_rank_0_is_killed_the_others_leave(spread):
    first, second = spread(fail, 0, killed)
    assert first is None and isinstance(second, RuntimeError)


def wait_for_orders(group, arrived):
    for _ in group.orders() if group.rank else ():
        arrived.touch()
    group.lead("first")
    while not arrived.exists():
        time.sleep(0.01)
    killed()


def test_when_rank_0_is_killed_nobody_waits_for_orders(spread, tmp_path):
    first, second = spread(wait_for_orders, tmp_path / "arrived")
    assert first is None and isinstance(second, RuntimeError)


def stuck(group):
    """Rank 1 never comes."""
    if group.rank == 0:
        run(group, make_model(), Wide(16))


def test_a_rank_that_does_not_answer_is_an_error_after_the_timeout(spread):
    first, _ = spread(stuck, timeout_s=1.0)
    assert isinstance(first, RuntimeError)


def recovering(group):
    """A training that fails on one rank, then one that does not."""
    with contextlib.suppress(Exception):
        fail(group, 1, out_of_memory)
    return toy_run(group, 16, True)


def test_after_a_failure_the_same_ranks_can_train_again(spread, one_thread):
    found = spread(recovering)
    assert_one_run(found)
    assert found[0][0] == pytest.approx(toy_run(ALONE, 16, True)[0], rel=1e-5)


def diverging(group):
    class Poison(nn.Module):
        def forward(self, x):
            return x * math.nan

    return run(group, nn.Sequential(make_model(), Poison()), Wide(16))


def test_all_ranks_diverge_together(spread):
    assert {str(error) for error in spread(diverging)} == {"Diverged: training loss is nan at step 1 of 20, lr 0.0005"}


def resumable(group, path, die_at):
    return run(
        group,
        make_model(dropout=0.1),
        Wide(16),
        progress=lambda step: killed() if step == die_at else None,
        state_path=path,
    )


def test_a_job_that_is_killed_goes_on_bit_for_bit(spread, tmp_path):
    whole = spread(resumable, tmp_path / "other", None)
    assert spread(resumable, tmp_path / "state", 8) == [None, None]
    assert (tmp_path / "state").exists()
    found = spread(resumable, tmp_path / "state", None)
    assert_one_run(found)
    (losses, row, weights), (whole_losses, whole_row, whole_weights) = found[0], whole[0]
    assert len(losses) == 20 and losses == whole_losses
    assert (row["resumed"], whole_row["resumed"]) == (1, 0)
    same = ("acc1", "acc5", "val_loss", "train_loss")
    assert [row[name] for name in same] == [whole_row[name] for name in same]
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)


def with_images(group, folder, path, die_at):
    """Train on images with all that a recipe changes; rank 0 alone notes what each evaluation found."""
    recipe = make_recipe("small300", (("accumulate", 2), ("ema", 0.9), ("lr", 1e-2), ("warmup_epochs", 0)))
    data = make_data(f"imagefolder:{folder}", 32, 32, 8, recipe, smoothing=recipe.smoothing, workers=1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 4)
    )
    with group.joined(CPU):
        row, samples = train_and_evaluate(
            model,
            data,
            steps=14,
            seed=0,
            device=CPU,
            recipe=recipe,
            progress=lambda step, *_: killed() if step == die_at else None,
            group=group,
            state_path=path,
            checkpoint_every_s=0.0,
        )
    return samples["loss"], row | {"evaluations": samples["eval_acc1"]}, model.state_dict()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_go_on_in_an_epoch_from_the_state_before_a_damaged_one(spread, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 13)):  # 4 steps of 8 in an epoch
        for number in range(count):
            place = tmp_path / "images" / split / f"class{number % 4}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place)
    whole = spread(with_images, tmp_path / "images", tmp_path / "other", None)
    path = tmp_path / "state"
    assert spread(with_images, tmp_path / "images", path, 8) == [None, None]
    path.write_bytes(path.read_bytes()[:-1])
    found = spread(with_images, tmp_path / "images", path, None)
    assert_one_run(found)
    (losses, row, weights), (whole_losses, whole_row, whole_weights) = found[0], whole[0]
    assert len(losses) == 14 and losses == whole_losses and len(row["evaluations"]) == 4
    assert (row["resumed"], row["world_size"]) == (1, 2)
    assert without_times(row) == {**without_times(whole_row), "resumed": 1}
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)


def preempted(group, path):
    """SLURM's notice goes to every rank; submitit's handler of rank 0 requeues the job and exits."""

    def requeue(number, frame):
        if group.rank == 0:
            raise SystemExit

    def progress(step):
        if step == 5:
            signal.raise_signal(signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, requeue)
    try:
        with group.joined(CPU):
            train_and_evaluate(
                make_model(),
                Wide(16),
                steps=20,
                seed=0,
                device=CPU,
                progress=lambda step, *_: progress(step),
                group=group,
                state_path=path,
            )
    except SystemExit as exit:
        raise RuntimeError("preempted") from exit


def test_a_preemption_saves_the_step_on_rank_0(spread, tmp_path):
    path = tmp_path / "state"
    first, second = spread(preempted, path)
    assert str(first) == "RuntimeError: preempted" and isinstance(second, RuntimeError)
    assert json.loads(path.read_bytes().splitlines()[0])["step"] == 5


def test_the_seed_of_rank_0_is_that_of_one_process():
    for seed, step in ((0, 0), (3, 77), (2**40, 5)):
        states = [np.random.SeedSequence(entropy).generate_state(1)[0] for entropy in ((seed, step), (seed, step, 0))]
        assert states[0] == states[1]
    assert MEASURES["accuracy"].protocol == 1
