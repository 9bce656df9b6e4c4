"""Dense attention, against plain loops over tokens."""

import pytest
import torch

from attention_zoo import create


@pytest.mark.parametrize("config", [{}, {"qkv_bias": True}, {"lepe": True, "lepe_kernel": 3}], ids=str)
def test_output_by_token(small, output_by_token, config):
    attention, x = small("vanilla", 3, 5, **config)
    everything = [list(range(15))] * 15
    for image, y in zip(x, attention(x), strict=True):
        torch.testing.assert_close(output_by_token(attention, image, everything, scale=6**-0.5), y)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_lepe_is_zero_beyond_the_border_of_the_map(small, lepe_by_token, kernel):
    attention, x = small("vanilla", 4, 6, lepe=True, lepe_kernel=kernel)
    _, _, v = attention.project(x)
    term = attention.value_term(x, v)
    for image in range(2):
        values = v[image].transpose(0, 1).reshape(4, 6, 12)
        found = term[image].transpose(0, 1).reshape(4, 6, 12)
        torch.testing.assert_close(found, lepe_by_token(attention, values))


def test_a_single_token_returns_its_projected_value(small):
    attention, x = small("vanilla", 1, 1)
    value = x @ attention.qkv.weight[24:].T
    torch.testing.assert_close(attention(x), value @ attention.proj.weight.T + attention.proj.bias)


def test_every_query_reads_every_key_and_no_bias_is_added(small):
    attention, x = small("vanilla", 3, 4)
    assert attention.connectivity(x).expand(2, 2, 12, 12).all()
    assert attention.logit_bias(3, 4) is None
    assert attention.geometry(3, 4) == {"pad_ratio": 0.0}


def test_a_query_that_reads_nothing_yields_its_value_term_alone(small, evaluate):
    attention, x = small("vanilla", 3, 4, lepe=True)
    allowed = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    allowed[..., 5, :] = False
    attention.connectivity = lambda x: allowed
    values = evaluate(attention, x, "reference")
    assert all(value.isfinite().all() for value in values.values())
    term = attention.value_term(x, attention.project(x)[2])
    torch.testing.assert_close(values["output"].flatten(1, 2)[:, 5], attention.output(term)[:, 5])


def test_qk_scale_replaces_the_published_scale(small):
    (plain, x), (scaled, _) = small("vanilla", 3, 4), small("vanilla", 3, 4, qk_scale=6**-0.5)
    assert torch.equal(plain(x), scaled(x))
    assert plain.scale == 6**-0.5
    assert small("vanilla", 3, 4, qk_scale=0.7)[0].scale == 0.7


def test_macs_written_out():
    macs = create("vanilla", dim=48, num_heads=3, lepe=True, lepe_kernel=3).macs(10, 14)
    assert macs.projection == 4 * 140 * 48**2
    assert macs.core == 2 * 140**2 * 48
    assert macs.position == 140 * 48 * 9
    assert macs.routing == macs.host == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim must be a positive multiple of num_heads, got dim=10, num_heads=4"),
        ({"dim": 0, "num_heads": 4}, "dim=0"),
        ({"dim": 12, "num_heads": 0}, "num_heads=0"),
        ({"dim": 12, "num_heads": 2, "lepe_kernel": 4}, "lepe_kernel must be odd and at least 1, got 4"),
        ({"dim": 12, "num_heads": 2, "lepe_kernel": -1}, "got -1"),
        ({"dim": 12, "num_heads": 2, "qk_scale": 0.0}, "qk_scale must be positive and finite, got 0"),
        ({"dim": 12, "num_heads": 2, "qk_scale": float("nan")}, "qk_scale must be positive and finite, got nan"),
        ({"dim": 12, "num_heads": 2, "qk_scale": float("inf")}, "qk_scale must be positive and finite, got inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create("vanilla", **arguments)
