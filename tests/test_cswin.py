"""Cross-shaped stripes, token by token."""

import pytest
import torch

from attention_zoo import create
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.cswin import CSWinConfig


def by_token(attention, image, stripe):
    """One image, (H, W, C): head 0 in vertical stripes, head 1 in horizontal ones, LePE cut at their borders."""
    height, width, dim = image.shape
    q, k, v = (image.reshape(-1, dim) @ attention.qkv.weight.T + attention.qkv.bias).split(dim, dim=-1)
    y = torch.zeros_like(q)
    half = dim // 2
    reach = 0 if attention.lepe is None else attention.lepe.kernel_size[0] // 2
    for head in range(2):
        channels = slice(head * half, (head + 1) * half)

        def stripe_of(token, head=head):
            return (token // width) // stripe if head else (token % width) // stripe

        for query in range(height * width):
            keys = [key for key in range(height * width) if stripe_of(key) == stripe_of(query)]
            powers = [((q[query, channels] * k[key, channels]).sum() * half**-0.5).exp() for key in keys]
            for key, power in zip(keys, powers, strict=True):
                y[query, channels] += power / sum(powers) * v[key, channels]
            if attention.lepe is None:
                continue
            y[query, channels] += attention.lepe.bias[channels]
            for key in keys:
                dy, dx = key // width - query // width, key % width - query % width
                if max(abs(dy), abs(dx)) <= reach:
                    weight = attention.lepe.weight[channels, 0, reach + dy, reach + dx]
                    y[query, channels] += weight * v[key, channels]
    return (y @ attention.proj.weight.T + attention.proj.bias).reshape(image.shape)


@pytest.mark.parametrize("side", ["end", "center"])
@pytest.mark.parametrize("lepe", [True, False], ids=["lepe", "plain"])
@pytest.mark.parametrize(("size", "stripe"), [((4, 6), 2), ((3, 5), 1), ((4, 6), 9)], ids=str)
def test_output_by_token(small, size, stripe, lepe, side):
    attention, x = small("cswin", *size, stripe=stripe, lepe=lepe, pad_side=side, clip_stripe=True)
    torch.testing.assert_close(by_token(attention, x[1], stripe), attention(x)[1])


def test_a_padded_stripe_is_a_narrow_one(small):
    attention, x = small("cswin", 5, 7, stripe=3)
    torch.testing.assert_close(by_token(attention, x[1], 3), attention(x)[1])
    centred, x = small("cswin", 5, 7, stripe=3, pad_side="center")
    # 5 rows are padded to 6, all of it at the bottom; 7 columns to 9, one on each side
    reads = centred.connectivity(x)[0]
    assert reads[0, 0].reshape(5, 7).any(0).nonzero().flatten().tolist() == [0, 1]
    assert reads[1, 0].reshape(5, 7).any(1).nonzero().flatten().tolist() == [0, 1, 2]


def test_stripes_as_wide_as_the_map_are_vanilla(small, evaluate):
    attention, x = small("cswin", 5, 7, stripe=7)
    dense, _ = small("vanilla", 5, 7, qkv_bias=True, lepe=True, lepe_kernel=3)
    dense.load_state_dict(attention.state_dict())
    expected = evaluate(dense, x)
    for name, value in evaluate(attention, x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10)


def test_the_odd_head_goes_down():
    attention = create("cswin", dim=12, num_heads=3, stripe=2)
    reads = attention.connectivity(torch.zeros(1, 4, 6, 12))[0]
    assert [int(head[0].sum()) for head in reads] == [8, 8, 12]
    assert create("cswin", dim=12, num_heads=1, stripe=2)(torch.zeros(1, 4, 6, 12)).shape == (1, 4, 6, 12)


def test_macs_written_out():
    attention = create("cswin", dim=48, num_heads=4, stripe=2)
    macs = attention.macs(14, 28)
    assert macs.projection + macs.core == 4 * 392 * 48**2 + 2 * (14 + 28) * 392 * 48  # sw (H + W) N C
    assert macs.position == 392 * 48 * 9
    padded = attention.macs(13, 27)
    assert padded.core == 2 * 24 * (13 * 28 * 13 * 2 + 14 * 27 * 27 * 2)
    assert attention.geometry(13, 27) == {"window": "13x2+2x27", "pad_ratio": (28 / 27 + 14 / 13) / 2 - 1}


def test_stripes_follow_the_layout():
    assert [CSWinConfig().at(stage, 0, STL).stripe for stage in range(4)] == [1, 2, 7, 7]
    assert CSWinConfig().at(0, 0, SMALL).stripe == 1
    assert CSWinConfig().at(2, 0, STL).clip_stripe  # at 64 px the map is 4x4
    assert CSWinConfig(stripe=3).at(0, 0, STL).stripe == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stripe": 0}, "stripe must be at least 1, got 0"),
        ({"padding": "official", "pad_moment": "input"}, "pad_moment=input.*projected"),
        ({"pad_moment": "projected"}, "pad_moment=projected needs padding=official, got padding=mask"),
    ],
    ids=str,
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        create("cswin", dim=12, num_heads=2, **config)


def test_refused_padding_names_the_map():
    attention = create("cswin", dim=12, num_heads=2, stripe=3, padding="error")
    with pytest.raises(ValueError, match=r"6x7 map.*6x3 tokens.*padding=mask"):
        attention(torch.zeros(1, 6, 7, 12))


def test_a_stripe_wider_than_the_map_names_both():
    message = r"stripe=8 is wider than a 5x7 map; lower it, or allow clip_stripe"
    attention = create("cswin", dim=12, num_heads=2, stripe=8)
    for call in (attention.macs, attention.geometry):
        with pytest.raises(ValueError, match=message):
            call(5, 7)
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(1, 5, 7, 12))
