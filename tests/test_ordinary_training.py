"""Training as users do it: their own checkpointing, hooks on saved tensors, several processes; and counts by hooks."""

import gc
import socket
from collections import Counter
from math import prod

import pytest
import torch
from conftest import slow_but
from fvcore.nn import FlopCountAnalysis
from ordinary_cases import HEADS, assert_same, loss, make, outcome, settings
from test_ordinary_models import images, make_model
from torch import distributed, multiprocessing, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo

each_name = pytest.mark.parametrize("name", attention_zoo.names())
each_setting = pytest.mark.parametrize("case", settings(), ids=str)


def block_of(name):
    block = make_model(name).stages[0][0].train()
    return block, torch.randn(2, 6, 8, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", slow_but("bra", of=attention_zoo.names()))
def test_the_users_checkpoint_around_a_block_frees_what_is_inside(name):
    block, x = block_of(name)
    parameters = dict(block.named_parameters())
    expected = outcome(block, x, parameters)
    kept = []
    for place, module in block.named_modules():
        if place and place != "drop_path":
            module.register_forward_hook(lambda _, args, y: kept.append(StorageWeakRef(y.untyped_storage())))
    y = checkpoint(block, x.requires_grad_(), use_reentrant=False)
    gc.collect()
    given = {x.untyped_storage()._cdata, y.untyped_storage()._cdata}
    held = [reference for reference in kept if not reference.expired() and reference.cdata not in given]
    assert kept and not held
    assert_same(outcome(lambda x: checkpoint(block, x, use_reentrant=False), x, parameters), expected, name)


def saved_numbers(run):
    """How many numbers of each tensor a graph saves, as hooks from outside see them."""
    seen = []
    with saved_tensors_hooks(lambda tensor: (seen.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        y = run()
    loss(y).backward()
    return seen


@each_name
def test_hooks_from_outside_see_every_saved_tensor(name):
    block, x = block_of(name)
    hidden = prod(x.shape[:3]) * block.mlp[0].out_features
    seen = saved_numbers(lambda: block(x.requires_grad_()))
    assert seen.count(hidden) >= 2, "before and after the activation"
    assert seen.count(x.numel()) >= 4, "what norms and projections read"


@each_name
def test_saved_tensors_may_be_moved_elsewhere(name):
    block, x = block_of(name)
    parameters = dict(block.named_parameters())
    expected = outcome(block, x, parameters)
    packed = []

    def pack(tensor):
        packed.append(tensor.clone())
        return len(packed) - 1

    def run(x):
        with saved_tensors_hooks(pack, packed.__getitem__):
            return block(x)

    assert_same(outcome(run, x, parameters), expected, name)


@pytest.mark.slow
@each_name
def test_the_users_checkpoint_frees_when_compiled(name):
    block, x = block_of(name)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: checkpoint(block, x, use_reentrant=False), backend="aot_eager_decomp_partition", fullgraph=True
    )
    seen = saved_numbers(lambda: compiled(x.requires_grad_()))
    assert prod(x.shape[:3]) * block.mlp[0].out_features not in seen
    torch.compiler.reset()
    parameters = dict(block.named_parameters())
    assert_same(outcome(compiled, x, parameters), outcome(block, x, parameters), name)


@each_name
def test_gradient_checkpointing_changes_no_gradient(name):
    model = make_model(name).train()
    parameters = dict(model.named_parameters())
    expected = outcome(model, images(), parameters)
    model.set_grad_checkpointing()
    assert_same(outcome(model, images(), parameters), expected, name)


def linear_calls(model, x):
    """Multiply-adds of each linear layer as thop and ptflops count them: by a hook, numbers taken times outputs."""
    counted = Counter({name: 0 for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, args, _, name=name: counted.update({name: args[0].numel() * layer.out_features})
        )
        for name in counted
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return counted


def two_maps(attention, height, width):
    """Tokens of the other map where keys and values are made of another one than the queries, else 0."""
    if hasattr(attention, "samples"):
        return prod(attention.samples(height, width))
    pool = getattr(attention, "pool", None)
    return 0 if pool is None else pool.cut(height, width).count


@each_setting
def test_counters_by_hooks_see_every_projection(case):
    attention, x = make(case, (6, 8), images=1)
    counted = linear_calls(attention, x)
    assert all(counted.values())
    dim, tokens = attention.dim, 6 * 8
    # the whole layer is called for each map
    assert counted["qkv"] == (tokens + two_maps(attention, 6, 8)) * dim * attention.qkv.out_features
    # a published code without a projection at its end has none here either
    assert counted["proj"] == (tokens * dim**2 if isinstance(attention.proj, nn.Linear) else 0)


@each_name
def test_every_linear_layer_of_a_model_is_counted_by_hooks(name):
    assert all(linear_calls(make_model(name), images(1)).values())


@pytest.mark.parametrize("name", slow_but("bra", "sep", of=attention_zoo.names()))
def test_every_linear_layer_of_a_model_is_counted_by_fvcore(name):
    model, x = make_model(name), images(1)
    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = analysis.by_module()
    for place, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not counted[place]:
            # parts of a projection of two maps are counted where they are asked for
            mixer = place.removesuffix(".qkv")
            assert mixer != place, f"{place} is not counted"
            assert counted[mixer] > counted[f"{mixer}.proj"]


def attention_macs(inputs, outputs):
    """Multiply-adds of fused attention, which fvcore does not know."""
    query, key, value = (part.type().sizes() for part in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@each_setting
def test_fvcore_and_torch_count_the_macs_of_the_closed_form(case):
    plain = attention_zoo.create(case.name, dim=24, num_heads=HEADS, **{**case.config, "impl": "plain"}).eval()
    x, expected = torch.randn(1, 6, 8, 24), plain.macs(6, 8).total
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            plain(x)
        analysis = FlopCountAnalysis(plain, x).unsupported_ops_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
        by_operator = analysis.by_operator()
    # fvcore counts norms and samplings too, which are no products
    products = ("linear", "conv", "matmul", "bmm", "addmm", "einsum", "scaled_dot_product_attention")
    assert sum(by_operator[operator] for operator in products) == expected
    assert counter.get_total_flops() == 2 * expected


ROUTERS = {"hard": {"param_routing": True}, "soft": {"param_routing": True, "soft_routing": True}}


def train_two_steps(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def train_in_parallel(rank, port, folder):
    """One of two processes, each with its half of a batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        for kind, config in ROUTERS.items():
            model = make_model("bra", **config).train()
            train_two_steps(DistributedDataParallel(model), images(4)[rank::2])
            torch.save(model.state_dict(), folder / f"{kind}{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_models_with_a_router_train_in_two_processes(tmp_path):
    """Hard routes give the router no gradient, which data parallel training must not trip over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(train_in_parallel, (port, tmp_path), nprocs=2)
    for kind, config in ROUTERS.items():
        model = make_model("bra", **config).train()
        train_two_steps(model, images(4))
        for rank in range(2):
            assert_same(torch.load(tmp_path / f"{kind}{rank}.pt"), model.state_dict(), f"{kind} routes, process {rank}")


@pytest.mark.parametrize("size", [(2, 3), (1, 4), (3, 3), (4, 4), (2, 9), (5, 5), (6, 3)], ids=str)
def test_a_whole_shift_is_taken_on_a_map_below_it(size):
    for shift in (1, 2, 3):
        config = {"window": 4, "shift": shift, "shift_whole": True}
        swin, slow = (
            attention_zoo.create("swin", dim=24, num_heads=2, impl=impl, **config).double()
            for impl in ("auto", "reference")
        )
        nn.init.normal_(swin.bias_table, generator=torch.Generator().manual_seed(0))
        slow.load_state_dict(swin.state_dict())
        x = torch.randn(1, *size, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        parameters = [dict(module.named_parameters()) for module in (swin, slow)]
        assert_same(outcome(swin, x, parameters[0]), outcome(slow, x, parameters[1]), f"shift {shift}")
