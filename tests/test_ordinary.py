"""Every mechanism is an ordinary module: what stands at a layer's place, or hangs on it, is used.

A changed mechanism is compared with the slow oracle under the weights that the change amounts to.
"""

import copy
import pickle

import pytest
import torch
from ordinary_cases import (
    CHANGES,
    PADDED,
    WHOLE,
    Half,
    assert_follows,
    assert_same,
    cases,
    change,
    layers,
    make,
    oracle_of,
    outcome,
    pruned,
    settings,
)
from torch import nn
from torch.nn.utils import parametrize

each_case = pytest.mark.parametrize("case", cases(), ids=str)


@each_case
@pytest.mark.parametrize("way", CHANGES, ids=lambda way: way.__name__)
def test_a_changed_layer_computes_what_the_change_says(case, way):
    oracle = oracle_of(case)
    for name in layers(oracle):
        attention, x = make(case)
        weights = change(attention, name, way)
        assert_follows(attention, oracle, weights, x, f"{way.__name__} at {name}")


@each_case
def test_all_layers_changed_at_once_compute_what_the_changes_say(case):
    attention, x = make(case, WHOLE)
    oracle = oracle_of(case)
    parts = [change(attention, name, way) for name, way in zip(layers(oracle), CHANGES * 2, strict=False)]
    changed = [name for name, _ in zip(layers(oracle), CHANGES * 2, strict=False)]

    def weights():
        state = parts[0]()
        for name, part in zip(changed, parts, strict=True):
            state |= {key: value for key, value in part().items() if key.rpartition(".")[0] == name}
        return state

    assert_follows(attention, oracle, weights, x, "all layers")


@each_case
def test_parameters_outside_layers_can_be_parametrized(case):
    for name, _ in make(case)[0].named_parameters(recurse=False):
        attention, x = make(case)
        state = dict(attention.named_parameters())
        parametrize.register_parametrization(attention, name, Half())
        original = attention.parametrizations[name].original
        assert_follows(attention, oracle_of(case), lambda o=original, n=name, s=state: {**s, n: o / 2}, x, name)


@each_case
@pytest.mark.parametrize("size", [WHOLE, PADDED], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_hooks_of_every_module_see_what_goes_in_and_out(case, size, grad):
    attention, x = make(case, size)
    expected = outcome(attention, x, dict(attention.named_parameters()))
    took, gave = {}, {}
    for name, module in attention.named_modules():
        module.register_forward_pre_hook(
            lambda _, args, n=name: took.setdefault(n, []).append((args[0], args[0].clone()))
        )
        module.register_forward_hook(lambda _, args, y, n=name: gave.setdefault(n, []).append((y, y.clone())))
    if grad:
        assert_same(outcome(attention, x, dict(attention.named_parameters())), expected, "with hooks")
    else:
        with torch.no_grad():
            attention(x)
            assert_same({"output": attention(x)}, {"output": expected["output"]}, "with hooks")
    assert took.keys() == gave.keys() == {name for name, _ in attention.named_modules()}
    for name in list(gave):
        for (argument, argument_then), (y, y_then) in zip(took[name], gave[name], strict=True):
            assert torch.equal(argument, argument_then), f"what {name or 'the mechanism'} took changed later"
            assert torch.equal(y, y_then), f"what {name or 'the mechanism'} returned changed later"
            with torch.no_grad():
                again = type(attention.get_submodule(name)).forward(attention.get_submodule(name), argument_then)
            torch.testing.assert_close(again, y_then.detach(), rtol=1e-9, atol=1e-10)


# of a network of position biases, whose inputs are offsets
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed:UserWarning")
@each_case
def test_backward_hooks_of_every_module_run_and_change_nothing(case):
    attention, x = make(case)
    parameters = dict(attention.named_parameters())
    expected = outcome(attention, x, parameters)
    gradients = {}
    for name, module in attention.named_modules():
        module.register_full_backward_hook(lambda _, __, of_output, n=name: gradients.update({n: of_output[0].clone()}))
    assert_same(outcome(attention, x, parameters), expected, "with backward hooks")
    assert gradients.keys() == {name for name, _ in attention.named_modules()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@each_case
def test_a_pruned_mechanism_trains(case):
    for name in layers(oracle_of(case)):
        attention, x = make(case)
        weights = change(attention, name, pruned)
        layer = attention.get_submodule(name)
        before = layer.weight_orig.detach().clone()
        optimizer = torch.optim.SGD(attention.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            attention(x).square().sum().backward()
            optimizer.step()
        moved = layer.weight_orig.detach() != before
        assert not (moved & (layer.weight_mask == 0)).any()
        assert moved.any() or layer.weight.dim() == 1  # a norm may feed an activation that is 0 everywhere
        assert_follows(attention, oracle_of(case), weights, x, f"pruned {name} after two steps")


@each_case
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_a_copy_has_weights_of_its_own(case, way, tmp_path):
    attention, x = make(case)
    with torch.no_grad():
        before = attention(x)  # whatever it keeps between calls is copied too
    if way == "deepcopy":
        twin = copy.deepcopy(attention)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(attention))
    else:
        torch.save(attention, tmp_path / "attention.pt")
        twin = torch.load(tmp_path / "attention.pt", weights_only=False)
    assert torch.equal(twin(x), attention(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.9)
        assert torch.equal(attention(x), before)
        oracle = oracle_of(case)
        oracle.load_state_dict(twin.state_dict())
        assert_same({"output": twin(x)}, {"output": oracle(x)}, "the copy with other weights")


@each_case
@pytest.mark.parametrize("size", [WHOLE, PADDED], ids=str)
def test_a_batch_without_images_is_one(case, size):
    attention, x = make(case, size, images=0)
    with torch.no_grad():
        assert attention(x).shape == (0, *size, x.shape[-1])
    y = attention(x.requires_grad_())
    assert y.shape == x.shape and y.dtype == x.dtype
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in attention.parameters())
    assert x.grad.shape == x.shape


def test_an_activation_inside_a_mechanism_can_be_replaced():
    """The networks of position biases have activations too."""
    replaced = 0
    for case in settings():
        attention, x = make(case)
        for name, module in attention.named_modules():
            if isinstance(module, nn.ReLU):
                before = attention(x).detach()
                attention.set_submodule(name, nn.Tanh())
                after = attention(x).detach()
                assert not torch.allclose(before, after), f"{name} of {case} is stepped over"
                with torch.no_grad():
                    torch.testing.assert_close(attention(x), after, rtol=0, atol=1e-12)
                replaced += 1
    assert replaced
