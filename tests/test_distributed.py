"""One cell's training over several real processes: what ranks share, and that they follow one process."""

import itertools
import time

import numpy as np
import pytest
import torch
from conftest import slow_but
from torch import nn
from training_ranks import CPU, Wide, assert_one_run, make_model, processes, run, spread, toy_run

from runners.measures import MEASURES
from runners.train.batch_norm import SyncedBatchNorm, synchronise_batch_norm
from runners.train.distributed import ALONE, Group, _reachable, setup

__all__ = ["processes", "spread"]  # fixtures


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


def test_the_seed_of_rank_0_is_that_of_one_process():
    for seed, step in ((0, 0), (3, 77), (2**40, 5)):
        states = [np.random.SeedSequence(entropy).generate_state(1)[0] for entropy in ((seed, step), (seed, step, 0))]
        assert states[0] == states[1]
    assert MEASURES["accuracy"].protocol == 1
