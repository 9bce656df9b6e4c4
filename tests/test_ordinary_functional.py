"""Mechanisms under torch.func and in derivatives of higher order: the right value, or one clear line of refusal."""

import contextlib

import pytest
import torch
from ordinary_cases import CHOOSES_BY_CONTENT, assert_same, cases, loss, make, oracle_of, outcome
from torch.autograd import gradcheck
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import attention_zoo

# of fused attention, which torch runs image by image
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
each_case = pytest.mark.parametrize("case", cases(), ids=str)


@contextlib.contextmanager
def or_refused(allowed):
    """Skip where a transform is refused; that takes one line that says more than where it happened."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not allowed:
            raise
        # torch asks for an issue in a second line
        first, *others = (line for line in str(error).splitlines() if not line.startswith("Please file an issue"))
        assert first and not others, error
        pytest.skip(f"refused: {first}")


def plain_attention():
    """Let torch attend by operators that it can differentiate twice, as it asks a caller to."""
    return sdpa_kernel(SDPBackend.MATH)


def other_weights(attention, factor=0.9):
    """Plain tensors, as an average of weights or a step of meta-learning makes them."""
    return {name: parameter.detach() * factor for name, parameter in attention.named_parameters()}


@each_case
def test_plain_tensors_serve_as_weights(case):
    attention, x = make(case)
    before = attention(x).detach()
    weights = {name: tensor.requires_grad_() for name, tensor in other_weights(attention).items()}
    expected = outcome(lambda x: functional_call(oracle_of(case), weights, (x,)), x, weights)
    assert_same(outcome(lambda x: functional_call(attention, weights, (x,)), x, weights), expected, "functional_call")
    with torch.no_grad():
        y = functional_call(attention, weights, (x,))
        assert_same({"output": y}, {"output": expected["output"]}, "without gradients")
        assert_same({"output": attention(x)}, {"output": before}, "its own weights")


@each_case
def test_grad_of_torch_func_is_that_of_autograd(case):
    attention, x = make(case)
    weights = other_weights(attention)
    gradients = grad(lambda weights: loss(functional_call(attention, weights, (x,))))(weights)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    expected = outcome(lambda x: functional_call(oracle_of(case), leaves, (x,)), x, leaves)
    assert_same(gradients, {name: expected[name] for name in leaves}, "torch.func.grad")


@each_case
def test_vmap_gives_the_gradients_of_each_image(case):
    attention, x = make(case, images=3)
    weights = {name: parameter.detach() for name, parameter in attention.named_parameters()}

    def of_one(weights, image):
        return loss(functional_call(attention, weights, (image[None],)))

    with or_refused(case.name in CHOOSES_BY_CONTENT):
        together = vmap(grad(of_one), in_dims=(None, 0))(weights, x)
    for index, image in enumerate(x):
        alone = outcome(attention, image[None], dict(attention.named_parameters()))
        assert_same({n: g[index] for n, g in together.items()}, {n: alone[n] for n in weights}, f"image {index}")


@each_case
def test_vmap_runs_an_ensemble(case):
    members = [make(case)[0] for _ in range(2)]
    x = make(case)[1]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.mul_(0.9)
    weights, buffers = stack_module_state(members)
    with or_refused(case.name in CHOOSES_BY_CONTENT), torch.no_grad():
        together = vmap(lambda w, b: functional_call(members[0], (w, b), (x,)))(weights, buffers)
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]), rtol=1e-8, atol=1e-9)


@each_case
def test_forward_mode_agrees_with_backward_mode(case):
    attention, x = make(case)
    generator = torch.Generator().manual_seed(3)
    direction, probe = (torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(2))
    with or_refused(case.name in CHOOSES_BY_CONTENT), plain_attention():
        y, tangent = jvp(attention, (x,), (direction,))
    torch.testing.assert_close(y, attention(x), rtol=1e-8, atol=1e-9)
    variable = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad(oracle_of(case)(variable), variable, probe)
    torch.testing.assert_close((tangent * probe).sum(), (backward * direction).sum(), rtol=1e-8, atol=1e-9)


@each_case
def test_forward_mode_is_never_silently_wrong(case):
    attention, x = make(case)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    try:
        _, tangent = jvp(attention, (x,), (direction,))
    except RuntimeError:
        return  # the fused operator has no forward mode
    step = 1e-5
    with torch.no_grad():
        difference = (attention(x + step * direction) - attention(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-4, atol=1e-4)


def second(run, x, parameters):
    """Derivatives of the squared norm of a gradient."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
    found = torch.autograd.grad(gradient.square().sum(), [x, *parameters.values()], materialize_grads=True)
    return dict(zip(("x", *parameters), found, strict=True))


@each_case
def test_second_derivatives_are_those_of_the_oracle(case):
    attention, x = make(case)
    oracle = oracle_of(case)
    expected = second(oracle, x, dict(oracle.named_parameters()))
    largest = max(value.abs().max() for value in expected.values())

    def assert_expected(what):
        found = second(attention, x, dict(attention.named_parameters()))
        assert_same(*({n: v / largest for n, v in values.items()} for values in (found, expected)), what)

    try:
        with plain_attention():
            assert_expected("plain operators")
    except RuntimeError as error:
        if "grid_sampler_2d_backward is not implemented" not in str(error):
            raise
        pytest.skip("this version of torch cannot differentiate sampling twice")
    try:
        assert_expected("fused operators")
    except RuntimeError as error:
        # torch refuses to differentiate the fused operator twice
        assert "scaled_dot_product" in str(error), error


@pytest.mark.parametrize("name", ["swin", "cswin", "sliding", "vanilla"])
def test_the_hessian_is_that_of_the_oracle(name):
    attention = attention_zoo.create(name, dim=4, num_heads=2, lepe=True).double()
    oracle = attention_zoo.create(name, dim=4, num_heads=2, lepe=True, impl="reference").double()
    oracle.load_state_dict(attention.state_dict())
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def by_rows(run):
        return torch.autograd.functional.hessian(lambda x: run(x).square().sum(), x)

    expected = by_rows(oracle)
    assert expected.norm() > 0
    with plain_attention():
        torch.testing.assert_close(by_rows(attention), expected, rtol=1e-8, atol=1e-9)
        by_func = hessian(lambda x: attention(x).square().sum())(x)
    torch.testing.assert_close(by_func, expected, rtol=1e-8, atol=1e-9)


@each_case
def test_gradients_are_the_limits_of_differences(case):
    attention, x = make(case, size=(4, 6), images=1)
    names = [name for name, _ in attention.named_parameters()]

    def run(x, *weights):
        return functional_call(attention, dict(zip(names, weights, strict=True)), (x,))

    weights = [parameter.detach().clone().requires_grad_() for parameter in attention.parameters()]
    assert gradcheck(run, (x.requires_grad_(), *weights), fast_mode=True)
