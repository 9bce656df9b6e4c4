"""A whole model is an ordinary module: its layers can be replaced, watched, quantised, copied and checkpointed."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from conftest import slow_but
from ordinary_cases import Adapter, assert_same, layers, loss, outcome
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from torch.func import functional_call
from torch.nn.functional import gelu

import attention_zoo
from attention_zoo.layouts import SMALL, STL

each_name = pytest.mark.parametrize("name", attention_zoo.names())
some_names = pytest.mark.parametrize("name", slow_but("bra", "dat", "sliding", "swin", of=attention_zoo.names()))
SIZE = 56, 40  # maps of 14x10, 7x5, 4x3 and 2x2 tokens
SHORT = replace(STL, depths=(2, 2), dims=(24, 48), head_dim=12, mlp_ratio=2, regions=2, window=3, stripes=(1, 2))
"""The other layout in little: batch norms, and blocks that take turns."""
LAYOUTS = [
    SMALL,
    replace(SMALL, position="convolution", layer_scale=0.5),
    replace(SHORT, stem="conv7"),
    replace(SHORT, stem="conv3_twice", merging="conv3_norm", position="convolution"),
    replace(SHORT, stem="multiscale", merging="norm_multiscale", rounding="floor"),
    replace(SHORT, merging="conv2_norm", layer_scale=0.5),
]
HOSTS = [*((name, SMALL) for name in attention_zoo.names()), *(("swin", other) for other in LAYOUTS[1:])]
"""Each mechanism in one layout, and one of them in every layout."""
each_host = pytest.mark.parametrize(
    ("name", "layout"),
    [pytest.param(*host, marks=pytest.mark.slow if index % 3 else ()) for index, host in enumerate(HOSTS)],
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))


def make_model(name, layout=SMALL, **config):
    torch.manual_seed(0)
    if isinstance(layout, str):
        return attention_zoo.create_model(layout, num_classes=3).eval()
    model = attention_zoo.create_model(layout, attn=name, num_classes=3, **config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # LePE and biases start at 0
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def images(count=2, size=SIZE, dtype=torch.float64):
    return torch.randn(count, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def modules_that_run(model):
    """All but lists, which nobody calls."""
    return {n: m for n, m in model.named_modules() if not isinstance(m, (nn.ModuleList, nn.ParameterList))}


@some_names
def test_an_adapter_on_every_layer_is_used_and_trained(name):
    model = make_model(name).requires_grad_(False)
    state = dict(model.named_parameters())
    adapters = {}
    for place, layer in layers(model).items():
        adapters[place] = Adapter(layer)
        adapters[place].extra.requires_grad_()
        model.set_submodule(place, adapters[place])
    extras = {place: adapter.extra.weight for place, adapter in adapters.items()}
    merged = {f"{place}.weight": adapter.weight + adapter.extra.weight for place, adapter in adapters.items()}
    slow = make_model(name, impl="reference")
    expected = outcome(lambda x: functional_call(slow, {**state, **merged}, (x,)), images(), extras)
    assert_same(outcome(model, images(), extras), expected, name)
    with torch.no_grad():
        assert_same({"output": model(images())}, {"output": expected["output"]}, f"{name} without gradients")


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@each_host
def test_what_a_hook_keeps_never_changes(name, layout, training):
    model = make_model(name, layout)
    kept = []

    def keep(place, what, tensor):
        kept.append((place, what, tensor, tensor.detach().clone()))

    for place, module in modules_that_run(model).items():
        module.register_forward_pre_hook(lambda _, args, place=place: keep(place, "takes", args[0]))
        module.register_forward_hook(lambda _, args, y, place=place: keep(place, "returns", y))
    with torch.set_grad_enabled(training):
        y = model.train(training)(images())
    if training:
        loss(y).backward()
    assert {place for place, *_ in kept} == modules_that_run(model).keys()
    changed = {(place, what) for place, what, tensor, then in kept if not torch.equal(tensor, then)}
    assert not changed


@each_host
# of a network of position biases, whose inputs are offsets, and of the stem, whose input is an image
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed:UserWarning")
def test_a_training_step_with_full_backward_hooks_is_the_same(name, layout):
    with_hooks, without = make_model(name, layout).train(), make_model(name, layout).train()
    ran = set()
    for place, module in modules_that_run(with_hooks).items():
        module.register_full_backward_hook(lambda *_, place=place: ran.add(place))
        module.register_full_backward_pre_hook(lambda *_, place=place: ran.add(place))
    for model in (with_hooks, without):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss(model(images())).backward()
        optimizer.step()
    assert ran == modules_that_run(with_hooks).keys()
    assert_same(with_hooks.state_dict(), without.state_dict(), name)


def replace_activation(block):
    block.mlp[1] = nn.ReLU()


def replace_mlp(block):
    block.mlp = nn.Linear(block.attn.dim, block.attn.dim, dtype=torch.float64)


def append_layer(block):
    block.mlp.append(nn.Tanh())


def shorten_mlp(block):
    block.mlp = block.mlp[:1]
    block.mlp[0] = nn.Linear(block.attn.dim, block.attn.dim, dtype=torch.float64)


def replace_attention(block):
    block.attn = nn.Linear(block.attn.dim, block.attn.dim, dtype=torch.float64)


def replace_norms(block):
    block.norm1, block.norm2 = nn.Identity(), nn.Softmax(-1)


def replace_drop_path(block):
    block.drop_path = nn.Tanh()


def nothing(block):
    pass


def written_out(block, x):
    """What a block of the host means, from whatever stands in its places: (B, H, W, C) -> same."""
    if block.pos_embed is not None:
        x = x + block.pos_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    x = x + block.drop_path(getattr(block, "gamma1", 1) * block.attn(block.norm1(x)))
    return x + block.drop_path(getattr(block, "gamma2", 1) * block.mlp(block.norm2(x)))


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=["plain", "convolution and scale"])
@pytest.mark.parametrize(
    "surgery",
    [
        nothing,
        replace_activation,
        replace_mlp,
        append_layer,
        shorten_mlp,
        replace_attention,
        replace_norms,
        replace_drop_path,
    ],
    ids=lambda surgery: surgery.__name__,
)
def test_a_changed_block_computes_what_its_parts_say(layout, surgery):
    block = make_model("bra", layout).stages[0][0]
    surgery(block)
    x = torch.randn(2, 5, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = dict(block.named_parameters())
    expected = outcome(lambda x: written_out(block, x), x, parameters)
    assert_same(outcome(block, x, parameters), expected, "block")
    with torch.no_grad():
        assert_same({"output": block(x)}, {"output": expected["output"]}, "block without gradients")


def test_the_activation_of_the_mlp_is_gelu():
    block = make_model("vanilla").stages[0][0]
    seen = []
    block.mlp[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block.mlp[0].register_forward_hook(lambda _, args, y: seen.append(y))
    with torch.no_grad():
        block(torch.randn(1, 5, 7, 24, dtype=torch.float64))
    torch.testing.assert_close(seen[1], gelu(seen[0]))


@some_names
@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization is deprecated:DeprecationWarning", "ignore:torch.quantize_per"
)
def test_a_quantised_model_calls_its_quantised_layers(name):
    # all regions: the choice of some is no continuous function of what they hold
    config = {"topk": 16, "clip_topk": True} if name == "bra" else {}
    model, plain = make_model(name, **config).float(), make_model(name, **config, impl="plain").float()
    quantised, plain_quantised = (quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8) for m in (model, plain))
    ran = set()
    for place, layer in quantised.named_modules():
        if isinstance(layer, QuantizedLinear):
            layer.register_forward_hook(lambda *_, place=place: ran.add(place))
    x = images(dtype=torch.float32)
    with torch.no_grad():
        y, exact = quantised(x), model(x)
        torch.testing.assert_close(y, plain_quantised(x), rtol=0.02, atol=0.02 * exact.abs().max().item())
    assert ran == {place for place, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    error = (y - exact).norm() / exact.norm()
    assert 0 < error < 0.1


@some_names
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_a_copied_model_has_weights_of_its_own(name, way, tmp_path):
    model, x = make_model(name), images()
    with torch.no_grad():
        before = model(x)
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(twin(x), before)
        for parameter in twin.parameters():
            parameter.mul_(0.9)
        assert torch.equal(model(x), before)
        for parameter in model.parameters():
            parameter.mul_(0.9)
        assert torch.equal(twin(x), model(x)) and not torch.equal(twin(x), before)


@each_name
@pytest.mark.parametrize("layout", [SMALL, SHORT], ids=["small", "short"])
def test_a_model_takes_a_batch_without_images(name, layout):
    model = make_model(name, layout)
    with torch.no_grad():
        assert model(images(0)).shape == (0, 3)
        assert model.forward_features(images(0)).shape[0] == 0
    loss(model(images(0))).backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
