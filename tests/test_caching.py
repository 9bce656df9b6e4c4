"""What is kept from call to call: when it is used, when it is made anew, and where it never goes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from attention_zoo import create
from attention_zoo.kernels.caching import Kept


@pytest.fixture
def counter():
    class Counter:
        made = 0

        def __init__(self):
            self.kept = Kept(2)

        def __call__(self, *sources, key="key"):
            def make():
                self.made += 1
                return sum(source.detach() * 2 for source in sources) if sources else torch.arange(3)

            return self.kept.get(key, make, sources)

    return Counter()


def test_a_value_is_made_once_and_the_oldest_forgotten(counter):
    first = counter(key="a")
    assert counter(key="a") is first
    counter(key="b"), counter(key="a"), counter(key="c")
    assert (counter.made, len(counter.kept)) == (3, 2)
    assert counter(key="a") is first
    counter(key="b")
    assert counter.made == 4


def write(weight):
    with torch.no_grad():
        weight.add_(1)


def write_data(weight):
    weight.data.add_(1)


def swap_data(weight):
    weight.data = weight.data + 1


def widen(weight):
    weight.data = weight.data.double() + 1


@pytest.mark.parametrize("change", [write, write_data, swap_data, widen], ids=lambda c: c.__name__)
def test_a_changed_parameter_is_noticed(counter, change):
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    assert counter(weight).tolist() == counter(weight).tolist() == [2, 2, 2]
    assert counter.made == 1
    change(weight)
    assert counter(weight).tolist() == [4, 4, 4]
    assert counter(weight).dtype == weight.dtype
    assert counter.made == 2


def test_another_parameter_of_equal_values_is_another(counter):
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    counter(weight)
    counter(copy.deepcopy(weight))
    assert counter.made == 2


def test_nothing_is_kept_where_a_gradient_must_pass(counter):
    weight = nn.Parameter(torch.ones(3))
    counter(weight), counter(weight)
    assert (counter.made, len(counter.kept)) == (2, 0)
    with torch.no_grad():
        counter(weight), counter(weight)
    assert counter.made == 3
    counter(weight)
    assert counter.made == 4


def test_what_inference_mode_made_can_be_saved_for_a_backward_pass(counter):
    with torch.inference_mode():
        value = counter()
    x = torch.ones(3, requires_grad=True)
    (x * counter()).sum().backward()
    assert x.grad.tolist() == value.tolist()
    assert counter.made == 1


def test_fake_and_meta_tensors_are_not_kept(counter):
    with FakeTensorMode():
        counter()
    counter(nn.Parameter(torch.ones(3, device="meta"), requires_grad=False))
    assert len(counter.kept) == 0
    assert type(counter()) is torch.Tensor


@pytest.mark.parametrize("name", ["swin", "maxvit", "crossformer"])
def test_a_module_follows_its_weights(name):
    torch.manual_seed(0)
    attention = create(name, dim=8, num_heads=2).eval()
    x, trained = torch.randn(1, 14, 14, 8), create(name, dim=8, num_heads=2)
    with torch.inference_mode():
        before = attention(x)
        assert torch.equal(attention(x), before)
    for parameter in trained.parameters():
        parameter.detach().normal_()
    attention.load_state_dict(trained.state_dict())
    torch.testing.assert_close(attention(x), trained(x))
    with torch.no_grad():
        torch.testing.assert_close(attention(x), trained(x))
        attention.double()
        torch.testing.assert_close(attention(x.double()), trained.double()(x.double()))


def test_copies_and_files_hold_no_values():
    attention = create("swin", dim=8, num_heads=2).eval()
    with torch.inference_mode():
        attention(torch.randn(1, 14, 14, 8))
    assert len(attention._biases) == 1
    assert "_biases" not in "".join(attention.state_dict())
    assert len(copy.deepcopy(attention)._biases) == 0
    assert len(pickle.loads(pickle.dumps(attention))._biases) == 0
    torch.save(attention.state_dict(), io.BytesIO())
